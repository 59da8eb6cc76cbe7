"""Chrome-trace JSON: by the format's rules, with what each part of a capture is drawn as."""

from __future__ import annotations

import io
import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import pairwise
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from vhostuser.protocol.payloads import U64, VringState
from vhostuser.trace.chrome import write_chrome
from vhostuser.trace.event import Buffer, Event, Offered, Remarkable, Used
from vhostuser.trace.tracks import MOST_LANES
from vhostuser.virtio.block import HEADER, BlockRequest

from .building import BEGAN, MICROSECOND, B, Q, Wire
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
    """What the Trace Event Format asks of the kinds of events that there are."""
    for each in found:
        assert isinstance(each["name"], str)
        assert type(each["pid"]) is type(each["tid"]) is int
        assert each["ph"] == "M" or (isinstance(each["ts"], int | float) and each["ts"] >= 0)
        KINDS[each["ph"]](each)
    named = {(each["pid"], each["tid"]) for each in found if each["name"] == "thread_name"}
    assert {(each["pid"], each["tid"]) for each in found if each["ph"] in "Xisf"} <= named
    slices_do_not_overlap(found)
    arrows_join_slices(found)


KINDS: dict[str, Callable[[Json], bool]] = {
    "M": lambda each: each["name"] in ("process_name", "thread_name") or _wrong(each),
    "X": lambda each: each["dur"] >= 0 or _wrong(each),
    "i": lambda each: each["s"] == "t" or _wrong(each),
    "C": lambda each: all(isinstance(value, int) for value in each["args"].values()) or _wrong(each),
    "s": lambda each: isinstance(each["id"], int) or _wrong(each),
    "f": lambda each: each["bp"] == "e" or _wrong(each),
}


def _wrong(each: Json) -> bool:
    raise AssertionError(each)


def slices_do_not_overlap(found: list[Json]) -> None:
    tracks: dict[tuple[int, int], list[tuple[float, float]]] = defaultdict(list)
    for each in found:
        if each["ph"] == "X":
            tracks[each["pid"], each["tid"]].append((each["ts"], each["ts"] + each["dur"]))
    for slices in tracks.values():
        slices.sort()
        assert all(end <= start + 1e-6 for (_, end), (start, _) in pairwise(slices))


def arrows_join_slices(found: list[Json]) -> None:
    drawn = {(each["pid"], each["tid"], each["ts"]) for each in found if each["ph"] in "Xi"}
    ends = {each["id"]: each for each in found if each["ph"] == "f"}
    starts = [each for each in found if each["ph"] == "s"]
    assert [each["id"] for each in starts] == list(ends)
    for start in starts:
        end = ends[start["id"]]
        assert (start["name"], start["cat"]) == (end["name"], end["cat"])
        assert {(each["pid"], each["tid"], each["ts"]) for each in (start, end)} <= drawn


def tracks(found: list[Json]) -> dict[tuple[int, int], str]:
    return {(each["pid"], each["tid"]): each["args"]["name"] for each in found if each["name"] == "thread_name"}


def of_kind(found: list[Json], kind: str) -> list[tuple[str, str]]:
    """Tracks and titles of the events of a kind."""
    names = tracks(found)
    return [(names[each["pid"], each["tid"]], each["name"]) for each in found if each["ph"] == kind]


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
    names = [(process, name) for (process, _), name in tracks(found).items()]
    channels = ["main channel", "main channel: replies", "back-end channel", "back-end channel: replies"]
    assert names == [(0, "remarks"), *((0, name) for name in channels), (3, "main channel"), (3, "main channel: replies")]
    assert [each["args"]["name"] for each in found if each["name"] == "process_name"] == ["connection 0", "connection 3"]


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
