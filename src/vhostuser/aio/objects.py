"""A device's way to the front-end's table of shared objects as coroutines."""

from __future__ import annotations

from concurrent.futures import Future
from uuid import UUID

from ..objects import Objects
from ..transport.fds import OwnedFd
from .mapper import Mapper


class AsyncObjects:
    """The `Objects` of an AsyncDevice, whose errors it has. A call that is cancelled is not taken back."""

    def __init__(self, objects: Objects, mapper: Mapper) -> None:
        self._objects, self._mapper = objects, mapper

    async def add(self, uuid: UUID) -> None:
        """Tell of an object, which `AsyncDevice.shared_object` is asked for from now on ("SHARED_OBJECT_ADD")."""
        await self._mapper.run(lambda: self._objects.add(uuid))

    async def remove(self, uuid: UUID) -> None:
        """Withdraw an object that this device has added ("SHARED_OBJECT_REMOVE")."""
        await self._mapper.run(lambda: self._objects.remove(uuid))

    async def lookup(self, uuid: UUID) -> OwnedFd | None:
        """An fd of the object, which is yours; None if there is no such object to be had ("SHARED_OBJECT_LOOKUP")."""
        return await self._mapper.run(lambda: self._objects.lookup(uuid), given_up=close_late)


def close_late(future: Future[OwnedFd | None]) -> None:
    """Close an fd that comes when nobody waits for it any more."""

    def close(done: Future[OwnedFd | None]) -> None:
        if not done.cancelled() and not done.exception() and (fd := done.result()):
            fd.close()

    future.add_done_callback(close)
