"""A window that is too small is noticed by the ranges that come back to it."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path

import pytest

from vhostuser.devices.fs.dax.churn import FEWEST, QUIET, SECONDS, Churn

from .windowed import HostFile, window_of

SLOTS = 100
FILE = (1, 1)


class Clock:
    """Goes only where it is told to."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def churn(clock: Clock) -> Churn:
    return Churn(SLOTS, clock)


def mapped(churn: Churn, places: Iterable[int], *, taken: int = SLOTS) -> list[int]:
    """What was too many, at each time it was."""
    found = [churn.mapped((FILE, at), taken=taken) for at in places]
    return [each for each in found if each]


def test_ranges_that_come_back_are_too_many_once_they_fill_the_window(churn: Churn) -> None:
    assert mapped(churn, range(2 * SLOTS)) == []
    assert mapped(churn, range(SLOTS - 1)) == []
    assert mapped(churn, [SLOTS]) == [SLOTS]


def test_a_long_file_read_to_its_end_is_no_trouble_even_if_read_twice(churn: Churn) -> None:
    assert mapped(churn, [*range(10 * SLOTS), *range(10 * SLOTS)]) == []


def test_what_comes_back_to_an_empty_window_is_no_trouble(churn: Churn) -> None:
    assert mapped(churn, list(range(10)) * SLOTS, taken=SLOTS // 2 - 1) == []


def test_ranges_that_come_back_slowly_are_no_trouble(churn: Churn, clock: Clock) -> None:
    mapped(churn, range(2 * SLOTS))
    for at in range(4 * SLOTS):
        clock.now += 2 * SECONDS / SLOTS
        assert mapped(churn, [at % (2 * SLOTS)]) == []


def test_it_is_said_once_a_minute(churn: Churn, clock: Clock) -> None:
    again = list(range(2 * SLOTS)) * 5
    assert len(mapped(churn, again)) == 1
    clock.now = QUIET - 1
    assert mapped(churn, again) == []
    clock.now = 2 * QUIET
    assert len(mapped(churn, again)) == 1


def test_a_tiny_window_is_allowed_a_few(clock: Clock) -> None:
    tiny = Churn(1, clock)
    assert mapped(tiny, [0] * FEWEST, taken=1) == []
    assert mapped(tiny, [0], taken=1) == [FEWEST]


def test_a_window_says_that_it_is_too_small(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vhostuser.devices.fs.dax.churn.SECONDS", float("inf"))
    path = tmp_path / "file"
    path.write_bytes(bytes(4 * 4096))
    file = HostFile(str(path), FILE)
    with caplog.at_level(logging.WARNING), window_of(2, write=False) as guest:
        for at in range(FEWEST + 4):
            guest.show(file, at % 4, at % 2)
    assert [record.message.count("a larger --dax-window, or --dax off") for record in caplog.records] == [1]
