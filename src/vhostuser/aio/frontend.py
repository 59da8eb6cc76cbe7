"""Drive a back-end with coroutines."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Self, TypeVar, Unpack

from ..counters import Counters
from ..frontend import Frontend, FrontendOptions
from ..shared_region import SharedRegion
from ..transport.listen import connect
from .queue import AsyncQueue
from .worker import Worker

T = TypeVar("T")


class AsyncFrontend:
    """A front-end connected to one back-end: a `Frontend` in a thread of its own, which answers the back-end at all times.

    Methods raise what those of `Frontend` do, and may be called at any time, also while others wait: each has its turn. One
    that is cancelled before its turn is not begun; after that it is done to the end, and only its result is lost.
    """

    def __init__(self, worker: Worker) -> None:
        self._worker = worker

    @classmethod
    async def connect(cls, path: str | os.PathLike[str], *, wait: float = 0.0, **options: Unpack[FrontendOptions]) -> Self:
        """Connect to a back-end that listens on `path`, trying for `wait` seconds; options as for `Frontend`."""
        worker = Worker()
        return await cls._made(worker, lambda: connect(path, wait=wait, check=worker.check), options)

    @classmethod
    async def over(cls, sock: socket.socket, **options: Unpack[FrontendOptions]) -> Self:
        """Drive the back-end at the other end of a connected socket, which belongs to this front-end now."""
        return await cls._made(Worker(sock), lambda: sock, options)

    @classmethod
    async def _made(cls, worker: Worker, reach: Callable[[], socket.socket], options: FrontendOptions) -> Self:
        try:
            await asyncio.wrap_future(worker.run(lambda: worker.connect(reach, lambda sock: Frontend(sock, **options))))
        except BaseException:
            worker.stop()
            raise
        return cls(worker)

    # What was agreed

    @property
    def features(self) -> frozenset[str]:
        """Names of the virtio features in use; a bit of the device type is `BIT_n`."""
        return self._worker.frontend.features

    @property
    def protocol_features(self) -> frozenset[str]:
        """Names of the protocol features in use."""
        return self._worker.frontend.protocol_features

    @property
    def queue_count(self) -> int:
        """How many queues the back-end has."""
        return self._worker.frontend.queue_count

    @property
    def shm(self) -> Mapping[int, SharedRegion]:
        """The shared memory regions by shmid. Reading and writing them waits for nothing."""
        return self._worker.frontend.shm

    @property
    def counters(self) -> Counters:
        """What this side has counted so far."""
        return self._worker.frontend.counters

    # Requests

    async def run(self, function: Callable[[Frontend], T]) -> T:
        """Call a function with the blocking core, in its thread: for what has no coroutine here, like `config`.

        A queue that is started so is not one of coroutines. After `core.reconnect(...)` queues are to be started again: what
        waits in those of before ends with Disconnected, and is not done again.
        """
        return await asyncio.wrap_future(self._worker.run(lambda: function(self._worker.frontend)))

    async def share_memory(self, size: int) -> None:
        """Share `size` bytes of fresh memory, whole pages, with the back-end. Once, before any queue."""
        await self.run(lambda core: core.share_memory(size))

    async def start_queue(self, index: int, *, size: int = 256) -> AsyncQueue:
        """Set up queue `index` with `size` descriptors, start and enable it. Needs `share_memory`."""
        flights = await asyncio.wrap_future(self._worker.run(lambda: self._worker.start_queue(index, size)))
        return AsyncQueue(index, flights, self._worker)

    async def stop_queue(self, index: int) -> int:
        """Stop a queue; the index of the next request that the back-end would have taken."""
        return await asyncio.wrap_future(self._worker.run(lambda: self._worker.stop_queue(index)))

    async def reset(self) -> None:
        """Reset the device: its queues are gone, and every mapping."""
        await asyncio.wrap_future(self._worker.run(self._worker.reset))

    # The end

    async def close(self) -> None:
        """End the connection, and whatever waits in it; every mapping, queue and shared byte is given back."""
        self._worker.stop()
        await asyncio.to_thread(self._worker.join)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
