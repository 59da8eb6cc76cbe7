"""The back-end's side of shared memory as coroutines: a thread waits for the front-end's answer, not the event loop."""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import RequestFailed
from ..protocol.regions import Mapping
from ..shared_memory import File, MapRequest, SharedMemory
from ..transport.fds import OwnedFd, close_all, duplicated
from .mapper import Mapper


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
        fd = duplicated(file)

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
            fds.extend(duplicated(request.file) for request in requests)
        except BaseException:
            close_all(fds)
            raise
        rows = [request._replace(file=fd) for request, fd in zip(requests, fds, strict=True)]
        return await self._mapper.run(lambda: self._region.map_many(rows), fds)

    async def unmap_many(self, ranges: Sequence[tuple[int, int]]) -> list[RequestFailed | None]:
        """`unmap` each (shm_offset, len), with all requests under way at once: a result each, as `map_many`."""
        rows = list(ranges)
        return await self._mapper.run(lambda: self._region.unmap_many(rows))
