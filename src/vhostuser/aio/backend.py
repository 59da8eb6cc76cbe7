"""Serve an AsyncDevice to a front-end."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future
from types import MappingProxyType
from typing import Final, Unpack

from ..backend import Backend, BackendOptions
from ..counters import Counters
from ..device_check import check_attributes, check_kind
from .device import AsyncDevice, Bridge
from .mapper import Mapper
from .objects import AsyncObjects
from .shared_memory import AsyncSharedMemory

NAME: Final = "vhost-user back-end"


class AsyncBackend:
    """A back-end: one AsyncDevice, served to one front-end at a time. Options as for `Backend`.

    The front-end is served in a thread, so that it is answered however busy the event loop is.
    """

    def __init__(self, device: AsyncDevice, **options: Unpack[BackendOptions]) -> None:
        check_kind(device, AsyncDevice)
        check_attributes(device)
        self.device = device
        self._bridge, self._mapper = Bridge(device), Mapper()
        self._backend = Backend(self._bridge, **options)
        device.objects = AsyncObjects(self._bridge.objects, self._mapper)
        regions = self._bridge.shm.items()
        device.shm = MappingProxyType({shmid: AsyncSharedMemory(region, self._mapper) for shmid, region in regions})

    @property
    def counters(self) -> Counters:
        """What this side has counted so far."""
        return self._backend.counters

    async def serve(self, path: str | os.PathLike[str], *, once: bool = False) -> None:
        """Listen on `path` and serve one front-end after the other until `stop`, or only the first if `once`.

        Raises what `Backend.serve` does. To cancel this is to stop it. When it ends nothing of the device runs any more.
        """
        await self._serve(lambda: self._backend.serve(path, once=once))

    async def serve_fd(self, fd: int, *, once: bool = False) -> None:
        """Serve the front-end at the other end of a connected socket, or those that come to a listening one, as `serve`.

        The fd belongs to this call.
        """
        await self._serve(lambda: self._backend.serve_fd(fd, once=once))

    def stop(self) -> None:
        """End `serve` or `serve_fd`, from any thread or a signal handler; for good."""
        self._backend.stop()

    async def _serve(self, serve: Callable[[], None]) -> None:
        self._bridge.attach(asyncio.get_running_loop())
        self._mapper.start()
        try:
            await self._until_the_end(serve)
        finally:
            self._mapper.stop()
            await self._bridge.detach()

    async def _until_the_end(self, serve: Callable[[], None]) -> None:
        """Serve in a thread, and do not leave before that has ended. A cancellation stops it first."""
        done: Future[None] = Future()
        thread = threading.Thread(target=_call, args=(serve, done), name=NAME, daemon=True)
        thread.start()
        served = asyncio.wrap_future(done)
        cancelled = False
        while not served.done():
            try:
                await asyncio.wait([served])
            except asyncio.CancelledError:
                cancelled = True
                self.stop()
        thread.join()  # it has nothing left to do
        if cancelled:
            served.exception()
            raise asyncio.CancelledError
        served.result()


def _call(function: Callable[[], None], done: Future[None]) -> None:
    """Call a function, and tell how it ended."""
    done.set_running_or_notify_cancel()
    try:
        function()
    except BaseException as error:
        done.set_exception(error)
    else:
        done.set_result(None)
