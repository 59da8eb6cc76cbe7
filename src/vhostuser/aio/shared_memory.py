"""The back-end's side of shared memory as coroutines: a thread waits for the front-end's answer, not the event loop."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Final, TypeVar

from ..errors import Disconnected, RequestFailed
from ..protocol.regions import Mapping
from ..shared_memory import File, MapRequest, SharedMemory
from ..transport.fds import OwnedFd, close_all, fileno_of

NAME: Final = "vhost-user maps"
T = TypeVar("T")


class Mapper:
    """The thread in which the requests of a device to its front-end are made: one after the other, as they are answered."""

    def __init__(self) -> None:
        self._executor: Executor | None = None

    def start(self) -> None:
        """Take requests. The thread begins with the first."""
        self._executor = ThreadPoolExecutor(1, NAME)

    def stop(self) -> None:
        """Take no more. The front-end must be gone, so that those that wait fail at once."""
        executor, self._executor = self._executor, None
        if executor:
            executor.shutdown(wait=False)

    async def run(self, function: Callable[[], T], fds: Sequence[OwnedFd] = ()) -> T:
        """Call a function there. `fds` are closed when it has ended, or will not begin."""
        if self._executor is None:
            close_all(fds)
            raise Disconnected("no front-end is connected")
        future = self._executor.submit(function)
        future.add_done_callback(lambda _: close_all(fds))
        return await asyncio.wrap_future(future)


class AsyncSharedMemory:
    """One shared memory region of an AsyncDevice: a `SharedMemory`, whose errors it has.

    A call that is cancelled is not taken back: `mappings` says what has become of it.
    """

    def __init__(self, region: SharedMemory, mapper: Mapper) -> None:
        self._region, self._mapper = region, mapper
        self.shmid, self.size = region.shmid, region.size

    @property
    def mappings(self) -> tuple[Mapping, ...]:
        """What is mapped now, in order of its offset."""
        return self._region.mappings

    async def map(self, file: File, *, shm_offset: int, len: int, fd_offset: int = 0, writable: bool = False) -> None:
        """Show `len` bytes of `file`, from `fd_offset` on, at `shm_offset` of the region. Returns when they are there.

        The file stays yours; close it when you like, also after a cancellation.
        """
        fd = OwnedFd(os.dup(fileno_of(file)))

        def work() -> None:
            self._region.map(fd, shm_offset=shm_offset, len=len, fd_offset=fd_offset, writable=writable)

        await self._mapper.run(work, [fd])

    async def unmap(self, *, shm_offset: int, len: int) -> None:
        """Take one whole mapping away."""
        await self._mapper.run(lambda: self._region.unmap(shm_offset=shm_offset, len=len))

    async def map_many(self, requests: Sequence[MapRequest]) -> list[RequestFailed | None]:
        """`map` each, with all requests under way at once: a result each, None for done or the RequestFailed."""
        fds: list[OwnedFd] = []
        try:
            fds.extend(OwnedFd(os.dup(fileno_of(request.file))) for request in requests)
        except BaseException:
            close_all(fds)
            raise
        rows = [request._replace(file=fd) for request, fd in zip(requests, fds, strict=True)]
        return await self._mapper.run(lambda: self._region.map_many(rows), fds)

    async def unmap_many(self, ranges: Sequence[tuple[int, int]]) -> list[RequestFailed | None]:
        """`unmap` each (shm_offset, len), with all requests under way at once: a result each, as `map_many`."""
        rows = list(ranges)
        return await self._mapper.run(lambda: self._region.unmap_many(rows))
