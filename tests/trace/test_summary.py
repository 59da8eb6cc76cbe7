"""Counts, and times that no list is kept of."""

from __future__ import annotations

import json
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vhostuser.protocol.payloads import U64
from vhostuser.protocol.rules import Channel
from vhostuser.protocol.state import Role
from vhostuser.trace.conversation import Conversation
from vhostuser.trace.event import Event, Message, Remarkable, Used
from vhostuser.trace.histogram import Histogram
from vhostuser.trace.summary import MOST_ROWS, OTHERS, Row, Summary

from .building import BEGAN, B, Q, Wire, items_of


def summary_of(*events: Event) -> Summary:
    summary = Summary()
    for item in items_of(events):
        summary.take(item)
    return summary


def row(summary: Summary, name: str) -> Row:
    return next(each for each in summary.rows() if each.name == name)


def test_requests_are_counted_with_what_came_of_them() -> None:
    wire = Wire()
    maps = [*wire.map(0, 0x1000), *wire.map(0x1000, 0x1000, status=22)]
    summary = summary_of(*wire.agreed(), *maps, wire.call(B.SHMEM_MAP, None), wire.say(B.SHMEM_UNMAP))
    found = row(summary, "SHMEM_MAP")
    assert (found.channel, found.calls, found.refused, found.unanswered, found.wrong) == ("back-end", 3, 1, 1, 1)
    assert (found.bytes, found.fds, found.latency.count) == (52 * 2 + 20 * 2 + 12, 2, 2)
    assert (row(summary, "SHMEM_UNMAP").calls, row(summary, "SHMEM_UNMAP").wrong) == (0, 1)
    total = summary.total()
    assert (total.calls, total.refused, total.unanswered, total.wrong, total.fds) == (7, 1, 1, 2, 2)


def test_the_same_number_on_both_channels_has_two_rows() -> None:
    wire = Wire()
    summary = summary_of(wire.ask(Q.IOTLB_MSG), wire.call(B.IOTLB_MSG, None))
    assert [(each.name, each.channel) for each in summary.rows()] == [("IOTLB_MSG", "back-end"), ("IOTLB_MSG", "front-end")]


def test_what_was_mapped_at_most_is_remembered_past_a_reset() -> None:
    wire = Wire()
    events = [*wire.agreed(), *wire.map(0, 0x3000), *wire.map(0x4000, 0x1000), *wire.unmap(0, 0x3000)]
    summary = summary_of(*events, wire.ask(Q.RESET_DEVICE), *wire.map(0, 0x1000))
    assert (summary.most_mapped, summary.most_mappings) == (0x4000, 2)


def test_queues_have_rows_of_their_own_and_are_not_in_the_total() -> None:
    used = [Used(BEGAN, 0, 2, 0, 512, after=1000), Used(BEGAN + 5, 0, 2, 1, 513, after=-1)]
    summary = summary_of(*used)
    found = row(summary, "queue 2")
    assert (found.calls, found.bytes, found.latency.count, summary.total().calls) == (2, 1025, 1, 0)


def test_the_table_has_a_line_a_request_and_the_total() -> None:
    wire = Wire()
    table = summary_of(*wire.agreed(), *wire.map(0, 0x1000), wire.remark(Remarkable.CLOSED)).table()
    lines = table.splitlines()
    assert lines[0].split() == [
        *("%", "time", "mean", "median", "p99", "max", "calls", "refused", "no", "reply", "wrong", "bytes", "fds"),
        *("request", "channel"),
    ]
    (shmem,) = [line.split() for line in lines if "SHMEM_MAP" in line]
    assert shmem == ["33.33", *["1.0", "µs"] * 4, "1", "72", "1", "SHMEM_MAP", "back-end"]
    assert lines[-2].split()[-4:] == ["5", "176", "1", "total"]
    assert lines[-1] == "1 connection, 0.000 s; mapped at most: 4096 bytes, in 1 mappings at a time"
    assert lines[1].replace("-", "").strip() == ""


def test_a_table_of_nothing_is_empty() -> None:
    assert len(summary_of().table().splitlines()) == 5
    assert summary_of().as_json()["requests"] == []


def test_the_object_has_the_same_numbers() -> None:
    wire = Wire()
    found = json.loads(json.dumps(summary_of(*wire.agreed(), *wire.map(0, 0x1000)).as_json()))
    (mapped,) = [each for each in found["requests"] if each["request"] == "SHMEM_MAP"]
    counts = {"calls": 1, "refused": 0, "unanswered": 0, "wrong": 0, "bytes": 72, "fds": 1}
    times = {"mean_us": 1.0, "median_us": 1.0, "p99_us": 1.0, "max_us": 1.0}
    assert mapped == {"request": "SHMEM_MAP", "channel": "back-end"} | counts | times
    assert (found["total"]["calls"], found["connections"], found["most_mapped"]) == (5, 1, 0x1000)


def unknown(request: int) -> Message:
    data = request.to_bytes(4, "little") + b"\x01\0\0\0\0\0\0\0"
    return Message(BEGAN + request, 0, Channel.FRONTEND, Role.FRONTEND, data)


def test_unknown_requests_do_not_grow_it() -> None:
    conversation, summary = Conversation(), Summary()
    for request in range(100, 100 + 2 * MOST_ROWS):
        for item in conversation.take(unknown(request)):
            summary.take(item)
    rows = summary.rows()
    assert len(rows) == MOST_ROWS + 1
    assert row(summary, OTHERS).calls == MOST_ROWS
    assert summary.total().calls == 2 * MOST_ROWS


def test_memory_does_not_grow_with_what_is_counted() -> None:
    conversation, summary, wire = Conversation(), Summary(), Wire()

    def count(times: int) -> int:
        for _ in range(times):
            for event in [*wire.map(0, 0x1000), *wire.unmap(0, 0x1000), wire.ask(Q.SET_STATUS, U64(1))]:
                for item in conversation.take(event):
                    summary.take(item)
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        for event in wire.agreed():
            conversation.take(event)
        before = count(200)
        assert count(2000) - before < 20_000
    finally:
        tracemalloc.stop()


@given(st.lists(st.integers(0, 1 << 50), min_size=1, max_size=60), st.sampled_from([1, 50, 90, 99, 100]))
def test_a_percentile_is_near_that_of_the_sorted_list(values: list[int], percent: int) -> None:
    histogram = Histogram()
    for value in values:
        histogram.add(value)
    exact = sorted(values)[max(0, -(-len(values) * percent // 100) - 1)]
    assert histogram.percentile(percent) == pytest.approx(exact, rel=1 / 32, abs=0)
    assert (histogram.count, histogram.sum, histogram.greatest, histogram.least) == (
        len(values),
        sum(values),
        max(values),
        min(values),
    )
    assert histogram.mean == sum(values) // len(values)


@given(st.lists(st.integers(0, 1 << 40), max_size=30), st.lists(st.integers(0, 1 << 40), max_size=30))
def test_merged_histograms_are_those_of_all_values(some: list[int], others: list[int]) -> None:
    merged, second, together = Histogram(), Histogram(), Histogram()
    for value in some:
        merged.add(value)
    for value in others:
        second.add(value)
    for value in [*some, *others]:
        together.add(value)
    merged.merge(second)
    assert merged.buckets() == together.buckets()
    assert (merged.count, merged.sum, merged.least, merged.greatest) == (
        *(together.count, together.sum, together.least, together.greatest),
    )


def test_a_clock_that_was_set_back_counts_as_no_time() -> None:
    histogram = Histogram()
    histogram.add(-5)
    assert (histogram.percentile(50), histogram.mean, Histogram().percentile(99)) == (0, 0, 0)
