"""Answers in a peer's stead, beside messages that wait: in the order in which they were asked for, and never lost."""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence

from vhostuser.protocol.numbers import FrontendRequest as Q
from vhostuser.protocol.payloads import U64, VringState
from vhostuser.testing import message
from vhostuser.trace.event import Message
from vhostuser.trace.verdict import Verdict

from .between import Between

ASK, ANSWER = message(Q.GET_FEATURES), message(Q.GET_FEATURES, U64(1 << 30), flags=5)
NUM, NO = message(Q.SET_VRING_NUM, VringState(0, 8), flags=9), message(Q.SET_VRING_NUM, U64(22), flags=5)
SOON = 50_000_000
Alter = Callable[[Message, Sequence[int]], Verdict | None]


def refusing(delay: int) -> Alter:
    """SET_VRING_NUM is refused, and the reply to GET_FEATURES waits."""

    def alter(found: Message, fds: Sequence[int]) -> Verdict | None:
        if found.asks and found.request == Q.SET_VRING_NUM:
            return Verdict("refused", data=b"", answer=NO)
        if not found.asks and found.request == Q.GET_FEATURES and delay:
            return Verdict("delayed", delay=delay)
        return None

    return alter


def test_an_answer_in_a_peers_stead_does_not_overtake_a_reply_that_is_delayed() -> None:
    with Between(refusing(SOON)) as between:
        between.front.send(ASK + NUM)
        between.back.receive()
        between.back.send(ANSWER)
        assert [between.front.receive().request for _ in range(2)] == [Q.GET_FEATURES, Q.SET_VRING_NUM]


def test_an_answer_in_a_peers_stead_does_not_wait_for_the_rest_of_half_a_reply() -> None:
    with Between(refusing(0)) as between:
        between.back.send(ANSWER[:7])
        between.settle()
        between.front.send(NUM)
        assert between.front.receive().request == Q.SET_VRING_NUM
        between.back.send(ANSWER[7:])
        assert between.front.receive().request == Q.GET_FEATURES


def test_an_answer_that_has_no_room_yet_goes_before_the_end_is_passed_on() -> None:
    """The back-end sends no more, while the front-end has not read what it was refused."""
    with Between(refusing(0)) as between:
        filled = fill(between.proxy._main.front)
        between.front.send(NUM)
        between.settle()
        between.back.end()
        between.settle()
        between.front.socket.recv(filled, socket.MSG_WAITALL)
        assert between.front.receive().request == Q.SET_VRING_NUM
        between.front.closes()


def fill(writer: socket.socket) -> int:
    """Leave no room in a socket; how many bytes that took."""
    count = 0
    while True:
        try:
            count += writer.send(bytes(4096), socket.MSG_DONTWAIT)
        except BlockingIOError:
            return count
