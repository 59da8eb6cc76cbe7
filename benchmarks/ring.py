"""What a chain costs the device half of a split queue: ours against C, with all rows in turn on one CPU.

`ring.py` builds the C loops and our native loop, prints nanoseconds a chain and the goals.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
import statistics
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Final

import fetch_rust

from vhostuser import DescriptorChain, _native
from vhostuser.memory.guest import GuestMemory, GuestRegion
from vhostuser.virtio.numbers import DESC_NEXT, DESC_WRITE
from vhostuser.virtio.packed import PackedQueue
from vhostuser.virtio.split import SplitQueue, ring_sizes
from vhostuser.virtqueue import LaidQueue, new_device_queue

HERE: Final = Path(__file__).resolve().parent
SIZE, CHAINS, LENGTHS, MEMORY = 1024, 256, (16, 64, 1), 1 << 20
ROUNDS: Final = 21
MILLISECONDS: Final = 40
"""About how long one row of a round takes: short, so that all rows of a round see the machine in one mood."""

GOALS: Final = (
    ("native loop", "C lean", 0.5),
    ("native loop", "C allocating", 1.2),
    ("Python handler", "pure Python", 3.0),
)
"""Rows, and how many times the second one's speed the first has to reach."""

Serve = Callable[[int], None]


def compiler() -> str:
    return os.environ.get("CC") or shutil.which("gcc") or "cc"


def newer(binary: Path, *sources: Path) -> bool:
    """There is such a file, and it is newer than all it is made of."""
    return binary.exists() and all(binary.stat().st_mtime > source.stat().st_mtime for source in sources)


def build_c() -> Path:
    """Compile ring.c into the cache."""
    source, binary = HERE / "ring.c", fetch_rust.cache() / "ring" / "ring"
    if not newer(binary, source):
        binary.parent.mkdir(parents=True, exist_ok=True)
        flags = ["-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror"]
        subprocess.run([compiler(), *flags, str(source), "-o", str(binary)], check=True)
    return binary


def native_loop() -> ModuleType:
    """Compile ring_loop.pyx into the cache, with the flags of the package's own modules, and load it."""
    source, ring = HERE / "ring_loop.pyx", HERE.parent / "src" / "vhostuser" / "_native" / "ring.pxd"
    folder = fetch_rust.cache() / "ring"
    binary = folder / f"ring_loop{sysconfig.get_config_var('EXT_SUFFIX')}"
    if not newer(binary, source, ring):
        folder.mkdir(parents=True, exist_ok=True)
        c = folder / "ring_loop.c"
        directives = "boundscheck=False,wraparound=False,cdivision=True"
        cython = [sys.executable, "-m", "cython", "-3", "-X", directives, "-I", str(ring.parents[2])]
        subprocess.run([*cython, str(source), "-o", str(c)], check=True)
        include = sysconfig.get_path("include")
        flags = ["-shared", "-fPIC", "-O2", "-std=gnu11", "-fwrapv", "-DNDEBUG", "-w"]
        subprocess.run([compiler(), *flags, f"-I{include}", str(c), "-o", str(binary)], check=True)
    spec = importlib.util.spec_from_file_location("ring_loop", binary)
    if spec is None or spec.loader is None:
        raise ImportError(f"{binary} is no module")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Bench:
    """A queue full of the chains that ring.c has, and its driver."""

    def __init__(self, *, pure: bool) -> None:
        self.descriptors, self.rings, self.used = (memoryview(bytearray(size)) for size in ring_sizes(SIZE))
        self.available = self.rings.cast("H")
        self.memory = memoryview(bytearray(MEMORY))
        for index in range(CHAINS * len(LENGTHS)):
            self._describe(index)
        for position in range(SIZE):
            self.available[2 + position] = position % CHAINS * len(LENGTHS)
        halves = (self.memory[: MEMORY // 2], self.memory[MEMORY // 2 :])
        memory = GuestMemory([GuestRegion(at * MEMORY // 2, 0, half, ()) for at, half in enumerate(halves)])
        parts = (SIZE, self.descriptors, self.rings, self.used, memory)
        self.queue: LaidQueue = SplitQueue(*parts) if pure else new_device_queue(*parts, 0, base=0)

    def _describe(self, index: int) -> None:
        last = index % len(LENGTHS) == len(LENGTHS) - 1
        flags, following = (DESC_WRITE, 0) if last else (DESC_NEXT, index + 1)
        fields = ((index * 64, 8), (LENGTHS[index % len(LENGTHS)], 4), (flags, 2), (following, 2))
        entry = b"".join(value.to_bytes(size, "little") for value, size in fields)
        self.descriptors[16 * index : 16 * index + 16] = entry

    def one_by_one(self, batches: int) -> None:
        """A Python handler for each request, and one publication a batch: what `rings.Rings` does."""
        queue, available = self.queue, self.available
        for _ in range(batches):
            available[1] = (queue.base + CHAINS) & 0xFFFF
            while (chain := queue.pop()) is not None:
                handle(chain)
                queue.push(chain)
            queue.publish()

    def many(self, batches: int) -> None:
        """The same with 16 chains a call."""
        queue, available = self.queue, self.available
        if isinstance(queue, SplitQueue | PackedQueue):
            raise TypeError("the pure queue gives one chain at a time")
        for _ in range(batches):
            available[1] = (queue.base + CHAINS) & 0xFFFF
            while chains := queue.pop_many(16):
                for chain in chains:
                    handle(chain)
                    queue.push(chain)
            queue.publish()

    def native(self) -> Serve:
        """No Python between two publications."""
        loop = native_loop()

        def serve(batches: int) -> None:
            if loop.serve(self.queue, self.available, batches, CHAINS) != batches * CHAINS:
                raise RuntimeError("the native loop did not give every chain back")

        return serve


def handle(chain: DescriptorChain) -> None:
    """A device that does nothing but say how much it wrote."""
    chain.written = 1


ROWS: Final[dict[str, Callable[[], Serve]]] = {
    "native loop": lambda: Bench(pure=False).native(),
    "Python handler": lambda: Bench(pure=False).one_by_one,
    "Python handler, 16 a call": lambda: Bench(pure=False).many,
    "pure Python": lambda: Bench(pure=True).one_by_one,
}


def measure(serve: Serve, milliseconds: float) -> float:
    """Nanoseconds a chain: of as many batches as take about that long."""
    batches = 1
    while True:
        started = time.perf_counter_ns()
        serve(batches)
        elapsed = time.perf_counter_ns() - started
        if elapsed >= milliseconds * 5e5:
            return elapsed / (batches * CHAINS)
        batches *= 2


def interleaved(rounds: int, milliseconds: float) -> dict[str, list[float]]:
    """Every row once a round, all on one CPU; nanoseconds a chain by row."""
    c, served = build_c(), {name: make() for name, make in ROWS.items()}
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(before)})
    samples: dict[str, list[float]] = {}
    try:
        for _ in range(rounds):
            for manner in ("lean", "allocating"):
                words = [str(c), manner, str(max(1, int(milliseconds * 400)))]
                done = subprocess.run(words, capture_output=True, text=True, check=True)
                samples.setdefault(f"C {manner}", []).append(float(done.stdout))
            for name, serve in served.items():
                samples.setdefault(name, []).append(measure(serve, milliseconds))
    finally:
        os.sched_setaffinity(0, before)
    return samples


def ratio(samples: dict[str, list[float]], ours: str, theirs: str) -> float:
    """How many times as fast ours is: the median over the rounds."""
    return statistics.median(their / our for our, their in zip(samples[ours], samples[theirs], strict=True))


def report(samples: dict[str, list[float]]) -> list[str]:
    """The rows as a table, and the goals."""
    lines = ["| split ring, device half | ns a chain | range | speed / C lean |", "|---|---|---|---|"]
    for name, values in samples.items():
        low, high, speed = min(values), max(values), ratio(samples, name, "C lean")
        lines.append(f"| {name} | {statistics.median(values):,.1f} | {low:,.1f}-{high:,.1f} | {speed:.3f} |")
    lines.append("")
    for ours, theirs, limit in GOALS:
        speed = ratio(samples, ours, theirs)
        word = "met " if speed >= limit else "MISS"
        lines.append(f"  {word}  rate {speed:5.2f}x >= {limit:.2f}x  split ring, {ours} against {theirs}")
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="[%(default)s]")
    parser.add_argument("--milliseconds", type=float, default=MILLISECONDS, help="a row and round [%(default)s]")
    args = parser.parse_args()
    if not _native.accelerated:
        print("the compiled half is not in use: build it (make setup) and unset VHOSTUSER_PURE", file=sys.stderr)
        return 1
    try:
        print("\n".join(report(interleaved(args.rounds, args.milliseconds))))
    except (OSError, ImportError, subprocess.CalledProcessError) as failure:
        print(f"ring: {failure}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
