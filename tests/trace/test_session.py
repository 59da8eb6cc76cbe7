"""A follower of rings beside a proxy: what it sees takes its turn, and what goes wrong with it is its own affair."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.virtio_rig import BUFFERS
from vhostuser.protocol.numbers import FrontendRequest as Q
from vhostuser.protocol.payloads import U64, VringState
from vhostuser.testing import DEADLINE, message
from vhostuser.trace import clock
from vhostuser.trace.event import Event, Message, Offered, Remark, Remarkable, Used
from vhostuser.trace.flow import Flow
from vhostuser.trace.proxy import BACKLOG
from vhostuser.trace.ring_states import RingStates
from vhostuser.trace.rings import MOST_PENDING, RingFollower

from .between import Between
from .stage import Stage, heads, remarks

BASE = message(Q.GET_VRING_BASE, VringState(0, 0))
STOPPED = message(Q.GET_VRING_BASE, VringState(0, 1), flags=5)
NUM = message(Q.SET_VRING_NUM, VringState(0, 8))


class Staged(Stage):
    """A ring whose follower tells a proxy what it sees, as a session's does."""

    def __init__(self) -> None:
        super().__init__()
        self.between: Between | None = None
        self.follower._sink = self.follower._states._sink = self._told

    def _told(self, event: Event) -> None:
        assert self.between
        self.between.proxy.tell(event)


@contextmanager
def staged() -> Iterator[tuple[Staged, Between]]:
    stage = Staged()
    with Between(watch=stage.follower, started=False) as stage.between:
        yield stage, stage.between
    stage.ring.close()
    stage.memory.close()


def order(events: list[Event]) -> list[str]:
    """What was told, by kind; messages by their request."""
    return [Q(each.request).name if isinstance(each, Message) else type(each).__name__ for each in events]


def test_what_is_seen_in_a_ring_comes_behind_the_messages_that_wait() -> None:
    """The sink is busy with the first message while others pass, and a request is seen behind them."""
    with staged() as (stage, between):
        busy, free = threading.Event(), threading.Event()
        take = between.proxy._sink

        def slow(event: Event) -> None:
            if isinstance(event, Message) and not busy.is_set():
                busy.set()
                assert free.wait(DEADLINE)
            take(event)

        between.proxy._sink = slow
        between.start()
        for _ in range(2):
            between.front.send(NUM)
        assert busy.wait(DEADLINE)
        stage.rig.give((BUFFERS, 4, 0))
        stage.follower.look()
        assert not any(isinstance(event, Offered) for event in between.events)
        free.set()
        between.back.receive()
        between.back.receive()
        between.settle()
        assert order(between.events)[-3:] == ["SET_VRING_NUM", "SET_VRING_NUM", "Offered"]


def test_what_a_ring_did_last_comes_before_the_reply_that_stops_it_and_before_the_end() -> None:
    with staged() as (stage, between):
        between.start()
        between.front.send(BASE)
        between.back.receive()
        stage.rig.give((BUFFERS, 4, 0))
        stage.answer()
        between.back.send(STOPPED)
        between.front.receive()
        between.settle()
        assert order(between.events)[1:] == ["GET_VRING_BASE", "Offered", "Used", "GET_VRING_BASE"]
        stage.begin_again()
        stage.rig.give((BUFFERS, 4, 0))
        between.close()
        assert order(between.events)[-2:] == ["Offered", "Remark"]
        assert between.remarks(Remarkable.CLOSED)


def test_a_request_follows_the_message_that_starts_its_ring() -> None:
    """A follower that looks as soon as it hears of the message tells what it sees behind it."""
    with staged() as (stage, between):
        stage.rig.give((BUFFERS, 4, 0))
        between.start()
        for _ in range(MOST_PENDING + 1):  # then it looks at once, in the proxy's thread
            between.front.send(NUM)
            between.back.receive()
        between.settle()
        found = order(between.events)
        assert "Offered" in found
        assert found[found.index("Offered") - 1] == "SET_VRING_NUM"


@pytest.mark.parametrize("seen", ["before", "after"])
def test_what_is_seen_while_a_request_goes_is_told_in_the_order_of_time(monkeypatch: pytest.MonkeyPatch, seen: str) -> None:
    """Its receiver may act on it before it is written down; and what was seen before may be told meanwhile."""
    send = Flow.send
    with staged() as (_, between):

        def sent(flow: Flow, *, inserted_only: bool = False) -> None:
            send(flow, inserted_only=inserted_only)
            between.proxy.tell(Remark(clock.now() if seen == "after" else 1, 0, Remarkable.NOTE, "seen"))

        monkeypatch.setattr(Flow, "send", sent)
        between.start()
        between.front.send(NUM)
        between.back.receive()
        between.settle()
        assert order(between.events)[1:] == (["SET_VRING_NUM", "Remark"] if seen == "after" else ["Remark", "SET_VRING_NUM"])
        moments = [event.at for event in between.events[1:]]
        assert moments == sorted(moments)


def test_a_follower_looks_at_nothing_while_too_much_waits() -> None:
    """It could fill the memory with what nobody has taken yet; what it misses is counted."""
    with staged() as (stage, between):
        for _ in range(BACKLOG):
            between.proxy.tell(Remark(0, 0, Remarkable.NOTE, "waits"))
        assert not between.proxy.has_room()
        looked = threading.Event()

        def has_room() -> bool:
            looked.set()
            return between.proxy.has_room()

        follower = RingFollower(between.proxy.tell, 0, has_room)
        follower._states._rings = stage.follower._states._rings
        follower._states._memory = stage.follower._states._memory
        stage.rig.give((BUFFERS, 4, 0))
        stage.follower.look()  # finds the ring, and what is in it
        told = len(between.proxy._waiting)
        stage.rig.give((BUFFERS, 4, 0))
        follower.start()
        assert looked.wait(DEADLINE)
        assert len(between.proxy._waiting) == told
        follower._ended = True
        follower._wake.set()
        follower._thread.join()
        between.start()
        between.settle()
        assert between.proxy.has_room()


FAULT = "lost: the rings are not followed any more: RuntimeError: no such luck\\n"


def broken(monkeypatch: pytest.MonkeyPatch) -> None:
    def look(self: RingStates) -> bool:
        raise RuntimeError("no such luck\n")

    monkeypatch.setattr(RingStates, "look", look)


def test_a_fault_of_the_follower_in_the_proxys_thread_ends_the_following_and_not_the_session(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with staged() as (_, between):
        broken(monkeypatch)
        between.start()
        between.front.send(BASE)
        between.back.receive()
        between.back.send(STOPPED)
        between.front.receive()
        for _ in range(MOST_PENDING + 2):
            between.front.send(NUM)
            between.back.receive()
        between.settle()
        assert remarks(between.events)[1:] == [FAULT]
        assert len(between.messages) == MOST_PENDING + 4
    assert [record.getMessage() for record in caplog.records] == [FAULT.removeprefix("lost: ")]
    assert remarks(between.events)[-1] == "closed: the front-end closed the connection"


def test_a_fault_of_the_last_look_is_told_before_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    with staged() as (_, between):
        broken(monkeypatch)
        between.start()
    assert remarks(between.events)[1:] == [FAULT, "closed: the front-end closed the connection"]


def test_a_fault_in_its_own_thread_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage()
    broken(monkeypatch)
    stage.follower.start()
    stage.follower._thread.join(DEADLINE)
    stage.tell(Q.SET_FEATURES, U64(0))
    stage.close()
    assert remarks(stage.events) == [FAULT]
    assert heads(stage.events) == []
    assert not [event for event in stage.events if isinstance(event, Used)]
