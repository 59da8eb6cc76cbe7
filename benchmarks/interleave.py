"""Time named pairs of peers against each other: pinned to one CPU, interleaved A B C A B C, medians and ratios."""

from __future__ import annotations

import argparse
import os
import shutil
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import fetch_rust

HERE = Path(__file__).resolve().parent
LEN = 2 << 20
# A shared core is now fast, now slow, for a few tenths of a second at a time. Many short rounds put both of a ratio's
# terms in the same phase: the baseline against itself stays within 2 %, where 7 rounds of 12,000 pairs are 10 % off.
COUNT = 1_500
ROUNDS = 41


class PairFailed(RuntimeError):
    """A peer failed, said something else than a number, or passed its deadline."""


@dataclass(frozen=True, slots=True)
class Pair:
    """Two commands; `{fd}` stands for the number of the socket each inherits. The back-end prints ns_per_pair."""

    name: str
    frontend: list[str]
    backend: list[str]


@dataclass(frozen=True, slots=True)
class Spread:
    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(statistics.median(values), min(values), max(values))


@dataclass(frozen=True, slots=True)
class Result:
    """One pair's nanoseconds, and its ratio to the baseline pair of the same round."""

    name: str
    ns: Spread
    ratio: Spread
    samples: tuple[float, ...] = ()
    """Nanoseconds, one a round: what was measured in the same round may be compared."""

    @property
    def pairs_a_second(self) -> float:
        return 1e9 / self.ns.median


def interleave(
    pairs: Sequence[Pair],
    *,
    baseline: str,
    rounds: int = ROUNDS,
    deadline: float = 60.0,
    cpu: int | None = None,
) -> list[Result]:
    """Run every pair once a round; a ratio is the median of the rounds' ratios, not the ratio of the medians."""
    if rounds < 1 or rounds % 2 == 0:
        raise ValueError(f"rounds {rounds} is not odd: the median would be of no round")
    if baseline not in {pair.name for pair in pairs}:
        raise ValueError(f"baseline {baseline!r} is none of the pairs")
    on = max(os.sched_getaffinity(0)) if cpu is None else cpu
    samples: dict[str, list[float]] = {pair.name: [] for pair in pairs}
    for _ in range(rounds):
        for pair in pairs:
            samples[pair.name].append(run_once(pair, cpu=on, deadline=deadline))
    base = samples[baseline]
    return [
        Result(name, Spread.of(ns), Spread.of([mine / theirs for mine, theirs in zip(ns, base, strict=True)]), tuple(ns))
        for name, ns in samples.items()
    ]


def run_once(pair: Pair, *, cpu: int, deadline: float) -> float:
    """Run one pair to its end on one CPU; the nanoseconds its back-end measured."""
    ends = time.monotonic() + deadline
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with right:
        with left:
            frontend = _start(pair.frontend, left, cpu, stdout=subprocess.DEVNULL)
        try:
            backend = _start(pair.backend, right, cpu, stdout=subprocess.PIPE)
        except OSError:
            _stop(frontend)
            raise
    try:
        printed, _ = backend.communicate(timeout=ends - time.monotonic())
        frontend.wait(timeout=max(0.1, ends - time.monotonic()))
    except subprocess.TimeoutExpired as late:
        raise PairFailed(f"{pair.name}: not done after {deadline:g} s: {late.cmd[0]}") from None
    finally:
        _stop(backend)
        _stop(frontend)
    if backend.returncode or frontend.returncode:
        raise PairFailed(f"{pair.name}: exit codes: front-end {frontend.returncode}, back-end {backend.returncode}")
    return _number(pair.name, printed)


def _start(command: list[str], end: socket.socket, cpu: int, *, stdout: int) -> subprocess.Popen[str]:
    fd = end.fileno()
    words = [word.replace("{fd}", str(fd)) for word in command]
    with _pinned(cpu):
        return subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=stdout, text=True, pass_fds=(fd,))


@contextmanager
def _pinned(cpu: int) -> Iterator[None]:
    """What is started inside inherits this one CPU."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {cpu})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _stop(child: subprocess.Popen[str]) -> None:
    """Kill what still runs, by its own pid, and reap it."""
    if child.poll() is None:
        child.kill()
    child.wait()
    if child.stdout is not None:
        child.stdout.close()


def _number(name: str, printed: str) -> float:
    try:
        return float(printed)
    except ValueError:
        raise PairFailed(f"{name}: the back-end printed {printed!r}, not ns_per_pair") from None


def table(results: Sequence[Result], *, baseline: str) -> str:
    """The results as a Markdown table."""
    head = f"| pair (front-end - back-end) | ns a pair | range | pairs/s | time / {baseline} | range |"
    rows = [
        f"| {row.name} | {row.ns.median:,.0f} | {row.ns.low:,.0f}-{row.ns.high:,.0f} | {row.pairs_a_second:,.0f} "
        f"| {row.ratio.median:.2f} | {row.ratio.low:.2f}-{row.ratio.high:.2f} |"
        for row in results
    ]
    return "\n".join([head, "|---|---|---|---|---|---|", *rows])


def build_c() -> Path:
    """Compile pair.c into the cache, if it is newer than the binary there."""
    source, binary = HERE / "pair.c", fetch_rust.cache() / "pair" / "pair"
    if not binary.exists() or binary.stat().st_mtime < source.stat().st_mtime:
        binary.parent.mkdir(parents=True, exist_ok=True)
        compiler = os.environ.get("CC") or shutil.which("gcc") or "cc"
        flags = ["-std=c11", "-O2", "-Wall", "-Wextra", "-Werror"]
        subprocess.run([compiler, *flags, str(source), "-o", str(binary)], check=True)
    return binary


def foreign_pairs(c: str, rust: str | None, *, count: int, size: int, live: int) -> list[Pair]:
    """The peers that are not ours, each alone and crossed with the minimal C one. The first is the baseline."""
    load = ["backend", "--fd", "{fd}", "--count", str(count), "--len", str(size), "--live", str(live)]
    serve = ["frontend", "--fd", "{fd}"]
    pairs = [
        Pair("C minimal", [c, *serve], [c, *load]),
        Pair("C minimal again", [c, *serve], [c, *load]),  # how far from 1.00 it comes is the noise
        Pair("C safe", [c, *serve, "--safe"], [c, *load]),
    ]
    if rust is not None:
        pairs += [
            Pair("rust", [rust, *serve], [rust, *load]),
            Pair("rust - C", [rust, *serve], [c, *load]),
            Pair("C minimal - rust", [c, *serve], [rust, *load]),
            Pair("C safe - rust", [c, *serve, "--safe"], [rust, *load]),
        ]
    return pairs


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="odd [%(default)s]")
    parser.add_argument("--count", type=int, default=COUNT, help="pairs a measurement [%(default)s]")
    parser.add_argument("--len", type=int, default=LEN, help="bytes a mapping [%(default)s]")
    parser.add_argument("--live", type=int, nargs="+", default=[0], metavar="K", help="further live mappings [0]")
    parser.add_argument("--baseline", metavar="NAME", help="what the others are compared with [the first pair]")
    parser.add_argument("--cpu", type=int, help="the one CPU for both peers [the last allowed one]")
    parser.add_argument("--rust", action="store_true", help="build the rust-vmm pair if it is not there")
    return parser.parse_args()


def _chosen_pairs(args: argparse.Namespace) -> list[Pair]:
    rust = fetch_rust.build() if args.rust else fetch_rust.built(fetch_rust.PAIR)
    c = build_c()
    chosen: list[Pair] = []
    for live in args.live:
        suffix = f", {live:,} live" if live else ""
        pairs = foreign_pairs(str(c), str(rust) if rust else None, count=args.count, size=args.len, live=live)
        chosen += [replace(pair, name=pair.name + suffix) for pair in pairs]
    return chosen


def main() -> int:
    args = _arguments()
    try:
        pairs = _chosen_pairs(args)
        baseline = args.baseline or pairs[0].name
        print(table(interleave(pairs, baseline=baseline, rounds=args.rounds, cpu=args.cpu), baseline=baseline))
    except (PairFailed, OSError, ValueError, subprocess.CalledProcessError) as failure:
        print(f"interleave: {failure}", file=sys.stderr)
        return 1
    except fetch_rust.Unavailable as reason:
        print(f"interleave: {reason}", file=sys.stderr)
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(main())
