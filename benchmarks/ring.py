"""What a chain costs the device half of a queue: ours against C, with all rows in turn on one CPU.

`ring.py` builds the C loops, our native loop and, where cargo is, a device half with rust-vmm's virtio-queue; it prints
nanoseconds a chain and the goals. A request of virtio-queue has a Reader and a Writer, which know all its buffers, as our
chains do; the row `descriptors` is the least that can be done with that crate, which is less than our row does.
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
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Final

import fetch_rust
from ring_bench import CHAINS, Bench, PackedBench, Serve

from vhostuser import _native

HERE: Final = Path(__file__).resolve().parent
ROUNDS: Final = 21
MILLISECONDS: Final = 40
"""About how long one row of a round takes: short, so that all rows of a round see the machine in one mood."""

GOALS: Final = (
    ("native loop", "C lean", 0.5),
    ("native loop", "C allocating", 1.2),
    ("Python handler", "pure Python", 3.0),
    ("packed, native loop", "packed, C lean", 0.7),
    ("Python handler", "virtio-queue, Reader and Writer", 1.25),
)
"""Rows, and how many times the second one's speed the first has to reach."""


def compiler() -> str:
    return os.environ.get("CC") or shutil.which("gcc") or "cc"


def newer(binary: Path, *sources: Path) -> bool:
    """There is such a file, and it is newer than all it is made of."""
    return binary.exists() and all(binary.stat().st_mtime > source.stat().st_mtime for source in sources)


def build_c(name: str) -> Path:
    """Compile ring.c or ring_packed.c into the cache."""
    source, binary = HERE / f"{name}.c", fetch_rust.cache() / "ring" / name
    if not newer(binary, source, HERE / "ring.h"):
        binary.parent.mkdir(parents=True, exist_ok=True)
        flags = ["-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror"]
        subprocess.run([compiler(), *flags, str(source), "-o", str(binary)], check=True)
    return binary


def native_loop() -> ModuleType:
    """Compile ring_loop.pyx into the cache, with the flags of the package's own modules, and load it."""
    source, native = HERE / "ring_loop.pyx", HERE.parent / "src" / "vhostuser" / "_native"
    folder = fetch_rust.cache() / "ring"
    binary = folder / f"ring_loop{sysconfig.get_config_var('EXT_SUFFIX')}"
    if not newer(binary, source, *native.glob("*.pxd")):
        folder.mkdir(parents=True, exist_ok=True)
        c = folder / "ring_loop.c"
        directives = "boundscheck=False,wraparound=False,cdivision=True"
        cython = [sys.executable, "-m", "cython", "-3", "-X", directives, "-I", str(native.parents[1])]
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


def printed(*words: str) -> Serve:
    """A program that serves, given a number of batches, and prints nanoseconds a chain."""

    def serve(batches: int) -> int:
        done = subprocess.run([*words, str(batches)], capture_output=True, text=True, check=True)
        return int(float(done.stdout) * batches * CHAINS)

    return serve


def c_loop(name: str, *manner: str) -> Callable[[], Serve]:
    """A C loop as a row: it prints nanoseconds a chain."""
    return lambda: printed(str(build_c(name)), *manner)


def rust_loop(manner: str) -> Callable[[], Serve]:
    """The loop of virtio-queue as a row. Unavailable if it can't be built here."""
    return lambda: printed(str(fetch_rust.build(fetch_rust.RING)), manner)


ROWS: Final[dict[str, Callable[[], Serve]]] = {
    "C lean": c_loop("ring", "lean"),
    "C allocating": c_loop("ring", "allocating"),
    "native loop": lambda: Bench(pure=False).native(native_loop()),
    "Python handler": lambda: Bench(pure=False).one_by_one,
    "Python handler, 16 a call": lambda: Bench(pure=False).many,
    "pure Python": lambda: Bench(pure=True).one_by_one,
    "virtio-queue, Reader and Writer": rust_loop("buffers"),
    "virtio-queue, descriptors": rust_loop("descriptors"),
    "packed, C lean": c_loop("ring_packed"),
    "packed, native loop": lambda: PackedBench(pure=False).native(native_loop()),
    "packed, Python handler": lambda: PackedBench(pure=False).one_by_one,
    "packed, pure Python": lambda: PackedBench(pure=True).one_by_one,
}


def available() -> dict[str, Serve]:
    """The rows, made, without those that can't be had here."""
    made = {}
    for name, make in ROWS.items():
        try:
            made[name] = make()
        except fetch_rust.Unavailable as reason:
            print(f"no {name}: {reason}", file=sys.stderr)
    return made


def measure(serve: Serve, milliseconds: float) -> float:
    """Nanoseconds a chain: of as many batches as take about that long."""
    batches = 1
    while True:
        elapsed = serve(batches)
        if elapsed >= milliseconds * 5e5:
            return elapsed / (batches * CHAINS)
        batches *= 2


def interleaved(rounds: int, milliseconds: float) -> dict[str, list[float]]:
    """Every row once a round, all on one CPU; nanoseconds a chain by row."""
    served = available()
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(before)})
    samples: dict[str, list[float]] = {}
    try:
        for _ in range(rounds):
            for name, serve in served.items():
                samples.setdefault(name, []).append(measure(serve, milliseconds))
    finally:
        os.sched_setaffinity(0, before)
    return samples


def ratio(samples: dict[str, list[float]], ours: str, theirs: str) -> float:
    """How many times as fast ours is: the median over the rounds."""
    return statistics.median(their / our for our, their in zip(samples[ours], samples[theirs], strict=True))


def baseline(name: str) -> str:
    """The lean C loop of a row's format."""
    return "packed, C lean" if name.startswith("packed") else "C lean"


def report(samples: dict[str, list[float]]) -> list[str]:
    """The rows as a table, and the goals."""
    lines = ["| device half of a ring | ns a chain | range | speed / C lean of its format |", "|---|---|---|---|"]
    for name, values in samples.items():
        low, high, speed = min(values), max(values), ratio(samples, name, baseline(name))
        lines.append(f"| {name} | {statistics.median(values):,.1f} | {low:,.1f}-{high:,.1f} | {speed:.3f} |")
    lines.append("")
    for ours, theirs, limit in GOALS:
        if ours not in samples or theirs not in samples:
            lines.append(f"  --    not measured  ring: {ours} against {theirs}")
            continue
        speed = ratio(samples, ours, theirs)
        word = "met " if speed >= limit else "MISS"
        lines.append(f"  {word}  rate {speed:5.2f}x >= {limit:.2f}x  ring: {ours} against {theirs}")
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
