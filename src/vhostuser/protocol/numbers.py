"""Numbers of the vhost-user specification: requests, header flags, features and limits."""

from __future__ import annotations

from collections.abc import Iterable
from enum import IntEnum
from typing import Final

VERSION: Final = 0x1
VERSION_MASK: Final = 0x3
REPLY: Final = 0x4
NEED_REPLY: Final = 0x8
KNOWN_FLAGS: Final = VERSION_MASK | REPLY | NEED_REPLY

HEADER_SIZE: Final = 12
MAX_PAYLOAD: Final = 4096
"""Bytes of a payload that are ever read: twice the largest payload of the specification."""
MAX_REGIONS: Final = 8
"""Memory regions in SET_MEM_TABLE, and fds on the back-end channel (BACKEND_SEND_FD)."""
MAX_MEM_SLOTS: Final = 509
"""Memory regions that a back-end takes one by one: KVM's 512 slots without its own three, as vhost in the kernel takes."""
MAX_CONFIG: Final = 256
MAX_SHMIDS: Final = 256
MAX_QUEUES: Final = 256
MAX_QUEUE_SIZE: Final = 32768
MAX_FDS: Final = 253
"""What Linux allows in one SCM_RIGHTS: room for all, so that too many can be counted, closed and refused."""
PAGE: Final = 4096
END_OF_ADDRESSES: Final = 1 << 64
END_OF_FILE_OFFSETS: Final = 1 << 63

VRING_INDEX_MASK: Final = 0xFF
VRING_NO_FD: Final = 0x100
"""Bit 8 of SET_VRING_KICK, SET_VRING_CALL and SET_VRING_ERR: no fd comes with the message."""
VRING_F_LOG: Final = 0x1
"""SET_VRING_ADDR flags: log the writes to the used ring ("Migration")."""

MAP_RW: Final = 0x1
"""SHMEM_MAP flags: pages are mapped read-write; without it read-only."""


class FrontendRequest(IntEnum):
    """Requests that a front-end sends on the main channel ("Front-end message types")."""

    GET_FEATURES = 1
    SET_FEATURES = 2
    SET_OWNER = 3
    RESET_OWNER = 4
    SET_MEM_TABLE = 5
    SET_LOG_BASE = 6
    SET_LOG_FD = 7
    SET_VRING_NUM = 8
    SET_VRING_ADDR = 9
    SET_VRING_BASE = 10
    GET_VRING_BASE = 11
    SET_VRING_KICK = 12
    SET_VRING_CALL = 13
    SET_VRING_ERR = 14
    GET_PROTOCOL_FEATURES = 15
    SET_PROTOCOL_FEATURES = 16
    GET_QUEUE_NUM = 17
    SET_VRING_ENABLE = 18
    SEND_RARP = 19
    NET_SET_MTU = 20
    SET_BACKEND_REQ_FD = 21
    IOTLB_MSG = 22
    SET_VRING_ENDIAN = 23
    GET_CONFIG = 24
    SET_CONFIG = 25
    CREATE_CRYPTO_SESSION = 26
    CLOSE_CRYPTO_SESSION = 27
    POSTCOPY_ADVISE = 28
    POSTCOPY_LISTEN = 29
    POSTCOPY_END = 30
    GET_INFLIGHT_FD = 31
    SET_INFLIGHT_FD = 32
    GPU_SET_SOCKET = 33
    RESET_DEVICE = 34
    VRING_KICK = 35
    GET_MAX_MEM_SLOTS = 36
    ADD_MEM_REG = 37
    REM_MEM_REG = 38
    SET_STATUS = 39
    GET_STATUS = 40
    GET_SHARED_OBJECT = 41
    SET_DEVICE_STATE_FD = 42
    CHECK_DEVICE_STATE = 43
    GET_SHMEM_CONFIG = 44


class BackendRequest(IntEnum):
    """Requests that a back-end sends on the socket of SET_BACKEND_REQ_FD ("Back-end message types")."""

    IOTLB_MSG = 1
    CONFIG_CHANGE_MSG = 2
    VRING_HOST_NOTIFIER_MSG = 3
    VRING_CALL = 4
    VRING_ERR = 5
    SHARED_OBJECT_ADD = 6
    SHARED_OBJECT_REMOVE = 7
    SHARED_OBJECT_LOOKUP = 8
    SHMEM_MAP = 9
    SHMEM_UNMAP = 10


class ProtocolFeature(IntEnum):
    """Bit numbers of GET_PROTOCOL_FEATURES and SET_PROTOCOL_FEATURES ("Protocol features")."""

    MQ = 0
    LOG_SHMFD = 1
    RARP = 2
    REPLY_ACK = 3
    MTU = 4
    BACKEND_REQ = 5
    CROSS_ENDIAN = 6
    CRYPTO_SESSION = 7
    PAGEFAULT = 8
    CONFIG = 9
    BACKEND_SEND_FD = 10
    HOST_NOTIFIER = 11
    INFLIGHT_SHMFD = 12
    RESET_DEVICE = 13
    INBAND_NOTIFICATIONS = 14
    CONFIGURE_MEM_SLOTS = 15
    STATUS = 16
    XEN_MMAP = 17
    SHARED_OBJECT = 18
    DEVICE_STATE = 19
    GET_VRING_BASE_INFLIGHT = 20
    GPA_ADDRESSES = 21
    SHMEM = 22


F = ProtocolFeature

REQUIRES: Final[dict[ProtocolFeature, tuple[ProtocolFeature, ...]]] = {
    F.BACKEND_SEND_FD: (F.BACKEND_REQ,),
    F.HOST_NOTIFIER: (F.BACKEND_REQ, F.BACKEND_SEND_FD),
    F.INBAND_NOTIFICATIONS: (F.BACKEND_REQ, F.REPLY_ACK),
    F.SHARED_OBJECT: (F.BACKEND_REQ,),
    F.GET_VRING_BASE_INFLIGHT: (F.INFLIGHT_SHMFD,),
    F.SHMEM: (F.BACKEND_REQ, F.BACKEND_SEND_FD),
}
"""What else must be negotiated for a feature to mean anything; nobody may acknowledge one without the others."""

ADVISED: Final[dict[ProtocolFeature, tuple[ProtocolFeature, ...]]] = {F.SHMEM: (F.REPLY_ACK,)}
"""What the specification strongly advises besides: our side never offers the one without the other."""


class VhostFeature(IntEnum):
    """Feature bits of GET_FEATURES that belong to vhost, not to VIRTIO."""

    LOG_ALL = 26
    PROTOCOL_FEATURES = 30


def mask(bits: Iterable[int]) -> int:
    """The integer in which exactly `bits` are set."""
    result = 0
    for bit in bits:
        result |= 1 << bit
    return result


def bits(value: int) -> list[int]:
    """The numbers of the bits that are set in `value`, ascending."""
    return [bit for bit in range(value.bit_length()) if value >> bit & 1]


def protocol_feature_names(value: int) -> frozenset[str]:
    """Names of the protocol features in `value`; a bit without a name is `BIT_n`."""
    return frozenset(ProtocolFeature(bit).name if bit <= max(ProtocolFeature) else f"BIT_{bit}" for bit in bits(value))


def missing_requirements(value: int) -> list[tuple[ProtocolFeature, ProtocolFeature]]:
    """Pairs (feature, what it requires) that `value` lacks."""
    return [
        (feature, needed)
        for feature, needs in REQUIRES.items()
        if value >> feature & 1
        for needed in needs
        if not value >> needed & 1
    ]
