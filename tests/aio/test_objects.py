"""Devices of coroutines that share objects."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from uuid import UUID, uuid4

import pytest

from vhostuser import Disconnected, LocalProtocolError, RequestFailed, SharedObjects
from vhostuser.aio import AsyncBackend, AsyncDevice, AsyncFrontend
from vhostuser.aio import device as aio_device
from vhostuser.testing import DEADLINE, sparse_file
from vhostuser.transport.fds import HasFileno, OwnedFd

from .loops import run, until


class Sharer(AsyncDevice):
    """Has the objects that the test gives it, by UUID."""

    queue_sizes = (16,)
    shared_objects = True

    def __init__(self, give: Callable[[UUID], int | HasFileno | None] | None = None) -> None:
        self.give = give
        self.files: dict[UUID, OwnedFd] = {}

    def shared_object(self, uuid: UUID) -> int | HasFileno | None:
        return self.give(uuid) if self.give else self.files.get(uuid)

    async def share(self, content: bytes) -> UUID:
        """Tell of a new memfd with this content."""
        uuid = uuid4()
        self.files[uuid] = fd = sparse_file(len(content))
        os.pwrite(fd.fileno(), content, 0)
        await self.objects.add(uuid)
        return uuid

    async def read(self, uuid: UUID) -> bytes | None:
        """What is in an object that is looked up; None if there is none."""
        fd = await self.objects.lookup(uuid)
        if fd is None:
            return None
        with fd:
            return os.pread(fd.fileno(), 64, 0)


@asynccontextmanager
async def sharing(table: SharedObjects | None) -> AsyncIterator[Sharer]:
    """A device, and a front-end with this table."""
    device = Sharer()
    ours, theirs = socket.socketpair()
    backend = AsyncBackend(device)
    task = asyncio.create_task(backend.serve_fd(theirs.detach()))
    try:
        async with await AsyncFrontend.over(ours, shared_objects=table):
            yield device
    finally:
        backend.stop()
        await task
        for fd in device.files.values():
            fd.close()


def test_an_object_is_added_looked_up_and_withdrawn() -> None:
    async def work() -> None:
        table = SharedObjects()
        async with sharing(table) as owner, sharing(table) as other:
            uuid = await owner.share(b"pixels")
            assert await other.read(uuid) == b"pixels"
            assert await owner.read(uuid) == b"pixels"
            assert await other.read(uuid4()) is None
            with pytest.raises(RequestFailed, match="SHARED_OBJECT_ADD"):
                await other.objects.add(uuid)
            with pytest.raises(RequestFailed, match="SHARED_OBJECT_REMOVE"):
                await other.objects.remove(uuid)
            await owner.objects.remove(uuid)
            assert await other.read(uuid) is None

    run(work())


def test_many_look_up_at_a_time_while_their_loop_goes_on() -> None:
    async def work() -> None:
        table = SharedObjects()
        async with sharing(table) as owner, sharing(table) as other:
            uuids = [await each.share(b"%d" % number) for number, each in enumerate((owner, other) * 5)]
            found = await asyncio.gather(*(each.read(uuid) for uuid in uuids for each in (owner, other)))
            assert found == [b"%d" % number for number in range(10) for _ in range(2)]

    run(work())


def test_a_device_that_fails_at_an_object_fails_that_alone(caplog: pytest.LogCaptureFixture) -> None:
    async def work() -> None:
        table = SharedObjects()
        async with sharing(table) as owner, sharing(table) as other:
            uuid = await owner.share(b"fine")
            for wrong in (lambda _: 1 // 0, lambda _: True, lambda _: None):
                owner.give = wrong
                assert await other.read(uuid) is None
            owner.give = None
            assert await other.read(uuid) == b"fine"

    run(work())


def test_a_file_may_be_closed_as_soon_as_the_loop_goes_on() -> None:
    async def work() -> None:
        table = SharedObjects()
        async with sharing(table) as owner, sharing(table) as other:

            def once(asked: UUID) -> OwnedFd:
                asyncio.get_running_loop().call_soon(owner.files[asked].close)
                return owner.files[asked]

            uuid = await owner.share(b"brief")
            owner.give = once
            assert await other.read(uuid) == b"brief"
            await until(lambda: owner.files[uuid].closed, "it is closed")

    run(work())


def test_a_lookup_that_is_given_up_leaves_no_fd(monkeypatch: pytest.MonkeyPatch) -> None:
    async def work() -> None:
        table = SharedObjects()
        begun, go_on = threading.Event(), threading.Event()
        async with sharing(table) as owner, sharing(table) as other:
            uuid = await owner.share(b"late")

            def slowly() -> OwnedFd | None:
                begun.set()
                assert go_on.wait(DEADLINE)
                return lookup(uuid)

            lookup = other.objects._objects.lookup
            monkeypatch.setattr(other.objects._objects, "lookup", lambda _: slowly())
            task = asyncio.create_task(other.objects.lookup(uuid))
            await until(begun.is_set, "it is under way")
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            go_on.set()
            monkeypatch.undo()
            assert await other.read(uuid) == b"late"

    run(work())


def test_a_loop_that_is_busy_gives_nothing_and_closes_what_comes_late(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aio_device, "LOOP_TIMEOUT", 0.05)

    async def work() -> None:
        table = SharedObjects()
        async with sharing(table) as owner, sharing(table) as other:
            uuid = await owner.share(b"slow")

            def slowly(asked: UUID) -> OwnedFd:
                time.sleep(0.2)  # what no coroutine may do
                return owner.files[asked]

            owner.give = slowly
            assert await other.read(uuid) is None
            owner.give = None
            assert await other.read(uuid) == b"slow"

    run(work())


def test_without_the_feature_and_without_a_front_end_it_says_so() -> None:
    async def work() -> None:
        with pytest.raises(Disconnected, match="no front-end"):
            await Sharer().objects.lookup(uuid4())
        async with sharing(None) as device:
            with pytest.raises(LocalProtocolError, match="SHARED_OBJECT"):
                await device.objects.add(uuid4())

    run(work())
