"""The benchmarks' own arithmetic, and a short run of each: what they print was measured, and a miss is called one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import fetch_rust
import neighbour
import pytest
import ring
from goals import GOALS, Goal, our_pairs
from interleave import Pair, PairFailed, Result, Spread, foreign_pairs, interleave, run_once
from peers import time_reset
from ring_bench import CHAINS, Bench, PackedBench
from soak import Held, Leak, Report

from vhostuser import accelerated
from vhostuser.testing import sparse_file

HERE = Path(__file__).resolve().parents[2] / "benchmarks"
TRUE = [sys.executable, "-c", "pass"]


def prints(text: str) -> list[str]:
    return [sys.executable, "-c", f"print({text!r})"]


def result(name: str, *samples: float) -> Result:
    return Result(name, Spread.of(samples), Spread.of([1.0]), samples)


@pytest.mark.parametrize(
    ("ours", "limit", "rate", "word"),
    [
        ((13, 26, 39), 1.30, False, "met   time 1.30x <= 1.30x"),
        ((14, 26, 42), 1.30, False, "MISS  time 1.40x <= 1.30x"),
        ((5, 10, 15), 2.0, True, "met   rate 2.00x >= 2.00x"),
        ((6, 12, 15), 2.0, True, "MISS  rate 1.67x >= 2.00x"),
    ],
)
def test_a_goal_is_met_or_missed_by_the_median_of_its_rounds(
    ours: tuple[float, ...], limit: float, rate: bool, word: str
) -> None:
    samples = {"ours": result("ours", *ours), "theirs": result("theirs", 10, 20, 30)}
    assert Goal("text", "ours", "theirs", limit, rate).line(samples) == f"  {word}  text"


def test_a_goal_whose_peer_is_not_there_was_not_measured() -> None:
    assert "not measured" in Goal("text", "ours", "rust", 1.0).line({"ours": result("ours", 1, 2, 3)})


def test_every_goal_names_pairs_that_are_run() -> None:
    named = {pair.name for pair in foreign_pairs("c", "rust", count=1, size=1, live=0) + our_pairs("c", 1)}
    assert {goal.pair for goal in GOALS} | {goal.against for goal in GOALS} <= named


def test_a_ratio_is_of_the_same_round() -> None:
    rows = interleave([Pair("a", TRUE, prints("10")), Pair("b", TRUE, prints("15"))], baseline="a", rounds=3)
    assert [row.ratio.median for row in rows] == [1.0, 1.5]
    assert rows[1].samples == (15.0, 15.0, 15.0)


@pytest.mark.parametrize(
    ("pair", "text"),
    [
        (Pair("x", TRUE, prints("fast")), "printed 'fast"),
        (Pair("x", TRUE, [sys.executable, "-c", "raise SystemExit(3)"]), "back-end 3"),
        (Pair("x", [sys.executable, "-c", "raise SystemExit(4)"], prints("1")), "front-end 4"),
        (Pair("x", TRUE, [sys.executable, "-c", "import time; time.sleep(60)"]), "not done after 0.5 s"),
    ],
)
def test_a_peer_that_fails_is_an_error_and_no_number(pair: Pair, text: str) -> None:
    with pytest.raises(PairFailed, match=text):
        run_once(pair, cpu=max(os.sched_getaffinity(0)), deadline=0.5 if "not done" in text else 30)


@pytest.mark.parametrize("arguments", [{"rounds": 2}, {"rounds": 0}, {"baseline": "c"}])
def test_rounds_are_odd_and_the_baseline_is_a_pair(arguments: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"rounds|baseline"):
        interleave([Pair("a", TRUE, prints("1"))], **{"baseline": "a", "rounds": 1} | arguments)  # type: ignore[arg-type]


def test_our_pairs_map_and_unmap() -> None:
    """Each of those that need no C compiler, with few mappings: it ends well and prints nanoseconds."""
    for pair in our_pairs("c", 64):
        if "C" not in pair.name:
            assert run_once(pair, cpu=max(os.sched_getaffinity(0)), deadline=60) > 100


def test_a_reset_is_timed() -> None:
    assert 0 < time_reset(100) < 60


# Rings


def test_a_ring_goal_is_met_or_missed_by_the_median_of_its_rounds() -> None:
    samples = {name: [2.0, 4.0, 9.0] for name in ring.ROWS} | {"C allocating": [2.4, 4.4, 11.0]}
    lines = ring.report(samples)
    assert "| pure Python | 4.0 | 2.0-9.0 | 1.000 |" in lines
    assert [line[:35] for line in lines[-len(ring.GOALS) :]] == [
        "  met   rate  1.00x >= 0.50x  ring:",
        "  met   rate  1.20x >= 1.20x  ring:",
        "  MISS  rate  1.00x >= 3.00x  ring:",
        "  met   rate  1.00x >= 0.70x  ring:",
        "  MISS  rate  1.00x >= 1.25x  ring:",
    ]


def test_a_ring_goal_whose_peer_can_not_be_built_was_not_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def unavailable(name: str) -> Path:
        raise fetch_rust.Unavailable("cargo is not installed")

    monkeypatch.setattr(fetch_rust, "build", unavailable)
    monkeypatch.setattr(ring, "ROWS", {name: row for name, row in ring.ROWS.items() if "virtio" in name or "pure" in name})
    samples = ring.interleaved(1, 1)
    assert set(samples) == {"pure Python", "packed, pure Python"}
    assert "no virtio-queue, descriptors: cargo is not installed" in capsys.readouterr().err
    full = {name: [1.0] for name in ("C lean", "packed, C lean")} | samples
    assert ring.report(full)[-1] == ("  --    not measured  ring: Python handler against virtio-queue, Reader and Writer")


def test_every_ring_goal_names_rows_that_are_run() -> None:
    assert {name for ours, theirs, _ in ring.GOALS for name in (ours, theirs)} <= set(ring.ROWS)
    assert {ring.baseline(name) for name in ring.ROWS} <= set(ring.ROWS)


@pytest.mark.parametrize("pure", [False, True] if accelerated else [True])
def test_a_ring_row_takes_and_gives_back_every_chain(pure: bool) -> None:
    bench = Bench(pure=pure)
    assert bench.one_by_one(300) > 0
    indices, elements = bench.used[:4].cast("H"), bench.used[4:].cast("I")
    assert bench.queue.base == indices[1] == 300 * CHAINS % (1 << 16)
    assert elements[:6].tolist() == [0, 1, 3, 1, 6, 1]
    if not pure:
        bench.many(3)
        assert indices[1] == 303 * CHAINS % (1 << 16)
    assert ring.measure(bench.one_by_one, 1) > 0


@pytest.mark.parametrize("pure", [False, True] if accelerated else [True])
def test_a_packed_row_takes_and_gives_back_every_chain(pure: bool) -> None:
    bench = PackedBench(pure=pure)
    assert bench.one_by_one(3) > 0
    assert bench.queue.base == 0, "both wrap counters have changed three times"
    flags = bench.descriptors.cast("H")[7::8].tolist()
    assert flags[::3] == [0x8082] * CHAINS
    if not pure:
        bench.many(1)
        assert bench.descriptors.cast("H")[7::8].tolist()[::3] == [2] * CHAINS


# The neighbour


def test_a_neighbour_is_measured_by_turns_of_the_same_peer() -> None:
    lines = neighbour.report({"a": [neighbour.Turn(100, 80), neighbour.Turn(50, 10), neighbour.Turn(10, 9)]})
    assert lines[0] == "  note  50 requests a second, 32 in flight, beside a peer that rests"
    assert lines[1] == "  met   rate 0.80x >= 0.80x  the neighbour of a device whose front-end a (0.20-0.90)"
    assert neighbour.report({"a": [neighbour.Turn(100, 79)]})[1].startswith("  MISS  rate 0.79x")


@pytest.mark.parametrize("name", neighbour.ATTACKS)
def test_a_neighbour_has_requests_done_beside_each_attack(name: str) -> None:
    for turn in neighbour.ratios(name, 2, 1):
        assert turn.resting > 0
        assert turn.attacked > 0


# The soak


def test_a_process_that_holds_more_is_a_leak() -> None:
    report = Report(os.getpid(), 1 << 20)
    assert len(list(report.check())) == 2
    with sparse_file(1), pytest.raises(Leak, match="front-end: Held"):
        list(report.check())


def test_memory_that_grows_is_a_leak() -> None:
    report = Report(os.getpid(), 1 << 20)
    grown = bytearray(b"x" * (32 << 20))
    with pytest.raises(Leak, match="resident memory grew by 3"):
        list(report.check())
    assert grown
    assert Held.by(os.getpid()).resident > 32 << 20


def test_a_short_soak() -> None:
    words = [sys.executable, str(HERE / "soak.py"), "--pairs", "2000", "--connections", "20", "--aborts", "20"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("2,000 pairs of map and unmap, 4 KiB to 64 MiB, ")
    assert lines[3].startswith("20 connections and 20 torn off, ")
    assert sum("shared mappings as before, RSS" in line for line in lines) == 4
