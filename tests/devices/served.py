"""Devices for a process of their own."""

from __future__ import annotations

import os

from vhostuser.devices.blk import BlockDevice
from vhostuser.devices.disk import Disk

DISK = "VHOSTUSER_TEST_DISK"


def small() -> BlockDevice:
    """The disk that the environment names."""
    return BlockDevice(Disk(os.environ[DISK]))
