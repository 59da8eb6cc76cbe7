"""Whoever sets the clock while a session goes on: events stay in order, and latencies are how long it took."""

from __future__ import annotations

import time
from dataclasses import replace
from itertools import count

import pytest

from vhostuser.protocol.payloads import U64
from vhostuser.testing import DEADLINE, message
from vhostuser.trace import clock
from vhostuser.trace.conversation import Exchange
from vhostuser.trace.lines import Lines

from .between import Between
from .building import BEGAN, Q, Wire, exchanges_of
from .stage import Stage

HOUR = 3600 * 10**9


def test_a_clock_that_is_set_back_with_every_look_makes_no_latency_negative_or_long(monkeypatch: pytest.MonkeyPatch) -> None:
    steps, real = count(1), time.time_ns()
    monkeypatch.setattr(time, "time_ns", lambda: real - next(steps) * HOUR)
    with Between() as between:
        for _ in range(3):
            between.front.send(message(Q.GET_FEATURES))
            between.back.receive()
            between.back.send(message(Q.GET_FEATURES, U64(1), flags=5))
            between.front.receive()
        between.settle()
        latencies = [each.latency for each in exchanges_of(between.events)]
        moments = [event.at for event in between.events]
    assert all(latency is not None and 0 <= latency < DEADLINE * 1e9 for latency in latencies)
    assert len(latencies) == 3
    assert moments == sorted(moments)


def test_a_message_came_when_it_came_by_the_clock_of_the_program(monkeypatch: pytest.MonkeyPatch) -> None:
    """The compiled proxy has no other clock than the one in Python."""
    monkeypatch.setattr(clock, "START", clock.START + 100 * HOUR)
    with Between() as between:
        before = clock.now()
        between.front.send(message(Q.GET_FEATURES))
        between.back.receive()
        after = clock.now()
        between.settle()
        (found,) = between.messages
    assert before <= found.at <= after


def test_requests_in_rings_have_the_same_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clock, "START", clock.START + 100 * HOUR)
    stage = Stage()
    before = clock.now()
    stage.rig.give((0x1000_0000, 16, 0))
    events = stage.look()
    stage.close()
    assert events
    assert all(before <= event.at <= clock.now() for event in events)


def test_it_is_the_wall_clock_where_nobody_sets_it() -> None:
    assert abs(clock.now() - time.time_ns()) < DEADLINE * 1e9


def test_of_a_capture_whose_clock_was_set_back_no_latency_is_told() -> None:
    wire = Wire()
    asked, answered = wire.ask(Q.GET_FEATURES), wire.answer(Q.GET_FEATURES, U64(1))
    (exchange,) = exchanges_of([asked, replace(answered, at=BEGAN - HOUR)])
    assert isinstance(exchange, Exchange)
    assert exchange.latency is None
    assert not exchange.unanswered
    line = Lines(colour=False).line(exchange) or ""
    assert "GET_FEATURES = 0x1" in line
    assert "<" not in line
