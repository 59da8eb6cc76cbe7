"""What a live view remembers: exactly, as far back as it says, and no more than there is room for."""

from __future__ import annotations

import threading
from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vhostuser.trace import board as boards
from vhostuser.trace import past as pasts
from vhostuser.trace.board import Board
from vhostuser.trace.conversation import Conversation, Exchange
from vhostuser.trace.event import Buffer, Event, Offered, Remark, Remarkable, Used
from vhostuser.trace.filter import parse_filter
from vhostuser.trace.history import History
from vhostuser.trace.past import CONNECTIONS, Past
from vhostuser.trace.rates import MOST_NAMES, OTHERS, SECONDS, Rates

from .building import BEGAN, Q, Wire, items_of

SECOND = 1_000_000_000


def board_of(*events: Event) -> Board:
    board = Board()
    for event in events:
        board.take(event)
    return board


def offsets(board: Board, at: int | None = None) -> list[int]:
    return [placed.shm_offset for area in board.picture(at).areas for placed in area.mappings]


def test_a_picture_of_any_moment_has_what_was_mapped_then() -> None:
    wire = Wire()
    first, second, gone = wire.map(0, 0x1000), wire.map(0x1000, 0x1000), wire.unmap(0, 0x1000)
    board = board_of(*Wire().agreed(), *first, *second, *gone)
    assert [offsets(board, at) for at in (first[0].at, first[1].at, second[1].at, gone[1].at, None)] == [
        *([], [0], [0, 0x1000], [0x1000], [0x1000]),
    ]
    assert board.changes() == [first[1].at, second[1].at, gone[1].at]


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 5)), max_size=40))
def test_the_past_is_as_the_whole_history_has_it(steps: list[tuple[bool, int]]) -> None:
    wire, past, history = Wire(), Past(), History()
    events = [*wire.agreed()]
    for maps, page in steps:
        events += wire.map(page << 12, 0x1000) if maps else wire.unmap(page << 12, 0x1000)
    for item in items_of(events):
        past.take(item)
        history.take(item)
    for event in events:
        expected = [(placed.shm_offset, placed.begin) for placed in history.live(event.at)]
        assert [(each.shm_offset, each.begin) for area in past.areas(event.at) for each in area.mappings] == expected


def test_the_past_forgets_what_there_is_no_room_for_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pasts, "REMEMBERED", 300)
    wire, past = Wire(), Past()
    lasting = wire.map(1 << 30, 0x1000)
    for item in items_of([*wire.agreed(), *lasting]):
        past.take(item)
    conversation = Conversation()
    for event in wire.agreed():
        conversation.take(event)
    for _ in range(700):
        for event in [*wire.map(0, 0x1000), *wire.unmap(0, 0x1000)]:
            for item in conversation.take(event):
                past.take(item)
    assert len(past._placed) == 300
    assert past.horizon is not None
    assert [each.shm_offset for area in past.areas(past.horizon) for each in area.mappings] == [1 << 30]
    assert [each.shm_offset for area in past.areas() for each in area.mappings] == [1 << 30]
    assert (len(past._history.placed), len(past._lasting)) == (0, 1)


def test_regions_are_those_of_the_connections_of_that_moment() -> None:
    wire, second = Wire(), Wire(1)
    second._ticks = count(1000)
    agreed, region, closed = wire.agreed(), wire.region(1 << 20), wire.remark(Remarkable.CLOSED)
    board = board_of(*agreed, *region, closed, *second.agreed(), *second.region(2 << 20))
    assert [area.size for area in board.picture().areas] == [2 << 20]
    assert [area.connection for area in board.picture(region[1].at).areas] == [0]


def test_many_connections_do_not_grow_it() -> None:
    past = Past()
    for connection in range(3 * CONNECTIONS):
        wire = Wire(connection)
        for item in items_of([*wire.region(1 << 20), wire.remark(Remarkable.CLOSED)]):
            past.take(item)
    assert (len(past._spans), len(past._history.sizes), len(past._history.connections)) == (CONNECTIONS,) * 3


def test_items_of_a_moment_are_the_last_ones_until_then_that_match() -> None:
    wire = Wire()
    mapped = [event for page in range(5) for event in wire.map(page << 12, 0x1000)]
    board = board_of(*Wire().agreed(), *mapped)
    found = board.picture(mapped[5].at, lines=2).items
    assert [item.index for item in found if isinstance(item, Exchange)] == [9, 11]
    chosen = parse_filter("shm_offset==0x1000")
    assert len(board.picture(lines=9, chosen=chosen).items) == 1


def test_queues_are_counted_with_what_waits_in_them() -> None:
    offered = [Offered(BEGAN + n, 0, 1, n, (Buffer(0, 16, False),)) for n in range(3)]
    board = board_of(*offered, Used(BEGAN + 9, 0, 1, 0, 512, after=9_000))
    (row,) = board.picture().queues
    assert (row.queue, row.offered, row.used, row.waiting, row.written, row.latency.greatest) == (1, 3, 1, 2, 512, 9_000)


def test_what_is_saved_begins_with_the_negotiation_and_ends_with_the_last_events(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, limit in (("FIRST", 50), ("EVENTS", 70), ("ITEMS", 30)):
        monkeypatch.setattr(boards, name, limit)
    wire = Wire()
    agreed = wire.agreed()
    board = board_of(*agreed, *(wire.ask(Q.SET_OWNER) for _ in range(500)))
    saved = board.saved()
    assert saved[: len(agreed)] == agreed
    assert len(saved) == 120
    assert saved[-1].at == board.now
    assert len(board._items) == 30


def test_rates_are_of_the_second_of_a_moment() -> None:
    rates = Rates()
    for at in (0, 1, SECOND, SECOND + 5, SECOND + 9, 3 * SECOND):
        rates.add(at, "SHMEM_MAP")
    assert [rates.at(at)["SHMEM_MAP"] for at in (5, SECOND, 2 * SECOND, 3 * SECOND + 9)] == [2, 3, 0, 1]
    assert rates.course("SHMEM_MAP", 3 * SECOND, 5) == [0, 2, 3, 0, 1]
    assert rates.course("OTHER", 3 * SECOND, 2) == [0, 0]


def test_rates_are_bounded_in_seconds_and_names() -> None:
    rates = Rates()
    for number in range(2 * SECONDS):
        rates.add(number * SECOND, "x")
    for number in range(2 * MOST_NAMES):
        rates.add(5000 * SECOND, f"request {number}")
    assert len(rates._seconds) == SECONDS
    assert len(rates.at(5000 * SECOND)) == MOST_NAMES + 1
    assert rates.at(5000 * SECOND)[OTHERS] == MOST_NAMES
    rates.add(0, "too late to matter")


def test_the_clock_of_a_live_view_goes_on_without_events() -> None:
    wire = Wire()
    board = Board(clock=lambda: BEGAN + 10 * SECOND)
    for event in wire.agreed():
        board.take(event)
    picture = board.picture()
    assert (picture.at, picture.state, picture.rates) == (BEGAN + 10 * SECOND, "LIVE", {})
    assert board_of(*wire.agreed()).picture().state == "END"
    assert Board(clock=lambda: 5).picture().began == 5


def test_pictures_are_taken_while_events_come() -> None:
    board, wire = Board(), Wire()
    events = [*wire.agreed(), *(event for _ in range(300) for event in [*wire.map(0, 0x1000), *wire.unmap(0, 0x1000)])]

    def feed() -> None:
        for event in events:
            board.take(event)

    thread = threading.Thread(target=feed)
    thread.start()
    while thread.is_alive():
        board.picture(lines=5)
        board.changes()
    thread.join()
    assert board.events == len(events)


def test_requests_without_reply_are_shown_at_the_end() -> None:
    wire = Wire()
    board = board_of(*wire.agreed(), wire.map(0, 0x1000)[0])
    board.end()
    (last,) = board.picture(lines=1).items
    assert isinstance(last, Exchange)
    assert last.unanswered


def test_a_remark_opens_and_closes_a_connection() -> None:
    board = board_of(Remark(BEGAN, 0, Remarkable.OPENED))
    assert board.picture().connections == 1
    board.take(Remark(BEGAN, 0, Remarkable.CLOSED))
    assert board.picture().connections == 0
