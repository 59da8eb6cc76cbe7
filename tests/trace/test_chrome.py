"""Chrome-trace JSON: by the format's rules, with what each part of a capture is drawn as."""

from __future__ import annotations

import io
import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vhostuser.protocol.payloads import U64, VringState
from vhostuser.trace.chrome import ALL, COUNTER, write_chrome
from vhostuser.trace.event import Buffer, Event, Offered, Remarkable, Used
from vhostuser.trace.tracks import MOST_LANES, microseconds
from vhostuser.virtio.block import HEADER, BlockRequest

from .building import BEGAN, FILE, MICROSECOND, B, Q, Wire
from .strategies import events

Json = dict[str, Any]


def traced(found: Iterable[Event]) -> list[Json]:
    """The events of the trace, which keep the rules of the format."""
    file = io.StringIO()
    write_chrome(found, file)
    whole = json.loads(file.getvalue())
    assert whole.keys() == {"displayTimeUnit", "traceEvents"}
    follow_the_rules(whole["traceEvents"])
    return list(whole["traceEvents"])


def follow_the_rules(found: list[Json]) -> None:
    """What the Trace Event Format asks of the kinds of events that there are, and what Perfetto asks besides."""
    for rule in RULES:
        rule(found)


KEYS = {
    "M": {"name", "ph", "pid", "tid", "args"},
    "X": {"name", "cat", "ph", "ts", "dur", "pid", "tid", "args"},
    "i": {"name", "cat", "ph", "s", "ts", "pid", "tid", "args"},
    "C": {"name", "ph", "ts", "pid", "tid", "args"},
    "s": {"name", "cat", "ph", "id", "ts", "pid", "tid"},
    "f": {"name", "cat", "ph", "id", "bp", "ts", "pid", "tid"},
}
"""The phases that are used: metadata, complete, instant, counter, the start and the end of a flow; and what each needs."""


def each_has_the_keys_of_its_phase(found: list[Json]) -> None:
    for each in found:
        assert each.keys() == KEYS[each["ph"]], each
        assert all(isinstance(each[name], str) for name in ("name", "cat") if name in each)
        assert isinstance(each.get("args", {}), dict)


def processes_and_threads_are_numbers_from_1_on(found: list[Json]) -> None:
    """Of 32 bits. 0 is the kernel's idle process, which Perfetto hides; a thread is of one process."""
    for each in found:
        assert type(each["pid"]) is type(each["tid"]) is int
        assert 0 < each["pid"] < 1 << 32
        assert 0 < each["tid"] < 1 << 32
    assert len({each["tid"] for each in found}) == len({(each["pid"], each["tid"]) for each in found})


def names_come_first_and_once(found: list[Json]) -> None:
    named: dict[str, set[int]] = {"process_name": set(), "thread_name": set()}
    for each in found:
        if each["ph"] == "M":
            number = each["pid"] if each["name"] == "process_name" else each["tid"]
            assert number not in named[each["name"]]
            named[each["name"]].add(number)
            assert isinstance(each["args"]["name"], str)
            assert each["args"]["name"]
        else:
            assert each["pid"] in named["process_name"]
            assert each["tid"] in named["thread_name"]


def read(time: float) -> int:
    """A time in nanoseconds as Perfetto reads it: multiplied, and cut off."""
    return int(float(time) * 1000.0)


def times_are_microseconds_from_the_beginning_on(found: list[Json]) -> None:
    for each in found:
        for name in ("ts", "dur"):
            if name in each:
                assert isinstance(each[name], int | float)
                assert each[name] >= 0
                assert abs(each[name] * 1000 - read(each[name])) < 1e-3 * max(1, each[name])


def instants_are_of_a_thread(found: list[Json]) -> None:
    assert all(each["s"] == "t" for each in found if each["ph"] == "i")


def counters_are_numbers(found: list[Json]) -> None:
    assert all(type(value) is int for each in found if each["ph"] == "C" for value in each["args"].values())


def slices_do_not_overlap(found: list[Json]) -> None:
    """Perfetto lets none begin before another one's end and end behind it."""
    tracks: dict[tuple[int, int], list[tuple[int, int]]] = defaultdict(list)
    for each in found:
        if each["ph"] == "X":
            tracks[each["pid"], each["tid"]].append((read(each["ts"]), read(each["ts"]) + read(each["dur"])))
    for slices in tracks.values():
        slices.sort()
        assert all(end <= start for (_, end), (start, _) in pairwise(slices))


def flows_join_slices(found: list[Json]) -> None:
    """A flow is known by its category, name and id; an end binds to the slice around it because of `bp`."""
    drawn = {(each["pid"], each["tid"], each["ts"]) for each in found if each["ph"] == "X"}
    ends = {each["id"]: each for each in found if each["ph"] == "f"}
    starts = [each for each in found if each["ph"] == "s"]
    assert [each["id"] for each in starts] == list(ends)
    for start in starts:
        end = ends[start["id"]]
        assert type(start["id"]) is int
        assert end["bp"] == "e"
        assert (start["name"], start["cat"]) == (end["name"], end["cat"])
        assert {(each["pid"], each["tid"], each["ts"]) for each in (start, end)} <= drawn


def a_flow_comes_right_behind_its_slices(found: list[Json]) -> None:
    """Events are sorted by time, and kept in the file's order where that is the same: the slice is the last on its track."""
    last: dict[tuple[int, int], Json] = {}
    for each in sorted((each for each in found if each["ph"] != "M"), key=lambda each: read(each["ts"])):
        place = (each["pid"], each["tid"])
        if each["ph"] in "sf":
            assert (last[place]["ph"], read(last[place]["ts"])) == ("X", read(each["ts"]))
        elif each["ph"] in "Xi":
            last[place] = each


def text_is_whole_characters(found: list[Json]) -> None:
    json.dumps(found, ensure_ascii=False).encode()


RULES: tuple[Callable[[list[Json]], None], ...] = (
    *(each_has_the_keys_of_its_phase, processes_and_threads_are_numbers_from_1_on, names_come_first_and_once),
    *(times_are_microseconds_from_the_beginning_on, instants_are_of_a_thread, counters_are_numbers),
    *(slices_do_not_overlap, flows_join_slices, a_flow_comes_right_behind_its_slices, text_is_whole_characters),
)


def tracks(found: list[Json]) -> dict[tuple[int, int], str]:
    """All but the counter's."""
    named = {(each["pid"], each["tid"]): each["args"]["name"] for each in found if each["name"] == "thread_name"}
    return {place: name for place, name in named.items() if name != COUNTER}


def of_kind(found: list[Json], kind: str) -> list[tuple[str, str]]:
    """Tracks and titles of the events of a kind."""
    names = tracks(found)
    return [(names[each["pid"], each["tid"]], each["name"]) for each in found if each["ph"] == kind]


@pytest.mark.parametrize("nanoseconds", [1, 290, 1001, 4097, 16_001, 2**40 + 7, 30 * 86_400 * 10**9 + 1, 2**52 - 1])
def test_no_time_is_read_as_a_nanosecond_less(nanoseconds: int) -> None:
    assert read(microseconds(nanoseconds)) == nanoseconds


def test_names_that_are_no_text_do_not_keep_the_rest_from_being_read() -> None:
    wire = Wire()
    strange = replace(FILE, path='a\udcff\ud800\\udcff"☃😀')
    found = traced([*wire.agreed(), *wire.map(0, 4096, fd=strange)])
    (shown,) = [each["args"]["fds"][0]["path"] for each in found if each["name"] == "SHMEM_MAP" and each.get("args")]
    assert shown == 'a??\\udcff"☃😀'


def test_where_there_is_no_track_left_an_arrow_is_left_out() -> None:
    wire = Wire()
    asked = [wire.ask(Q.GET_VRING_BASE, VringState(0, 0)) for _ in range(MOST_LANES + 3)]
    found = traced([*asked, *(wire.answer(Q.GET_VRING_BASE, VringState(0, 0)) for _ in asked)])
    assert len([each for each in found if each["ph"] == "s"]) == MOST_LANES


@given(st.lists(events, max_size=12))
def test_any_capture_becomes_a_trace_by_the_rules(found: list[Event]) -> None:
    traced(found)


def test_an_exchange_is_a_slice_as_long_as_its_latency_with_an_arrow_to_its_reply() -> None:
    wire = Wire()
    found = traced([wire.ask(Q.GET_FEATURES), wire.answer(Q.GET_FEATURES, U64(5))])
    assert of_kind(found, "X") == [("main channel", "GET_FEATURES"), ("main channel: replies", "GET_FEATURES")]
    asked, answered = (each for each in found if each["ph"] == "X")
    assert (asked["ts"], asked["dur"], answered["ts"]) == (0, 1, 1)
    assert asked["args"]["reply"] == 5
    assert [each["ts"] for each in found if each["ph"] in "sf"] == [0, 1]


def test_both_channels_and_all_connections_have_tracks() -> None:
    one, two = Wire(0), Wire(3)
    found = traced([*one.agreed(), *one.map(0, 4096), two.ask(Q.GET_FEATURES), two.answer(Q.GET_FEATURES, U64(5))])
    processes = {each["pid"]: each["args"]["name"] for each in found if each["name"] == "process_name"}
    names = [(processes[process], name) for (process, _), name in tracks(found).items()]
    channels = ["main channel", "main channel: replies", "back-end channel", "back-end channel: replies"]
    first = [("connection 0", name) for name in ["remarks", *channels]]
    assert names == [*first, *(("connection 3", name) for name in channels[:2])]
    assert list(processes.values()) == ["connection 0", ALL, "connection 3"]


def test_what_is_mapped_is_counted() -> None:
    wire = Wire()
    refused = wire.map(0x10000, 4096, status=1)
    mapped = [*wire.agreed(), *wire.map(0, 4096), *refused, *wire.map(4096, 8192), *wire.unmap(0, 4096)]
    found = traced([*mapped, wire.remark(Remarkable.CLOSED)])
    assert [each["args"]["bytes"] for each in found if each["ph"] == "C"] == [0, 4096, 12288, 8192, 0]
    assert ("back-end channel", "SHMEM_MAP, refused") in of_kind(found, "X")


def test_what_has_no_reply_is_an_instant() -> None:
    wire = Wire()
    found = traced([wire.ask(Q.SET_OWNER), wire.ask(Q.GET_VRING_BASE, VringState(0, 0)), wire.say(B.SHMEM_MAP)])
    assert of_kind(found, "i") == [
        ("main channel", "SET_OWNER"),
        ("back-end channel", "SHMEM_MAP"),
        ("main channel", "GET_VRING_BASE, no reply"),
    ]


def test_requests_at_the_same_time_get_tracks_of_their_own() -> None:
    found = traced(used_at_once(3))
    assert of_kind(found, "X") == [("queue 1", f"IN sector={n} bytes=512") for n in range(3)]
    assert len(tracks(found)) == 3


def asked(at: int, head: int, *, queue: int = 0) -> Offered:
    """A disk is asked for a sector."""
    buffers = (Buffer(0, 16, writable=False), Buffer(0, 512, writable=True), Buffer(0, 1, writable=True))
    return Offered(at, 0, queue, head, buffers, HEADER.pack(BlockRequest.IN, 0, head))


def used_at_once(count: int) -> Iterator[Event]:
    """Requests that are all given back after the last one was offered."""
    yield from (asked(BEGAN + n * MICROSECOND, n, queue=1) for n in range(count))
    yield from (Used(BEGAN + (count + n) * MICROSECOND, 0, 1, n, 0) for n in range(count))


def test_tracks_are_bounded() -> None:
    found = traced(used_at_once(MOST_LANES + 5))
    assert len(tracks(found)) == MOST_LANES
    assert len(of_kind(found, "i")) == 5


def test_requests_of_rings_are_slices_and_those_never_used_are_told() -> None:
    base: list[Event] = [
        asked(BEGAN, 7),
        Used(BEGAN + 5000, 0, 0, 7, 512),
        Used(BEGAN + 9000, 0, 0, 8, 0, after=2000),
    ]
    found = traced([*base, Used(BEGAN + 9500, 0, 0, 9, 0), asked(BEGAN + 9900, 1)])
    assert [(each["ts"], each["dur"]) for each in found if each["ph"] == "X"] == [(0, 5), (7, 2)]
    assert of_kind(found, "X") == [("queue 0", "IN sector=7 bytes=512"), ("queue 0", "request 8")]
    assert of_kind(found, "i") == [("queue 0", "request 9"), ("queue 0", "IN sector=1 bytes=512, never used")]


def test_times_keep_their_nanoseconds_and_are_never_before_the_beginning() -> None:
    wire = Wire()
    asked, answered = wire.ask(Q.GET_FEATURES), wire.answer(Q.GET_FEATURES, U64(5))
    days = 30 * 86_400_000_000_000
    found = traced(
        [wire.remark(Remarkable.OPENED), replace(asked, at=BEGAN + days + 1), replace(answered, at=BEGAN + days + 3)]
    )
    assert next(each["dur"] for each in found if each["ph"] == "X") == 0.002
    traced([wire.remark(Remarkable.OPENED), replace(asked, at=5), replace(answered, at=3)])


def test_what_settles_late_began_where_it_did() -> None:
    wire = Wire()
    asked, other = wire.ask(Q.GET_VRING_BASE, VringState(0, 0)), wire.ask(Q.SET_OWNER)
    found = traced([asked, other, wire.answer(Q.GET_VRING_BASE, VringState(0, 0))])
    assert [(each["name"], each["ts"], each.get("dur")) for each in found if each["ph"] in "Xi"][:2] == [
        ("SET_OWNER", 1, None),
        ("GET_VRING_BASE", 0, 2),
    ]
