"""One ring as a back-end runs it: its queue in guest memory, its eventfds, and whether it is at work."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from . import _native
from .errors import QueueBroken
from .kept import Kept
from .transport.fds import OwnedFd
from .transport.loop import drain
from .transport.socket import wait
from .virtio.chain import DescriptorChain
from .virtqueue import DeviceQueue, Place

if TYPE_CHECKING:
    from ._native.handover import Handover


@dataclass(slots=True, eq=False)
class Vring:
    """One ring as the back-end runs it."""

    index: int
    queue: DeviceQueue | None = None
    place: Place | None = None
    """Where the queue lies."""
    moved: Place | None = None
    """Where the queue lies by a newer memory table; it goes there between two batches, when all is published."""
    active: bool = False
    broken: bool = False
    """The driver left nonsense in it: it rests until it is stopped and set up again."""
    lock: threading.Lock = field(default_factory=threading.Lock)
    """Held while a request is processed."""
    books: threading.Lock = field(default_factory=threading.Lock)
    """Held while requests are given back or kept, and while `epoch` changes: a stop may do so while one does not end."""
    pushed: int = 0
    """Requests that were given back and are not published."""
    epoch: int = 0
    """Changes when a stop did not wait for the request in progress, which then may not be given back."""
    kept: Kept = field(default_factory=Kept)
    """Requests that the device keeps."""
    completion: threading.Event = field(default_factory=threading.Event)
    """Set when the device has completed one of them."""
    handover: Handover | None = field(default_factory=lambda: _native.handover.Handover() if _native.accelerated else None)
    """What compiled code shares with the thread that serves the front-end: the eventfd `call`, and word to leave."""
    bell: Callable[[Literal["call", "err"], int], None] | None = None
    """What tells the driver where no eventfd does, if anything."""
    polled: set[str] = field(default_factory=set)
    """The eventfds in whose place the driver looks by itself."""
    empty_kicks: int = 0
    """Kicks in a row, up to now, that found nothing in the ring."""
    in_compiled: bool = False
    """Compiled code serves it now."""
    used_log: int | None = None
    """Where in guest memory the used ring lies for the dirty log, if writes to it are to be logged."""
    _settled: Place | None = None
    _files: dict[str, OwnedFd] = field(default_factory=dict)
    _lent: OwnedFd | None = None
    _files_lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def base(self) -> int | None:
        """The next available index of the queue, if it lies anywhere."""
        return queue.base if (queue := self.queue) else None

    @property
    def calls_by_message(self) -> bool:
        """The driver is told by a message that requests are done: no eventfd does, and it does not look by itself."""
        return self.bell is not None and "call" not in self._files and "call" not in self.polled

    @property
    def left_base(self) -> int:
        """Where the queue, which is stopped, goes on."""
        if (queue := self.queue) is None:
            return 0
        try:
            return self.place.base_of(queue) if self.place else queue.base
        except QueueBroken:
            return queue.base

    @property
    def settled(self) -> bool:
        """The queue lies where the newest memory table has it."""
        return self.moved is None or self.moved is self._settled

    def settle(self) -> DeviceQueue | None:
        """The queue, laid where it is now, if the ring is active. The lock must be held. QueueBroken as `lay` raises it."""
        if not self.active:
            return None
        self.lay()
        return self.queue

    def lay(self) -> None:
        """Lay the queue where it is now. The lock must be held. QueueBroken if memory is gone there already."""
        if (place := self.moved) and self.queue is not None and self._settled is not place:
            self._settled = place
            self.queue, self.place, self.pushed = place.go_on(self.queue), place, 0

    def put(self, place: Place, base: int | None) -> None:
        """Lay the queue at a place. QueueBroken as `Place.begin`."""
        self.queue, self.place, self.pushed = place.begin(base), place, 0
        self.kept.in_order = place.in_order

    def unsettle(self) -> None:
        """Let go of the memory table in which the queue lay."""
        self._settled = self.place = None

    def abandon(self) -> None:
        """Leave what is in progress to itself: it is not given back any more."""
        self.epoch += 1
        if self.handover:
            self.handover.abandon()

    def complete(self, chain: DescriptorChain) -> None:
        """The device is done with a request that it kept. From any thread."""
        self.kept.complete(chain)
        self.completion.set()

    def replace(self, name: str, fd: OwnedFd | None) -> None:
        """Put another eventfd (`kick`, `call` or `err`) in place, or none; the old one is closed, a lent kick later.

        The front-end has it as well, and may take or fill it between a look at it and its use: it must not block. OSError if
        it can't be told so; all is as it was, then.
        """
        if fd is not None:
            _never_block(fd)
        with self._files_lock:
            old = self._files.pop(name, None)
            if name == "kick":
                self.empty_kicks = 0
            if fd is not None:
                self._files[name] = fd
            if name == "call" and self.handover:
                self.handover.point(-1 if fd is None else fd.fileno())
            if old is not None and old is not self._lent:
                old.close()

    def kick_fd(self) -> int | None:
        """The fd to wait on, if there is one."""
        with self._files_lock:
            return self._files["kick"].fileno() if "kick" in self._files else None

    @contextlib.contextmanager
    def lent_kick(self) -> Iterator[int | None]:
        """The fd of the kick, for the thread that works on the ring: it stays open in the block, though it be replaced."""
        with self._files_lock:
            kick = self._lent = self._files.get("kick")
        try:
            yield kick.fileno() if kick else None
        finally:
            with self._files_lock:
                self._lent = None
                if kick and self._files.get("kick") is not kick:
                    kick.close()

    def check_kick(self) -> None:
        """QueueBroken if the kick can't be read."""
        if (fd := self.kick_fd()) is not None:
            self.take_kick(fd)

    def take_kick(self, fd: int) -> None:
        """Reset the kick that was seen on `fd`, if it still is this ring's. QueueBroken if it can't be read."""
        with self._files_lock:
            if "kick" in self._files and self._files["kick"].fileno() == fd:
                try:
                    drain(fd)
                except OSError as error:
                    raise QueueBroken(f"its kick can't be read: {error.strerror}") from None

    def signal(self, name: Literal["call", "err"]) -> None:
        """Set the eventfd `call` or `err`, or ring the bell if there is none; an eventfd that is full is as good as set."""
        if name == "call" and self.handover and "call" in self._files:
            self.handover.signal()
            return
        with self._files_lock:
            if fd := self._files.get(name):
                if wait((), 0, (fd,)):
                    with contextlib.suppress(OSError):
                        os.write(fd.fileno(), (1).to_bytes(8, sys.byteorder))
                return
        if self.bell and name not in self.polled:
            self.bell(name, self.index)

    def close(self) -> None:
        """Close the eventfds, and let go of guest memory."""
        self.queue = self.moved = None
        self.kept.close()
        self.unsettle()
        for name in ("kick", "call", "err"):
            self.replace(name, None)


def _never_block(fd: OwnedFd) -> None:
    """Let reads and writes fail that would wait; the fd is closed if it is none that could."""
    try:
        os.set_blocking(fd.fileno(), False)
    except OSError:
        fd.close()
        raise
