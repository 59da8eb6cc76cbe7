"""Numbers of the VIRTIO specification: device ids, feature bits, ring flags and status bits."""

from __future__ import annotations

from enum import IntEnum, IntFlag
from typing import Final


class DeviceId(IntEnum):
    """Device types ("Device Types")."""

    NET = 1
    BLOCK = 2
    CONSOLE = 3
    RNG = 4
    BALLOON = 5
    RPMSG = 7
    SCSI = 8
    NINE_P = 9
    RPROC_SERIAL = 11
    CAIF = 12
    GPU = 16
    INPUT = 18
    VSOCK = 19
    CRYPTO = 20
    IOMMU = 23
    SOUND = 25
    FS = 26
    PMEM = 27
    I2C = 34
    GPIO = 41
    RDMA = 42
    MEDIA = 48


class Feature(IntEnum):
    """Feature bits that every device shares ("Reserved Feature Bits")."""

    NOTIFY_ON_EMPTY = 24
    ANY_LAYOUT = 27
    RING_INDIRECT_DESC = 28
    RING_EVENT_IDX = 29
    VERSION_1 = 32
    ACCESS_PLATFORM = 33
    RING_PACKED = 34
    IN_ORDER = 35
    ORDER_PLATFORM = 36
    SR_IOV = 37
    NOTIFICATION_DATA = 38
    NOTIF_CONFIG_DATA = 39
    RING_RESET = 40
    ADMIN_VQ = 41


class Status(IntFlag):
    """Device status ("Device Status Field")."""

    ACKNOWLEDGE = 1
    DRIVER = 2
    DRIVER_OK = 4
    FEATURES_OK = 8
    NEEDS_RESET = 64
    FAILED = 128


DESC_NEXT: Final = 1
DESC_WRITE: Final = 2
DESC_INDIRECT: Final = 4
DESC_AVAIL: Final = 1 << 7
DESC_USED: Final = 1 << 15
DESCRIPTOR_SIZE: Final = 16
EVENT_SIZE: Final = 4
EVENT_ENABLE: Final = 0
AVAIL_NO_INTERRUPT: Final = 1
USED_NO_NOTIFY: Final = 1
MAX_CHAIN_BYTES: Final = 1 << 32
"""A chain may not be longer in total ("The Virtqueue Descriptor Table")."""


def feature_names(value: int) -> frozenset[str]:
    """Names of the shared feature bits in `value`; a bit of the device type is `BIT_n`, 26 and 30 are vhost's own."""
    names = {int(feature): feature.name for feature in Feature} | {26: "LOG_ALL", 30: "PROTOCOL_FEATURES"}
    return frozenset(names.get(bit, f"BIT_{bit}") for bit in range(value.bit_length()) if value >> bit & 1)
