"""The proxy passes on what came: the same bytes, cut and joined as they may be, and the same fds at the same message."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from itertools import pairwise

import pytest

from vhostuser.protocol.framing import Frame
from vhostuser.protocol.numbers import BackendRequest, FrontendRequest
from vhostuser.protocol.payloads import U64, Mmap, VringState
from vhostuser.protocol.rules import Channel
from vhostuser.protocol.state import Role
from vhostuser.testing import Wire, memory_file, message, sparse_file
from vhostuser.trace.event import Remarkable
from vhostuser.transport.fds import OwnedFd, close_all

from .between import Between

Q, B = FrontendRequest, BackendRequest
NUM = message(Q.SET_VRING_NUM, VringState(0, 64), flags=9)
KICK = message(Q.SET_VRING_KICK, U64(0))
FEATURES = message(Q.GET_FEATURES)
MAP = message(B.SHMEM_MAP, Mmap(0, 0, 0, 4096), flags=9)
LARGEST = message(77, bytes(range(256)) * 16)
SENT = {"none": FEATURES, "number": NUM, "map": MAP, "largest": LARGEST, "unknown": message(0xFFFFFFFF, b"?")}


def inodes(fds: Sequence[OwnedFd]) -> list[int]:
    return [os.fstat(fd.fileno()).st_ino for fd in fds]


def took(wire: Wire) -> tuple[bytes, list[int]]:
    """The bytes of the next message and the inodes of its fds, which are closed."""
    frame: Frame[OwnedFd] = wire.receive()
    try:
        return message(frame.request, frame.payload, flags=frame.flags), inodes(frame.fds)
    finally:
        close_all(frame.fds)


def ends(between: Between, sender: Role) -> tuple[Wire, Wire]:
    """Where that side sends, and where it arrives."""
    return (between.front, between.back) if sender is Role.FRONTEND else (between.back, between.front)


@pytest.mark.parametrize("sender", Role)
@pytest.mark.parametrize("data", SENT.values(), ids=SENT)
@pytest.mark.parametrize("step", [1, 5, 12, 13, 5000])
def test_the_same_bytes_arrive_however_they_are_cut(sender: Role, data: bytes, step: int) -> None:
    with Between() as between:
        here, there = ends(between, sender)
        for start in range(0, len(data), max(step, len(data) // 64)):
            here.send(data[start : start + max(step, len(data) // 64)])
        assert took(there) == (data, [])
        between.settle()
        (told,) = between.messages
        assert (told.data, told.sender, told.channel, told.whole) == (data, sender, Channel.FRONTEND, True)


@pytest.mark.parametrize("sender", Role)
@pytest.mark.parametrize("count", [1, 2, 8, 252, 253])
@pytest.mark.parametrize("places", [[], [1], [11], [12], [13], [1, 11, 12], [*range(1, 20)]], ids=str)
def test_fds_arrive_with_their_message_and_are_described(sender: Role, count: int, places: list[int]) -> None:
    with Between() as between, memory_file() as one, sparse_file(8192) as other:
        here, there = ends(between, sender)
        fds = ([one, other] * count)[:count]
        for start, end in pairwise([0, *places, len(KICK)]):
            here.send(KICK[start:end], () if start else fds)
        assert took(there) == (KICK, inodes(fds))
        between.settle()
        (told,) = between.messages
        assert [(note.kind, note.ino, note.size) for note in told.fds] == [
            ("memfd", os.fstat(fd.fileno()).st_ino, os.fstat(fd.fileno()).st_size) for fd in fds
        ]
        assert told.fds[0].seals == ("shrink",)


@pytest.mark.parametrize("sender", Role)
@pytest.mark.parametrize("count", [2, 3, 64])
def test_w10_messages_in_one_go_stay_messages(sender: Role, count: int) -> None:
    with Between() as between:
        here, there = ends(between, sender)
        here.send(NUM * count + KICK[:15])
        assert [took(there) for _ in range(count)] == [(NUM, [])] * count
        here.send(KICK[15:])
        assert took(there) == (KICK, [])
        between.settle()
        assert [told.data for told in between.messages] == [NUM] * count + [KICK]


def test_fds_of_neighbours_are_never_mixed() -> None:
    """All of it lies in the socket before the proxy reads the first byte."""
    with Between(started=False) as between, memory_file() as one, memory_file() as two, memory_file() as three:
        sent = [(FEATURES, []), (KICK, [one]), (NUM, []), (KICK, [two, three]), (KICK, []), (FEATURES, [three])]
        for data, fds in sent:
            between.front.send(data, fds)
        between.start()
        assert [took(between.back) for _ in sent] == [(data, inodes(fds)) for data, fds in sent]
        between.settle()
        assert [len(told.fds) for told in between.messages] == [0, 1, 0, 2, 0, 1]


@pytest.mark.parametrize("at", [3, 12, 15])
def test_w12_fds_behind_the_first_byte_are_found_where_they_are_without_a_proxy(at: int) -> None:
    """Somebody who minds that can see it."""
    plain, other = map(Wire, socket.socketpair())
    with plain, other, Between(started=False) as between, memory_file() as file:
        for wire in (plain, between.front):
            wire.send(KICK[:at])
            wire.send(KICK[at:], [file])
        between.start()
        between.settle()
        for size in (12, len(KICK) - 12):
            assert stream(between.back, size) == stream(other, size)


def test_half_a_message_does_not_wait_for_the_rest() -> None:
    with Between() as between:
        for end in range(1, len(NUM)):
            between.front.send(NUM[end - 1 : end])
            assert between.back.socket.recv(100) == NUM[end - 1 : end]
        between.settle()
        assert between.messages == []


def test_an_fd_with_less_than_a_header_waits_for_it_only_a_moment() -> None:
    """The header would say whether it is the socket of the back-end channel."""
    with Between() as between:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            data = message(Q.SET_BACKEND_REQ_FD)
            between.front.send(data[:7], [theirs])
            _, control, _, _ = between.back.socket.recvmsg(7, 1024)
            (fd,) = memoryview(control[0][2]).cast("i")
            with OwnedFd(fd):
                assert os.fstat(fd).st_ino == os.fstat(theirs.fileno()).st_ino
            between.front.send(data[7:])
            assert between.back.socket.recv(100) == data[7:]
            between.settle()
            assert "had to go on before" in between.remarks(Remarkable.LOST)[0]


# The back-end channel


def opened(between: Between) -> tuple[Wire, Wire]:
    """The front-end's end of a back-end channel, and the back-end's."""
    ours, theirs = socket.socketpair()
    with theirs:
        between.front.send(message(Q.SET_BACKEND_REQ_FD), [theirs])
        told = os.fstat(theirs.fileno()).st_ino
    (fd,) = between.back.receive().fds
    arrived = Wire(socket.socket(fileno=fd.detach()))
    assert os.fstat(arrived.fileno()).st_ino != told
    return Wire(ours), arrived


def test_what_passes_on_the_back_end_channel_is_seen() -> None:
    with Between() as between, memory_file() as file:
        ours, theirs = opened(between)
        with ours, theirs:
            theirs.send(MAP, [file])
            assert took(ours) == (MAP, inodes([file]))
            answer = message(B.SHMEM_MAP, U64(0), flags=5)
            ours.send(answer)
            assert took(theirs) == (answer, [])
        between.settle()
        handed, *told = between.messages
        assert (handed.request, handed.fds[0].kind) == (Q.SET_BACKEND_REQ_FD, "socket")
        assert [(each.channel, each.sender, each.data) for each in told] == [
            (Channel.BACKEND, Role.BACKEND, MAP),
            (Channel.BACKEND, Role.FRONTEND, answer),
        ]
        assert told[0].fds[0].ino == inodes([file])[0]


def test_w35_a_thousand_back_end_channels_leave_only_those_that_are_used() -> None:
    with Between() as between:
        last = opened(between)
        for _ in range(300):
            ours, theirs = opened(between)
            theirs.close()
            ours.closes()
            ours.close()
        between.settle()
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(700):
            ours, theirs = opened(between)
            ours.close()
            theirs.closes()
            theirs.close()
        between.settle()
        assert len(os.listdir("/proc/self/fd")) == before
        last[1].send(MAP)
        assert took(last[0]) == (MAP, [])
        last[0].close()
        last[1].close()


@pytest.mark.parametrize("count", [0, 1, 2, 253])
def test_what_is_no_back_end_channel_goes_on_as_it_came(count: int) -> None:
    with Between() as between, memory_file() as file:
        between.front.send(message(Q.SET_BACKEND_REQ_FD), [file] * count)
        assert took(between.back) == (message(Q.SET_BACKEND_REQ_FD), inodes([file] * count))
        between.settle()
        assert len(between.messages[0].fds) == count
        assert len(between.remarks(Remarkable.LOST)) == bool(count)


@pytest.mark.parametrize("kind", [socket.SOCK_DGRAM, socket.SOCK_SEQPACKET])
def test_another_kind_of_socket_goes_on_as_it_came(kind: socket.SocketKind) -> None:
    with Between() as between:
        ours, theirs = socket.socketpair(socket.AF_UNIX, kind)
        with ours, theirs:
            between.front.send(message(Q.SET_BACKEND_REQ_FD), [theirs])
            assert took(between.back)[1] == [os.fstat(theirs.fileno()).st_ino]


def test_a_back_ends_own_message_of_that_number_is_left_alone() -> None:
    with Between() as between:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            between.back.send(message(Q.SET_BACKEND_REQ_FD), [theirs])
            assert took(between.front)[1] == [os.fstat(theirs.fileno()).st_ino]


# What is no message

WRONG = {
    "version": message(Q.GET_STATUS, flags=2),
    "flag": message(Q.GET_STATUS, flags=1 | 1 << 9),
    "size": message(Q.GET_STATUS, size=1 << 31),
    "text": b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "noise": os.urandom(11) + b"\xff" + os.urandom(20000),
}


@pytest.mark.parametrize("sender", Role)
@pytest.mark.parametrize("data", WRONG.values(), ids=WRONG)
def test_behind_a_wrong_header_bytes_and_fds_are_passed_on_as_they_come(sender: Role, data: bytes) -> None:
    with Between() as between, memory_file() as file:
        here, there = ends(between, sender)
        here.send(NUM)
        here.send(data, [file])
        here.send(KICK, [file, file])
        arrived, fds = stream(there, len(NUM + data + KICK))
        assert arrived == NUM + data + KICK
        assert fds == inodes([file]) * 3
        there.send(NUM)  # and the other way round there are messages still
        assert took(here) == (NUM, [])
        between.settle()
        told = [each for each in between.messages if each.sender is sender]
        assert [each.whole for each in told] == [True] + [False] * (len(told) - 1)
        assert b"".join(each.data for each in told) == NUM + data + KICK
        assert sum(len(each.fds) for each in told) == 3
        (remark,) = between.remarks(Remarkable.BROKEN)
        assert remark.startswith(f"{sender.value} on the front-end channel: ")


def stream(wire: Wire, count: int) -> tuple[bytes, list[int]]:
    """The next `count` bytes, and the inodes of all fds that come with them."""
    data, found = b"", list[OwnedFd]()
    while len(data) < count:
        piece, control, _, _ = wire.socket.recvmsg(count - len(data), 4096, socket.MSG_CMSG_CLOEXEC)
        found += [OwnedFd(fd) for _, _, each in control for fd in memoryview(each).cast("i")]
        data += piece
    try:
        return data, inodes(found)
    finally:
        close_all(found)
