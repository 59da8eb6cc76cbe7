"""Print each performance goal with today's ratio, from one interleaved run with both sides of every pair on one CPU.

`goals.py` builds the C pair, and the Rust one where cargo is; without them the goals that need them say so.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import blk
import fetch_rust
import ring
from interleave import COUNT, ROUNDS, Pair, PairFailed, Result, build_c, foreign_pairs, interleave, table
from peers import time_reset

from vhostuser import accelerated

PEERS = str(Path(__file__).resolve().parent / "peers.py")
LEN = 2 << 20
MANY = 32
LIVE = (10, 4_000)
RESET_MAPS = 4_096


@dataclass(frozen=True, slots=True)
class Goal:
    """A ratio of two pairs' times, or of their rates, and what it has to be."""

    text: str
    pair: str
    against: str
    limit: float
    rate: bool = False

    def line(self, samples: dict[str, Result]) -> str:
        """The goal with its ratio: the median over the rounds."""
        if self.pair not in samples or self.against not in samples:
            return f"  --    not measured  {self.text}"
        pairs = zip(samples[self.against].samples, samples[self.pair].samples, strict=True)
        ratio = statistics.median(theirs / ours if self.rate else ours / theirs for theirs, ours in pairs)
        met = ratio >= self.limit if self.rate else ratio <= self.limit
        sign, word = (">=", "rate") if self.rate else ("<=", "time")
        return f"  {'met ' if met else 'MISS'}  {word} {ratio:4.2f}x {sign} {self.limit:.2f}x  {self.text}"


GOALS = (
    Goal("map + ack + unmap + ack, both sides ours, against the minimal C pair", "ours", "C minimal", 1.30),
    Goal("the same against the C pair that takes the same safe steps", "ours", "C safe", 1.15),
    Goal("the same against rust-vmm vhost 0.17", "ours", "rust", 0.9, rate=True),
    Goal("our front-end alone, against the minimal C front-end (C back-end)", "our front-end - C", "C minimal", 1.15),
    Goal("our front-end alone, against the safe C front-end (C back-end)", "our front-end - C", "C safe", 1.15),
    Goal("our device's map and unmap alone, against the C back-end (C front-end)", "C - our device", "C minimal", 1.30),
    Goal("pure Python, both sides ours", "ours, pure Python", "C minimal", 2.5),
    Goal(f"map_many({MANY}) against one by one", f"ours, {MANY} at once", "ours", 2.0, rate=True),
    Goal(f"map_many({MANY}) against rust-vmm one by one", f"ours, {MANY} at once", "rust", 2.0, rate=True),
    Goal(f"a map with {LIVE[1]:,} live ones against {LIVE[0]}", f"ours, {LIVE[1]:,} live", f"ours, {LIVE[0]} live", 1.2),
)


def our_pairs(c: str, count: int) -> list[Pair]:
    """Every pair with a side of ours."""
    python = [sys.executable, PEERS]
    load = ["--count", str(count), "--len", str(LEN)]
    fd = ["--fd", "{fd}"]
    pure = ["/usr/bin/env", "VHOSTUSER_PURE=1"]
    whole = [*python, "whole-frontend", *fd]
    back = [*python, "whole-backend", *fd, *load]
    return [
        Pair("ours", whole, back),
        Pair("our front-end - C", [*python, "frontend", *fd], [c, "backend", *fd, *load]),
        Pair("C - our device", [c, "frontend", *fd], [*python, "backend", *fd, *load]),
        Pair("ours, pure Python", [*pure, *whole], [*pure, *back]),
        Pair(f"ours, {MANY} at once", whole, [*back, "--many", str(MANY)]),
        *(Pair(f"ours, {live:,} live", whole, [*back, "--live", str(live)]) for live in LIVE),
    ]


def rust_binary() -> str | None:
    """The Rust pair, built if cargo and the crates can be had."""
    try:
        return str(fetch_rust.build())
    except fetch_rust.Unavailable as reason:
        print(f"no Rust pair: {reason}", file=sys.stderr)
        return None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="odd [%(default)s]")
    parser.add_argument("--count", type=int, default=COUNT, help="pairs a measurement [%(default)s]")
    args = parser.parse_args()
    if not accelerated:
        print("the compiled half is not in use: build it (make setup) and unset VHOSTUSER_PURE", file=sys.stderr)
        return 1
    try:
        c = str(build_c())
        foreign = foreign_pairs(c, rust_binary(), count=args.count, size=LEN, live=0)
        wanted = {"C minimal", "C minimal again", "C safe", "rust"}
        pairs = [pair for pair in foreign if pair.name in wanted] + our_pairs(c, args.count)
        started = time.monotonic()
        results = interleave(pairs, baseline="C minimal", rounds=args.rounds)
        rings = ring.report(ring.interleaved(ring.ROUNDS, ring.MILLISECONDS))
        disks = blk.lines_for_goals()
    except (PairFailed, blk.LoadFailed, OSError, ValueError, ImportError, subprocess.CalledProcessError) as failure:
        print(f"goals: {failure}", file=sys.stderr)
        return 1
    print(table(results, baseline="C minimal"))
    elapsed = time.monotonic() - started
    print(f"\n{args.rounds} rounds of {args.count:,} pairs, mapped {LEN >> 20} MiB each, in {elapsed:.0f} s\n")
    samples = {row.name: row for row in results}
    for goal in GOALS:
        print(goal.line(samples))
    safe = samples["C safe"].ratio.median
    print(f"  note  the safe steps alone (C safe) take {safe:.2f}x the time of the minimal C pair on this machine")
    seconds = time_reset(RESET_MAPS)
    print(f"  {'met ' if seconds <= 1 else 'MISS'}  {seconds * 1000:.0f} ms <= 1 s  reset of {RESET_MAPS:,} mappings\n")
    print("\n".join([*rings, "", *disks]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
