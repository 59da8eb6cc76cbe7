"""Devices that share objects, and front-ends of one table, each waited in by a thread of its own or by nobody."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from typing import NamedTuple, TypeVar
from uuid import UUID, uuid4

from vhostuser import Device, Frontend, SharedObjects
from vhostuser.errors import VhostUserError
from vhostuser.testing import DEADLINE, joined
from vhostuser.testing.files import sparse_file
from vhostuser.transport.fds import HasFileno, OwnedFd

T = TypeVar("T")


class Sharer(Device):
    """Has the objects that the test gives it, by UUID."""

    queue_sizes = (16,)
    shared_objects = True

    def __init__(self, give: Callable[[UUID], int | HasFileno | None] | None = None) -> None:
        self.give = give
        self.files: dict[UUID, OwnedFd] = {}
        self.asked: list[UUID] = []

    def shared_object(self, uuid: UUID) -> int | HasFileno | None:
        self.asked.append(uuid)
        return self.give(uuid) if self.give else self.files.get(uuid)


class Sharing(NamedTuple):
    """One device, and its front-end."""

    device: Sharer
    frontend: Frontend

    def share(self, content: bytes) -> UUID:
        """Tell of a new memfd with this content."""
        uuid = uuid4()
        self.device.files[uuid] = fd = sparse_file(len(content))
        os.pwrite(fd.fileno(), content, 0)
        self.device.objects.add(uuid)
        return uuid

    def read(self, uuid: UUID) -> bytes | None:
        """What is in an object that is looked up; None if there is none."""
        fd = self.device.objects.lookup(uuid)
        if fd is None:
            return None
        with fd:
            assert not os.get_inheritable(fd.fileno())
            return os.pread(fd.fileno(), 64, 0)


@contextlib.contextmanager
def sharing(table: SharedObjects, *, served: bool = True, reply_timeout: float = DEADLINE) -> Iterator[Sharing]:
    """A device and its front-end, which a thread waits in if it is `served`."""
    device = Sharer()
    try:
        with (
            joined(device, shared_objects=table, reply_timeout=reply_timeout) as (frontend, _),
            contextlib.ExitStack() as ends,
        ):
            if served:
                ends.enter_context(waited_in(frontend))
            yield Sharing(device, frontend)
    finally:
        for fd in device.files.values():
            fd.close()


def during(call: Callable[[], T], frontend: Frontend) -> T:
    """The result of a call in another thread, while this one waits in a front-end."""
    found: list[T] = []
    thread = threading.Thread(target=lambda: found.append(call()))
    thread.start()
    while thread.is_alive():
        frontend.serve(0.01)
    thread.join()
    return found[0]


@contextlib.contextmanager
def waited_in(frontend: Frontend) -> Iterator[None]:
    """A thread waits in this front-end until the block ends, which closes it."""

    def serve() -> None:
        with contextlib.suppress(VhostUserError):
            frontend.serve()

    thread = threading.Thread(target=serve, name="front-end")
    thread.start()
    try:
        yield
    finally:
        frontend.close()
        thread.join(DEADLINE)
        assert not thread.is_alive()
