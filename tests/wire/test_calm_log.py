"""W26: unknown requests without end are a line a second, at either side, and are still told from others."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import pytest

from vhostuser import limited_log
from vhostuser.protocol.numbers import VERSION
from vhostuser.testing import ServedRawFrontend, message

from .conftest import Attacked

TIMES = 500
UNKNOWN = message(0x7FFF, b"\033[31mred\n", flags=VERSION)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time that logs go by; it stands still unless the test moves it."""
    now = [1000.0]
    monkeypatch.setattr(limited_log, "time", SimpleNamespace(monotonic=lambda: now[0]))
    return now


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What was said since the last time."""
    said = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    caplog.clear()
    return said


def test_w26_an_unknown_request_is_a_line_a_second_at_a_back_end(
    raw: ServedRawFrontend, clock: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    for left_out in ([], [f"{TIMES - 1} more such lines were left out"]):
        raw.send(UNKNOWN * TIMES)
        raw.alive()
        *before, line = lines(caplog)
        assert before == left_out
        assert "32767" in line
        assert line.isprintable()
        clock[0] += 1
    assert raw.served.backend.counters.refused == 2 * TIMES


def test_w26_an_unknown_request_is_a_line_a_second_at_a_front_end(
    attacked: Attacked, clock: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    for left_out in ([], [f"{TIMES - 1} more such lines were left out"]):
        for _ in range(TIMES):
            attacked.raw.channel.send(UNKNOWN)
        *before, line = lines(caplog)
        assert before == left_out
        assert "32767" in line
        assert line.isprintable()
        clock[0] += 1
    assert attacked.frontend.counters.refused == 2 * TIMES


def test_w26_many_unknown_requests_are_five_lines_a_second(
    raw: ServedRawFrontend, clock: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(TIMES):
        raw.send(message(0x7000 + number))
    raw.alive()
    assert len(lines(caplog)) == limited_log.PER_SECOND
