"""Randomness for a guest: the device behind `vhu-rng` ("Entropy Device")."""

from __future__ import annotations

import os
from typing import Final

from ..device import Device
from ..virtio.chain import DescriptorChain
from ..virtio.numbers import DeviceId

QUEUE_SIZE: Final = 1024
MOST: Final = 1 << 16
"""The most bytes that one request gets; a device may fill less than the whole buffer."""


class Entropy(Device):
    """Fills requests with random bytes of the host's kernel."""

    virtio_id = DeviceId.RNG
    queue_sizes = (QUEUE_SIZE,)

    def process(self, queue: int, chain: DescriptorChain) -> None:
        """Fill what the driver wants filled, up to 64 KiB."""
        chain.write(_random(min(chain.writable_size, MOST)))


def _random(size: int) -> bytes:
    """Random bytes; a signal may end a call for more than 256 of them early, so it is repeated."""
    data = bytearray()
    while len(data) < size:
        data += os.getrandom(size - len(data))
    return bytes(data)
