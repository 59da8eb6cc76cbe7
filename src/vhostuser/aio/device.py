"""What an author fills in of a device whose requests are coroutines, and how the core sees it."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import logging
from collections.abc import Callable, Coroutine
from collections.abc import Mapping as MappingOf
from concurrent.futures import Future
from types import MappingProxyType
from typing import ClassVar, Final, TypeVar
from uuid import UUID

from ..device import KEEP, Device, Keep
from ..device_check import mistyped
from ..errors import DeadlineExpired, Disconnected, LocalProtocolError, VhostUserError
from ..limited_log import LimitedLog
from ..objects import Objects
from ..port import Port
from ..transport.fds import HasFileno, OwnedFd, duplicated
from ..virtio.chain import DescriptorChain
from .mapper import Mapper
from .objects import AsyncObjects, close_late
from .shared_memory import AsyncSharedMemory

log = logging.getLogger(__name__)
LOOP_TIMEOUT: Final = 5.0
"""Seconds that the event loop may take to turn to something that the front-end waits for."""
MEANINGLESS: Final = ("queue_threads", "spin", "takes", "process_batch", "compiled")
"""What a `Device` may say and an AsyncDevice says in vain."""
T = TypeVar("T")


class AsyncDevice:
    """A virtio device. Subclasses say what it is as in `Device`, and what it does in `process`.

    All methods are called in the event loop, and so may not block it. Requests are tasks: what is about threads in `Device`,
    or about requests that the device keeps, has no meaning here: `queue_threads`, `spin`, `takes` and `resume`, KEEP and
    `complete`, `process_batch`, `compiled`.
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
    drain_timeout: float = Device.drain_timeout
    """Seconds that a stop waits for the requests in progress; then they are left to themselves, and never given back."""
    in_order: bool = False
    """As in `Device`, but false unless a subclass says so: requests are at work at a time, and each comes back once it is
    done. True for a device none of whose requests waits for a later one."""
    config: bytes = b""
    """The configuration space."""
    shm: MappingOf[int, AsyncSharedMemory] = MappingProxyType({})
    """The shared memory regions by shmid, once an AsyncBackend has the device."""
    shared_objects: bool = False
    """The device shares objects with others, by UUID ("VHOST_USER_PROTOCOL_F_SHARED_OBJECT")."""
    objects: AsyncObjects = AsyncObjects(Objects(Port()), Mapper())
    """Where it adds, withdraws and looks up objects, once an AsyncBackend has the device."""

    async def process(self, queue: int, chain: DescriptorChain) -> None:
        """Handle one request, while others are handled as well: read what the driver gave, write what it asked for.

        It is given back when this ends. An exception gives it back with what was written by then; the log of the back-end's
        process has it. A stop of the queue waits for it, `drain_timeout` seconds at
        most; a reset, and the front-end's end, cancel it.
        """
        raise LocalProtocolError(f"{type(self).__name__} has no process() for the requests of queue {queue}")

    async def driver_ready(self) -> None:
        """A driver has taken the device, for the first time or after a reset; no request comes before this ends."""

    def reset(self) -> None:
        """The driver has reset the device, or is gone. Every mapping has vanished, every request was cancelled."""

    def shared_object(self, uuid: UUID) -> int | HasFileno | None:
        """As `Device.shared_object`. Another device waits for it, and for two seconds at most."""
        return None

    def write_config(self, offset: int, data: bytes) -> None:
        """Take a write to the configuration space; refused unless a subclass does better ("SET_CONFIG")."""
        text = f"SET_CONFIG offset {offset} size {len(data)}: this device's configuration is read-only"
        raise LocalProtocolError(text, request="SET_CONFIG", field="offset", value=offset, limit="read-only")


class Bridge(Device):
    """An AsyncDevice as the core's threads see it: each request becomes a task in the event loop, and is kept meanwhile."""

    def __init__(self, device: AsyncDevice) -> None:
        self._device = device
        self.features, self.queue_sizes = device.features, device.queue_sizes
        self.shared_memory, self.drain_timeout = device.shared_memory, device.drain_timeout
        self.shared_objects, self.in_order = device.shared_objects, device.in_order
        self._loop: asyncio.AbstractEventLoop | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._starting: set[Future[None]] = set()
        """What waits for the device to be ready."""
        self._log = LimitedLog(log)
        for name in MEANINGLESS:
            if hasattr(device, name):
                self._log.warning(f"{type(device).__name__}.{name} means nothing in an AsyncDevice")
        for text in mistyped(device, AsyncDevice):
            self._log.warning(text)

    @property
    def config(self) -> bytes:
        """The configuration space."""
        return self._device.config

    @config.setter
    def config(self, value: bytes) -> None:
        self._device.config = value

    @property
    def acknowledged(self) -> int:
        """The features that the driver took."""
        return self._device.acknowledged

    @acknowledged.setter
    def acknowledged(self, value: int) -> None:
        self._device.acknowledged = value

    # For the loop

    def attach(self, loop: asyncio.AbstractEventLoop) -> None:
        """Run the device's coroutines in that loop from now on."""
        if self._loop is not None:
            raise LocalProtocolError("this back-end serves already")
        self._loop = loop

    async def detach(self) -> None:
        """Cancel what still runs, and wait for its end; what waits for the device to be ready does so no more."""
        self._loop = None
        self._cancel()
        for done in list(self._starting):
            done.cancel()
        while self._tasks:
            await asyncio.wait(self._tasks)

    def _cancel(self) -> None:
        for task in self._tasks:
            task.cancel()

    def _spawn(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    # In the core's threads

    def process(self, queue: int, chain: DescriptorChain) -> Keep:
        """Let a task handle the request."""
        self._running().call_soon_threadsafe(self._begin, queue, chain)
        return KEEP

    def driver_ready(self) -> None:
        """Wait for the device to be ready; a reset ends the wait, and so does the end."""
        done: Future[None] = Future()
        self._starting.add(done)  # before it is known whether a loop runs: `detach` looks here after it has said no
        try:
            self._running().call_soon_threadsafe(self._start, done)
            with contextlib.suppress(concurrent.futures.CancelledError):
                done.result()
        finally:
            self._starting.discard(done)

    def reset(self) -> None:
        """Cancel what is in progress, and tell the device; late if the loop is busy, but before the next driver comes."""
        if self._loop is None:
            return
        done = self._post(self._reset)
        if _ends_in_time(done):
            done.result()
        else:
            self._log.warning(f"{_busy()}: the device is reset once it turns to that")
            done.add_done_callback(self._tell_of_reset)

    def _tell_of_reset(self, done: Future[None]) -> None:
        try:
            done.result()
        except Exception:
            self._log.exception(f"{type(self._device).__name__}.reset failed")

    def write_config(self, offset: int, data: bytes) -> None:
        """Let the device take a write to its configuration space."""
        self._in_loop(lambda: self._device.write_config(offset, data))

    def object_fd(self, uuid: UUID) -> OwnedFd | None:
        """Let the device give an object: the fd is duplicated before the loop turns to anything else."""

        def give() -> OwnedFd | None:
            found = self._device.shared_object(uuid)
            return None if found is None else duplicated(found)

        return self._in_loop(give, close_late)

    def _running(self) -> asyncio.AbstractEventLoop:
        if self._loop is None:
            raise Disconnected("no event loop runs this device any more")
        return self._loop

    def _in_loop(self, function: Callable[[], T], given_up: Callable[[Future[T]], None] = lambda _: None) -> T:
        """Call a function in the event loop and wait for its end; raises what it does.

        If that takes too long it is not begun any more, and `given_up` gets what it may come to all the same.
        """
        done = self._post(function)
        if _ends_in_time(done):
            return done.result()
        done.cancel()
        given_up(done)
        raise DeadlineExpired(_busy())

    def _post(self, function: Callable[[], T]) -> Future[T]:
        """Have a function called in the event loop, behind all that was posted before."""
        done: Future[T] = Future()
        self._running().call_soon_threadsafe(_call, function, done)
        return done

    # In the event loop: nothing begins any more after `detach`

    def _start(self, done: Future[None]) -> None:
        if self._loop is None:
            return
        try:
            _chain(self._spawn(self._device.driver_ready()), done)
        except Exception as error:
            done.set_exception(error)

    def _begin(self, queue: int, chain: DescriptorChain) -> None:
        if self._loop is None:
            return
        self._spawn(self._handle(queue, chain)).add_done_callback(lambda _: self.complete(queue, chain))

    async def _handle(self, queue: int, chain: DescriptorChain) -> None:
        """Process a request; an exception fails it alone."""
        try:
            await self._device.process(queue, chain)
        except VhostUserError as error:
            self._log.warning(f"a request of queue {queue} failed: {error}")
        except Exception:
            self._log.exception(f"{type(self._device).__name__}.process failed for a request of queue {queue}")

    def _reset(self) -> None:
        self._cancel()
        self._device.reset()


def _ends_in_time(done: Future[T]) -> bool:
    """Whether the loop turns to something as soon as may be expected. A TimeoutError of the device's own is an end, too."""
    concurrent.futures.wait([done], LOOP_TIMEOUT)
    return done.done()


def _busy() -> str:
    return f"the event loop is busy for more than {LOOP_TIMEOUT:g} s"


def _call(function: Callable[[], T], done: Future[T]) -> None:
    if not done.set_running_or_notify_cancel():
        return
    try:
        done.set_result(function())
    except Exception as error:
        done.set_exception(error)


def _chain(task: asyncio.Task[None], done: Future[None]) -> None:
    """Let `done` become what the task does, unless nobody waits for it any more."""

    def copy(ended: asyncio.Task[None]) -> None:
        error = None if ended.cancelled() else ended.exception()
        if ended.cancelled() or done.cancelled():
            done.cancel()
        elif error:
            done.set_exception(error)
        else:
            done.set_result(None)

    task.add_done_callback(copy)
