"""The plain way of a front-end answers what is entirely right, and hands on everything else untouched."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable, Iterator
from typing import Any

import pytest

from vhostuser.memory import mapping
from vhostuser.memory.core import WindowCore
from vhostuser.plain import server
from vhostuser.plain.frames import EXPIRED, NOT_TAKEN, TAKE
from vhostuser.plain.server import Server
from vhostuser.protocol.framing import Frame, reply_frame
from vhostuser.protocol.numbers import BackendRequest
from vhostuser.protocol.payloads import U64, Mmap
from vhostuser.protocol.regions import MappingTable, Quota
from vhostuser.testing import DEADLINE, memory_file

from .plain_frames import asking

PAGE = 4096
PAGES = 4
MAP, UNMAP = BackendRequest.SHMEM_MAP, BackendRequest.SHMEM_UNMAP
NO_RIGHTS = (socket.SOL_SOCKET, socket.SCM_RIGHTS + 1)


class Rig:
    """A server with one region, 3, and the back-end's end of its channel."""

    def __init__(self) -> None:
        self.ours, self.theirs = socket.socketpair()
        self.table, self.quota = MappingTable(), Quota("device", 2)
        self.base = mapping.reserve(PAGES * PAGE)
        self.windows = {3: WindowCore(self.base, PAGES * PAGE, self.table, self.quota, False)}
        self.server = Server(self.ours, self.windows, DEADLINE)
        self.file = memory_file(PAGES)

    def send(self, data: bytes, fds: int = 0) -> None:
        socket.send_fds(self.theirs, [data], [self.file.fileno()] * fds)

    def run(self) -> int:
        """Let the server handle what is there: one message."""
        return self.server.run((), 0.0)

    def answers(self) -> bytes:
        try:
            return self.theirs.recv(4096, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return b""

    @property
    def counts(self) -> tuple[int, int, int, int]:
        return self.server.messages, self.server.sent_acks, self.server.maps, self.server.unmaps

    def left(self) -> tuple[bytes, int, bool]:
        """What the server hands on: bytes, how many fds, and whether some were lost."""
        data, fds, truncated = self.server.take()
        for fd in fds:
            assert os.fstat(fd).st_ino == os.fstat(self.file.fileno()).st_ino
            os.close(fd)
        return data, len(fds), truncated

    def close(self) -> None:
        mapping.release(self.base, PAGES * PAGE)
        self.ours.close()
        self.theirs.close()
        self.file.close()


@pytest.fixture
def rig() -> Iterator[Rig]:
    made = Rig()
    yield made
    made.close()


def yes(request: int) -> bytes:
    frame: Frame[int] = reply_frame(request, U64(0))
    return frame.pack()


GOOD = Mmap(3, PAGE, 2 * PAGE, PAGE, 1)


def test_what_is_right_is_done_and_acknowledged(rig: Rig) -> None:
    rig.send(asking(MAP, GOOD), 1)
    assert (rig.run(), rig.answers(), rig.counts) == (EXPIRED, yes(MAP), (1, 1, 1, 0))
    assert [each[:] for each in rig.table] == [(2 * PAGE, PAGE, PAGE, True)]
    assert mapping.copy_from(rig.base + 2 * PAGE, 2) == b"\1\1"
    rig.send(asking(UNMAP, GOOD))
    assert (rig.run(), rig.answers(), rig.counts) == (EXPIRED, yes(UNMAP), (2, 2, 1, 1))
    assert (len(rig.table), rig.quota.used) == (0, 0)
    assert rig.left() == (b"", 0, False)


def test_an_unmap_is_known_by_its_region_and_range_alone(rig: Rig) -> None:
    rig.send(asking(MAP, GOOD), 1)
    rig.run()
    rig.send(asking(UNMAP, Mmap(3, 7, 2 * PAGE, PAGE, 1 << 40)))
    assert (rig.run(), rig.answers()) == (EXPIRED, yes(MAP) + yes(UNMAP))


HEADERS = {
    "no need_reply": (int(MAP), 0x1, 40),
    "a reply": (int(MAP), 0xD, 40),
    "version 0": (int(MAP), 0x8, 40),
    "a reserved flag": (int(MAP), 0x19, 40),
    "a shorter body": (int(MAP), 0x9, 39),
    "a longer body": (int(MAP), 0x9, 41),
    "another request": (11, 0x9, 40),
}


@pytest.mark.parametrize("fds", [0, 1])
@pytest.mark.parametrize("name", HEADERS)
def test_another_header_is_handed_on_before_anything_else_is_read(rig: Rig, name: str, fds: int) -> None:
    header = b"".join(number.to_bytes(4, "little") for number in HEADERS[name])
    rig.send(header + GOOD.pack(), fds)
    assert (rig.run(), rig.left(), rig.answers()) == (TAKE, (header, fds, False), b"")
    assert rig.ours.recv(4096) == GOOD.pack()
    assert (len(rig.table), rig.counts) == (0, (0, 0, 0, 0))


@pytest.mark.parametrize(("request_", "fds"), [(MAP, 0), (MAP, 2), (MAP, 3), (UNMAP, 1), (UNMAP, 2)])
def test_a_number_of_fds_that_is_not_right_is_handed_on_with_all_of_them(rig: Rig, request_: int, fds: int) -> None:
    data = asking(request_, GOOD)
    rig.send(data, fds)
    assert (rig.run(), rig.left(), rig.answers()) == (TAKE, (data[:12], fds, False), b"")
    assert (len(rig.table), rig.counts) == (0, (0, 0, 0, 0))


@pytest.mark.parametrize(
    "body",
    [
        Mmap(2, 0, 0, PAGE),
        Mmap(3, 0, PAGES * PAGE, PAGE),
        Mmap(3, 0, 0, 0),
        Mmap(3, 0, 1, PAGE),
        Mmap(3, 0, 0, PAGE, 2),
        Mmap(3, PAGES * PAGE, 0, PAGE),
    ],
)
def test_a_map_that_is_not_right_is_handed_on_as_it_came(rig: Rig, body: Mmap) -> None:
    rig.send(asking(MAP, body), 1)
    assert (rig.run(), rig.left(), rig.answers()) == (TAKE, (asking(MAP, body), 1, False), b"")
    assert (len(rig.table), rig.quota.used, rig.counts) == (0, 0, (0, 0, 0, 0))


@pytest.mark.parametrize("body", [Mmap(2, 0, 2 * PAGE, PAGE), Mmap(3, 0, PAGE, PAGE), Mmap(3, 0, 2 * PAGE, 2 * PAGE)])
def test_an_unmap_that_is_not_right_is_handed_on_as_it_came(rig: Rig, body: Mmap) -> None:
    rig.send(asking(MAP, GOOD), 1)
    assert (rig.run(), rig.answers()) == (EXPIRED, yes(MAP))
    rig.send(asking(UNMAP, body))
    assert (rig.run(), rig.left(), rig.answers()) == (TAKE, (asking(UNMAP, body), 0, False), b"")
    assert (len(rig.table), rig.counts) == (1, (1, 1, 1, 0))


@pytest.mark.parametrize("request_", [MAP, UNMAP])
@pytest.mark.parametrize("size", [0, 1, 12, 13, 51])
def test_a_part_of_a_message_is_handed_on(rig: Rig, request_: int, size: int) -> None:
    data = asking(request_, GOOD)[:size]
    if data:
        rig.send(data, int(request_ is MAP))
        assert (rig.run(), rig.left()) == (TAKE, (data, int(request_ is MAP), False))
    else:
        assert rig.run() == EXPIRED
    assert (rig.answers(), rig.counts) == (b"", (0, 0, 0, 0))


def test_the_end_of_the_channel_is_handed_on(rig: Rig) -> None:
    rig.theirs.close()
    assert (rig.run(), rig.left()) == (TAKE, (b"", 0, False))


def test_fds_with_the_payload_are_lost_and_said_to_be(rig: Rig) -> None:
    data = asking(MAP, GOOD)
    rig.send(data[:12], 1)
    rig.send(data[12:], 1)
    assert rig.run() == TAKE
    assert rig.left() == (data[:12], 1, True)
    assert (len(rig.table), rig.answers()) == (0, b"")


class Scripted(socket.socket):
    """A socket whose next `recvmsg` and `send` are given."""

    messages: list[tuple[bytes, list[tuple[int, int, bytes]], int]]
    sent: int | OSError | None = None
    sent_later: OSError | None = None
    """What `sendmsg` says, if not the kernel does."""

    def recvmsg(
        self, bufsize: int, ancbufsize: int = 0, flags: int = 0
    ) -> tuple[bytes, list[tuple[int, int, bytes]], int, None]:
        return (*self.messages.pop(0), None)

    def send(self, data: object, flags: int = 0) -> int:
        if isinstance(self.sent, OSError):
            raise self.sent
        return 20 if self.sent is None else self.sent

    def sendmsg(self, buffers: Iterable[Any], *rest: Any) -> int:
        if self.sent_later:
            raise self.sent_later
        return super().sendmsg(buffers, *rest)


@pytest.fixture
def scripted(rig: Rig) -> Scripted:
    """The rig's server reads from this one, once something is there to be read."""
    made = Scripted(fileno=os.dup(rig.ours.fileno()))
    rig.ours.close()
    rig.ours = made
    rig.server = Server(made, rig.windows, DEADLINE)
    rig.send(b"x")
    return made


RIGHTS = (socket.SOL_SOCKET, socket.SCM_RIGHTS)


@pytest.mark.parametrize("request_", [MAP, UNMAP])
def test_lost_fds_are_told_of_whatever_else_is_right(rig: Rig, scripted: Scripted, request_: int) -> None:
    data = asking(request_, GOOD)
    control = [(*RIGHTS, os.dup(rig.file.fileno()).to_bytes(4, "little"))] if request_ == MAP else []
    scripted.messages = [(data[:12], control, int(socket.MSG_CTRUNC)), (data[12:], [], 0)]
    assert (rig.run(), rig.left()) == (TAKE, (data[:12], len(control), True))


def test_what_is_no_fd_is_handed_on_as_no_fd(rig: Rig, scripted: Scripted) -> None:
    data = asking(MAP, GOOD)
    for control in ([(*NO_RIGHTS, bytes(4))], [(socket.SOL_SOCKET + 1, socket.SCM_RIGHTS, bytes(4))]):
        scripted.messages = [(data[:12], control, 0), (data[12:], [], 0)]
        assert (rig.run(), rig.left()) == (TAKE, (data[:12], 0, False))


def test_fds_in_two_pieces_of_ancillary_data_are_all_handed_on(rig: Rig, scripted: Scripted) -> None:
    data = asking(MAP, GOOD)
    control = [(*RIGHTS, os.dup(rig.file.fileno()).to_bytes(4, "little")) for _ in range(2)]
    scripted.messages = [(data[:12], control, 0), (data[12:], [], 0)]
    assert (rig.run(), rig.left()) == (TAKE, (data[:12], 2, False))


def a_map_is_there(rig: Rig, scripted: Scripted) -> None:
    """The server will read a SHMEM_MAP that is right."""
    control = [(*RIGHTS, os.dup(rig.file.fileno()).to_bytes(4, "little"))]
    data = asking(MAP, GOOD)
    scripted.messages = [(data[:12], control, 0), (data[12:], [], 0)]


@pytest.mark.parametrize("sent", [20, 19, 1, 0, BlockingIOError(11, "full"), OSError(105, "no buffers")])
def test_an_acknowledgement_that_is_taken_in_part_goes_on_at_its_byte(
    rig: Rig, scripted: Scripted, sent: int | OSError
) -> None:
    a_map_is_there(rig, scripted)
    scripted.sent = sent
    assert (rig.run(), rig.left(), rig.counts) == (EXPIRED, (b"", 0, False), (1, 1, 1, 0))
    assert rig.answers() == yes(MAP)[sent if isinstance(sent, int) else 0 :]


@pytest.mark.parametrize(
    ("error", "result"),
    [
        (BlockingIOError(11, "full"), NOT_TAKEN),
        (OSError(105, "no buffers"), NOT_TAKEN),
        (OSError(1, "not permitted"), NOT_TAKEN),
        (BrokenPipeError(32, "gone"), TAKE),
        (ConnectionResetError(104, "gone"), TAKE),
    ],
)
def test_an_acknowledgement_that_is_not_taken_ends_the_plain_way(
    rig: Rig, scripted: Scripted, monkeypatch: pytest.MonkeyPatch, error: OSError, result: int
) -> None:
    a_map_is_there(rig, scripted)
    scripted.sent = scripted.sent_later = error
    monkeypatch.setattr(rig.server, "_seconds", 0.02)
    if result == NOT_TAKEN:
        monkeypatch.setattr(server, "wait", lambda *_: [])
    assert (rig.run(), rig.left(), rig.counts) == (result, (b"", 0, False), (1, 1, 1, 0))
    assert rig.server.unfinished is (result == NOT_TAKEN)
    assert len(rig.table) == 1


# Whom it waits for


def test_who_is_waited_for_comes_after_what_was_asked_before(rig: Rig) -> None:
    one, other = os.pipe()
    try:
        os.write(other, b"x")
        rig.send(asking(MAP, GOOD), 1)
        assert rig.server.run((one,), 0.0) == one
        assert rig.answers() == yes(MAP)
        assert rig.server.run((one,), 5.0) == one
        os.read(one, 1)
        assert rig.server.run((one,), 0.0) == EXPIRED
        rig.send(asking(UNMAP, GOOD))
        assert rig.server.run((one,), 0.0) == EXPIRED
        assert rig.answers() == yes(UNMAP)
        assert rig.server.run((), 0.01) == EXPIRED
    finally:
        os.close(one)
        os.close(other)
