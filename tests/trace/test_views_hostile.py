"""Whatever a capture holds, it is shown: plain, bounded, and without an error."""

from __future__ import annotations

import json
from xml.etree import ElementTree

from hypothesis import given
from hypothesis import strategies as st

from vhostuser.cli.map import Moment, as_json, in_words
from vhostuser.cli.top_view import Look, view
from vhostuser.protocol.payloads import Mmap, ShmemConfig
from vhostuser.trace.board import Board
from vhostuser.trace.event import Event, FdNote
from vhostuser.trace.lines import Lines
from vhostuser.trace.moment import Palette
from vhostuser.trace.region_svg import region_svg
from vhostuser.trace.summary import Summary

from .building import B, Q, Wire, items_of
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
