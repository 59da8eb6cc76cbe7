"""What a device author fills in."""

from __future__ import annotations

from collections.abc import Mapping as MappingOf
from collections.abc import Sequence
from enum import Enum
from types import MappingProxyType
from typing import TYPE_CHECKING, ClassVar, Final, Protocol
from uuid import UUID

from .errors import LocalProtocolError
from .objects import Objects
from .port import Port
from .shared_memory import SharedMemory
from .transport.fds import HasFileno, OwnedFd, duplicated
from .virtio.chain import DescriptorChain

if TYPE_CHECKING:
    from ._native.handover import Handover
    from ._native.walk import DeviceRing


class Keep(Enum):
    """What `process` returns of a request that is not done yet."""

    KEEP = "keep"


KEEP: Final = Keep.KEEP


class Queues(Protocol):
    """A device's queues while a front-end is connected."""

    def complete(self, queue: int, chain: DescriptorChain) -> None:
        """Give a kept request back."""

    def resume(self, queue: int) -> None:
        """Look at the queue again."""


class CompiledHandler(Protocol):
    """What serves the ordinary requests of a device without Python."""

    def serve(self, ring: DeviceRing, handover: Handover, epoch: int, kick: int, waker: int, spin: int) -> int:
        """Serve a ring until something is wanted of Python; why, as `_native.handover` numbers it."""


class Device:
    """A virtio device. Subclasses say what it is in class attributes, and what it does in `process`.

    All methods but `write_config`, `shared_object` and `reset` are called in a queue thread, these three in the thread that
    serves the front-end. An exception in any of them fails that request alone, SystemExit too; but in the main thread that
    and KeyboardInterrupt pass, and end the program.
    """

    virtio_id: ClassVar[int] = 0
    """The device type ("Device Types")."""
    features: int = 0
    """Feature bits of the device type, as a mask: bits 0 to 23 and 50 and up."""
    acknowledged: int = 0
    """The features that the driver took, as a mask; known before `driver_ready` and the first request."""
    queue_sizes: tuple[int, ...] = ()
    """One entry a queue: the most descriptors that it may have."""
    shared_memory: MappingOf[int, int] = MappingProxyType({})
    """Shared memory regions: bytes by shmid. Whole pages; QEMU 11.1 wants a power of two in all."""
    drain_timeout: float = 1.0
    """Seconds that a stop waits for a request in progress; then that is left to itself, and never given back. Few, because a
    front-end that waits for a stop answers no SHMEM_MAP; a device that waits for nothing but its host may say more."""
    queue_threads: bool = False
    """Each queue has a thread of its own, so that `process` is called in several at a time. Else one has them all."""
    in_order: bool = True
    """A driver may have requests given back in the order in which it made them (IN_ORDER): what is done early waits for what
    came before it. False for a device that keeps one until the driver has heard of a later one."""
    spin: float = 50.0
    """Microseconds that a queue's thread keeps looking for the next request before it sleeps; 0 for none. Waking up takes
    longer. Where the process has one CPU only it sleeps at once."""
    config: bytes = b""
    """The configuration space."""
    shm: MappingOf[int, SharedMemory] = MappingProxyType({})
    """The shared memory regions by shmid, once a Backend has the device."""
    shared_objects: bool = False
    """The device shares objects with others, by UUID ("VHOST_USER_PROTOCOL_F_SHARED_OBJECT")."""
    objects: Objects = Objects(Port())
    """Where it adds, withdraws and looks up such objects, once a Backend has the device."""
    queues: Queues | None = None
    """What `complete` and `resume` go to: set by a Backend as long as a front-end is connected."""

    def process(self, queue: int, chain: DescriptorChain) -> Keep | None:
        """Handle one request of queue number `queue`: read what the driver gave, write what it asked for.

        It is given back when this returns; if KEEP is returned, once `complete` is called for it. An exception gives it
        back with what was written by then; the log of the back-end's process has it. A stop of the queue waits for what
        is kept, `drain_timeout` seconds at most: for input that may never come use `takes`.
        """
        raise LocalProtocolError(f"{type(self).__name__} has no process() for the requests of queue {queue}")

    def compiled(self) -> CompiledHandler | None:
        """What serves ordinary requests in place of `process`, if anything does; asked before each time."""
        return None

    def process_batch(self, queue: int, chains: Sequence[DescriptorChain]) -> None:
        """Handle all requests of queue number `queue` that wait, in order, if a subclass has this instead of `process`.

        All of them are given back when it returns, or raises; a stop waits for all of them.
        """
        raise LocalProtocolError(f"{type(self).__name__} has no process_batch() for the requests of queue {queue}")

    def takes(self, queue: int) -> bool:
        """Whether the device wants the next request of that queue now. After a no it waits for `resume`."""
        return True

    def complete(self, queue: int, chain: DescriptorChain) -> None:
        """Give back a request that `process` has kept, from any thread; in vain if it was abandoned meanwhile."""
        if queues := self.queues:
            queues.complete(queue, chain)

    def resume(self, queue: int) -> None:
        """Have the queue looked at again, from any thread, since `takes` would say yes now."""
        if queues := self.queues:
            queues.resume(queue)

    def driver_ready(self) -> None:
        """A driver has taken the device, for the first time or after a reset. Nothing is mapped; mapping is allowed."""

    def reset(self) -> None:
        """The driver has reset the device, or is gone. Every mapping has vanished."""

    def shared_object(self, uuid: UUID) -> int | HasFileno | None:
        """The fd of an object that this device has added, or the file, which stays its own ("GET_SHARED_OBJECT").

        None if there is none. What is raised says the same to the front-end.
        """
        return None

    def object_fd(self, uuid: UUID) -> OwnedFd | None:
        """A new fd of what `shared_object` gives, for the front-end."""
        found = self.shared_object(uuid)
        return None if found is None else duplicated(found)

    def write_config(self, offset: int, data: bytes) -> None:
        """Take a write to the configuration space; refused unless a subclass does better ("SET_CONFIG")."""
        text = f"SET_CONFIG offset {offset} size {len(data)}: this device's configuration is read-only"
        raise LocalProtocolError(text, request="SET_CONFIG", field="offset", value=offset, limit="read-only")
