"""vhost-user in Python, both sides of it, with VIRTIO Shared Memory Regions at its heart."""

from __future__ import annotations

from ._native import accelerated
from .backend import Backend
from .counters import Counters
from .device import KEEP, Device
from .errors import (
    DeadlineExpired,
    Disconnected,
    LocalProtocolError,
    MemoryFault,
    ProtocolError,
    QueueBroken,
    RemoteProtocolError,
    RequestFailed,
    VhostUserError,
)
from .frontend import Frontend
from .protocol.regions import Mapping
from .queue import Queue
from .shared_memory import MapRequest, SharedMemory
from .shared_objects import SharedObjects
from .shared_region import SharedRegion
from .transport.listen import AddressError
from .version import VERSION
from .virtio.chain import DescriptorChain

__all__ = [
    "KEEP",
    "AddressError",
    "Backend",
    "Counters",
    "DeadlineExpired",
    "DescriptorChain",
    "Device",
    "Disconnected",
    "Frontend",
    "LocalProtocolError",
    "MapRequest",
    "Mapping",
    "MemoryFault",
    "ProtocolError",
    "Queue",
    "QueueBroken",
    "RemoteProtocolError",
    "RequestFailed",
    "SharedMemory",
    "SharedObjects",
    "SharedRegion",
    "VhostUserError",
    "accelerated",
]
__version__ = VERSION
