"""The compiled loop of a proxy by itself: what it passes on, what it leaves to Python, how long it waits."""

from __future__ import annotations

import contextlib
import os
import select
import socket
from collections.abc import Iterator
from typing import Final

import pytest

from vhostuser import _native
from vhostuser.protocol.numbers import HEADER_SIZE, FrontendRequest
from vhostuser.protocol.payloads import U64
from vhostuser.protocol.rules import Channel
from vhostuser.protocol.state import Role
from vhostuser.testing import leaving_nothing, message
from vhostuser.trace.event import Message
from vhostuser.transport.loop import Waker

pytestmark = pytest.mark.skipif(not _native.accelerated, reason="nothing is compiled here, or it is not wanted")

QUIET: Final = 1_000_000
PLAIN: Final = message(FrontendRequest.SET_FEATURES, U64(1))
EMPTY: Final = message(FrontendRequest.GET_FEATURES)
AT_ONCE: Final = 0.05
"""Seconds in which a timer that was left running would have run out many times."""


class Passing:
    """A passer with one way, from `here` to `there`."""

    def __init__(self) -> None:
        self.here, self.source = socket.socketpair()
        self.target, self.there = socket.socketpair()
        self.there.setblocking(False)
        self.poll, self.waker = select.epoll(), Waker()
        self.poll.register(self.waker, select.EPOLLIN)
        self.poll.register(self.source, select.EPOLLIN)
        self.told: list[Message] = []
        self.passer = _native.passing.Passer(self.poll.fileno(), QUIET, 0, Message, 3, self.tell)
        self.ways = {self.source.fileno(): (self.target.fileno(), Channel.BACKEND, Role.BACKEND)}

    def tell(self, event: Message) -> None:
        self.told.append(event)

    def run(self, *, waits: bool = False) -> tuple[list[tuple[int, int]], list[tuple[bytes, list[int], bool]], int]:
        return self.passer.run(self.ways, waits)

    def close(self) -> None:
        self.passer.close()
        self.poll.close()
        self.waker.close()
        for sock in (self.here, self.source, self.target, self.there):
            sock.close()


@pytest.fixture
def passing() -> Iterator[Passing]:
    with leaving_nothing():
        made = Passing()
        yield made
        made.close()


def test_plain_messages_pass_until_nothing_comes(passing: Passing) -> None:
    passing.here.send(PLAIN + EMPTY + PLAIN)
    assert passing.run() == ([], [], 0)
    assert passing.there.recv(1 << 16) == PLAIN + EMPTY + PLAIN
    assert [told.data for told in passing.told] == [PLAIN, EMPTY, PLAIN]
    assert passing.told == [Message(told.at, 3, Channel.BACKEND, Role.BACKEND, told.data) for told in passing.told]


def test_what_waits_already_is_waited_with(passing: Passing) -> None:
    assert passing.run(waits=True) == ([], [], 0)


@pytest.mark.parametrize("data", [PLAIN[:5], PLAIN[:HEADER_SIZE], PLAIN[:15], b"\0" * 12], ids=["5", "12", "15", "wrong"])
def test_what_is_not_plain_is_left_as_it_was_read(passing: Passing, data: bytes) -> None:
    passing.here.send(PLAIN + data)
    ready, pieces, sent = passing.run()
    assert ready == [(passing.source.fileno(), select.EPOLLIN)]
    assert b"".join(piece for piece, _, _ in pieces) == data
    assert all(not fds and not lost for _, fds, lost in pieces)
    assert sent == 0
    assert passing.there.recv(1 << 16) == PLAIN


@pytest.mark.parametrize("at", [0, HEADER_SIZE])
def test_fds_are_left_with_their_piece(passing: Passing, at: int) -> None:
    passing.here.send(PLAIN[:at])
    socket.send_fds(passing.here, [PLAIN[at:]], [passing.there.fileno()])
    _, pieces, _ = passing.run()
    (fds,) = [fds for _, fds, _ in pieces if fds]
    assert [bool(numbers) for _, numbers, _ in pieces] == ([False, True] if at else [True])
    assert os.path.sameopenfile(fds[0], passing.there.fileno())
    os.close(fds[0])


def test_a_socket_with_no_way_is_left_alone(passing: Passing) -> None:
    passing.ways.clear()
    passing.here.send(PLAIN)
    assert passing.run() == ([(passing.source.fileno(), select.EPOLLIN)], [], 0)
    assert passing.source.recv(100) == PLAIN


def test_behind_what_is_not_plain_nothing_of_that_turn_passes(passing: Passing) -> None:
    passing.waker.set()
    passing.here.send(PLAIN)
    ready, pieces, _ = passing.run()
    assert sorted(fd for fd, _ in ready) == sorted([passing.waker.fileno(), passing.source.fileno()])
    assert not pieces
    assert not passing.told


def test_what_nobody_takes_is_left_with_how_much_went(passing: Passing) -> None:
    passing.target.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while passing.target.send(bytes(4096)):
            pass
    passing.here.send(PLAIN)
    ready, pieces, sent = passing.run()
    assert [fd for fd, _ in ready] == [passing.source.fileno()]
    assert b"".join(piece for piece, _, _ in pieces) == PLAIN
    assert sent == 0
    assert not passing.told


def test_a_timer_is_not_left_running_whatever_ends_the_wait(passing: Passing) -> None:
    passing.here.send(PLAIN)
    passing.run()
    assert passing.poll.poll(AT_ONCE) == []
    passing.waker.set()
    passing.run(waits=True)
    passing.waker.clear()
    assert passing.poll.poll(AT_ONCE) == []


def test_who_is_told_may_fail_and_the_message_has_gone_all_the_same() -> None:
    class Failing(Passing):
        def tell(self, event: Message) -> None:
            raise ZeroDivisionError

    with leaving_nothing():
        passing = Failing()
        passing.here.send(PLAIN + EMPTY)
        with pytest.raises(ZeroDivisionError):
            passing.run(waits=True)
        assert passing.there.recv(1 << 16) == PLAIN
        assert passing.poll.poll(AT_ONCE) == [(passing.source.fileno(), select.EPOLLIN)]
        passing.close()


def test_a_passer_that_can_have_no_timer_says_so() -> None:
    with pytest.raises(OSError, match="Bad file descriptor"):
        _native.passing.Passer(-1, QUIET, 0, Message, 0, print)
