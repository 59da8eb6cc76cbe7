"""Whatever a capture holds, it is shown: plain, bounded, and without an error."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vhostuser.cli.map import Moment, as_json, in_words
from vhostuser.cli.top_view import Look, view
from vhostuser.protocol.payloads import Mmap, ShmemConfig
from vhostuser.trace.board import Board
from vhostuser.trace.event import Event, FdNote
from vhostuser.trace.history import History
from vhostuser.trace.lines import Lines
from vhostuser.trace.moment import Palette, areas_of
from vhostuser.trace.region_svg import region_svg
from vhostuser.trace.report import write_report
from vhostuser.trace.report.picture import picture
from vhostuser.trace.summary import Summary

from .building import BEGAN, B, Q, Wire, items_of
from .strategies import events as any_events
from .strategies import fds as any_fds

numbers = st.integers(0, (1 << 64) - 1) | st.integers(0, 20).map(lambda pages: pages << 12)
mmaps = st.builds(Mmap, st.integers(0, 255), numbers, numbers, numbers, st.integers(0, (1 << 64) - 1))


@st.composite
def sessions(draw: st.DrawFn) -> list[Event]:
    """A front-end that says yes to whatever mapping, of regions of whatever size."""
    wire, sizes = Wire(draw(st.integers(0, 2))), draw(st.dictionaries(st.integers(0, 255), numbers, max_size=3))
    events = [*wire.agreed(), wire.ask(Q.GET_SHMEM_CONFIG), wire.answer(Q.GET_SHMEM_CONFIG, ShmemConfig(sizes))]
    for body, unmaps in draw(st.lists(st.tuples(mmaps, st.booleans()), max_size=8)):
        fds: list[FdNote] = draw(st.lists(any_fds, max_size=2))
        events += [wire.call(B.SHMEM_MAP, body, *fds), wire.say(B.SHMEM_MAP, draw(st.sampled_from([0, 0, 0, 22])))]
        events += wire.unmap(body.shm_offset, body.len, shmid=body.shmid) if unmaps else []
    return events


captures = sessions() | st.lists(any_events, max_size=8)


@given(captures)
def test_a_board_shows_any_capture_at_any_moment(events: list[Event]) -> None:
    board = Board()
    for event in events:
        board.take(event)
    for at in (None, *[event.at for event in events][:3]):
        for colour in (True, False):
            lines = view(board, Look(80, 24, at=at, colour=colour), Palette())
            assert len(lines) <= 24
            assert all(text.isprintable() for line in lines for text, _ in line)


@given(captures)
def test_regions_of_any_capture_become_words_an_object_and_a_picture(events: list[Event]) -> None:
    board = Board()
    for event in events:
        board.take(event)
    moment = Moment(board.picture().areas, "title", 0, 0.0)
    assert all(line.isprintable() for line in in_words(moment, colour=False, width=80))
    assert json.loads(json.dumps(as_json(moment)))["t"] == 0.0
    ElementTree.fromstring(region_svg(moment.areas, "title"))


@given(captures)
def test_any_capture_in_which_files_were_mapped_is_a_picture(events: list[Event]) -> None:
    history = History()
    for item in items_of(events):
        history.take(item)
    if history.placed:
        ElementTree.fromstring(picture(events))


NOTHING: dict[str, list[Event]] = {
    "a mapping of no bytes": [*Wire().agreed(), *Wire().map(0, 0)],
    "a refused one at 0": [*Wire().agreed(), *Wire().map(0, 0, status=22)],
    "a region of no bytes": [*Wire().agreed(), *Wire().region(0), *Wire().map(0, 0)],
    "one at the end of all offsets": [*Wire().agreed(), *Wire().map((1 << 64) - 4096, 4096), *Wire().map(0, (1 << 64) - 1)],
    "one event": [Wire().ask(Q.GET_FEATURES)],
    "none": [],
}


@pytest.mark.parametrize("events", NOTHING.values(), ids=NOTHING)
@pytest.mark.parametrize("at", [None, BEGAN, 0], ids=["as it is", "all at once", "at the epoch"])
def test_regions_of_nothing_and_moments_of_no_length_are_shown(events: list[Event], at: int | None) -> None:
    found = [event if at is None else replace(event, at=at) for event in events]
    board, history = Board(), History()
    for event in found:
        board.take(event)
    for item in items_of(found):
        history.take(item)
    for moment in (None, at or BEGAN):
        areas = board.picture(moment).areas + areas_of(history, moment or BEGAN)
        ElementTree.fromstring(region_svg(areas, "title"))
        assert list(in_words(Moment(areas, "title", 0, 0.0), colour=True, width=80))
        assert view(board, Look(80, 24, at=moment), Palette())
    if history.placed:
        assert "nan" not in picture(found)
    write_report(found, io.StringIO())


def test_a_mapping_of_nothing_is_never_there() -> None:
    """It would be kept for ever, since nothing ends it."""
    history = History()
    for item in items_of([*Wire().agreed(), *Wire().map(0, 0)]):
        history.take(item)
    assert not history.live(BEGAN + (1 << 40))


@given(captures)
def test_any_capture_has_lines_objects_and_a_summary(events: list[Event]) -> None:
    lines, summary = Lines(colour=False), Summary()
    for item in items_of(events):
        text = lines.line(item)
        assert text is not None
        assert text.isprintable()
        assert len(text) < 10_000
        assert json.loads(json.dumps(lines.json(item)))["v"] == 1
        summary.take(item)
    assert all(line.isprintable() for line in summary.table().splitlines())
    assert json.dumps(summary.as_json())
