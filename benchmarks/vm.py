"""`vhu-fs` against virtiofsd, in one Linux guest: the same file, the same QEMU, all daemons in turn on one CPU.

A file that the host's page cache holds is read through every mount, each time after umount, drop_caches and mount; and
small files are made, looked at, listed and deleted. What virtiofsd does better, with `--cache auto` or `--cache always`,
counts, figure by figure; and so for `vhu-fs` without DAX.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import blk
import fetch_rust

from vhostuser.testing import is_listened_on
from vhostuser.vm import tree
from vhostuser.vm.guest import Guest, GuestFailed

MEASURE: Final = Path(__file__).resolve().parents[1] / "tests" / "vm" / "programs" / "measure.c"
MIB: Final = 1 << 20
SIZE: Final = 256 * MIB
FILES: Final = 10_000
ROUNDS: Final = 5
SECONDS: Final = 300.0
"""What one command in the guest may take; a deadline."""
MEMORY: Final = 768
"""MiB of the guest: it keeps the file in its page cache where there is no DAX."""
NOTHING: Final = 1.0
"""MiB: less is no growth of the page cache."""
SMALLEST_WINDOW: Final = 2 * MIB
READS: Final = ("sequential", "random", "mapped")
METADATA: Final = ("create", "stat", "readdir", "unlink")
GROWTH: Final = "growth"
UNITS: Final = {"sequential": "MB/s", GROWTH: "MiB", **dict.fromkeys(("random", "mapped", *METADATA), "µs")}


@dataclass(frozen=True, slots=True)
class Daemon:
    """A program that shares {folder} at {socket}, and what QEMU has for it."""

    name: str
    command: tuple[str, ...]
    dax: bool = False
    figures: tuple[str, ...] = (*READS, *METADATA)


DAX, SMALL = "vhu-fs, DAX", "vhu-fs, DAX, small window"
PLAIN: Final = ("vhu-fs, no DAX, auto", "vhu-fs, no DAX, always")
THEIRS: Final = ("virtiofsd, auto", "virtiofsd, always")
PLACE: Final = ("--socket-path", "{socket}", "--shared-dir", "{folder}", "--sandbox", "none")
OURS: Final = (sys.executable, "-m", "vhostuser.cli.fs", *PLACE, "--log-level", "error", "--tag", "{tag}")
GOALS: Final = (
    ("sequential cold, DAX", (DAX,), THEIRS, "sequential", 2.0),
    ("random pread of 4 KiB, DAX", (DAX,), THEIRS, "random", 3.5),
    ("mapped cold, DAX", (DAX,), THEIRS, "mapped", 5.0),
    ("sequential cold, no DAX", PLAIN, THEIRS, "sequential", 1.0),
    ("random pread of 4 KiB, no DAX", PLAIN, THEIRS, "random", 0.9),
    *((f"{name}, no DAX", PLAIN, THEIRS, name, 0.7) for name in METADATA),
    ("random pread of 4 KiB in a window a quarter of the file, against FUSE_READ", (SMALL,), PLAIN, "random", 1.0),
)
"""Ours, and how many times the speed of the other's better mode it has to reach."""

Samples = dict[tuple[str, str], list[float]]
"""By daemon and figure, one a round."""


def daemons(size: int) -> tuple[Daemon, ...]:
    """Every daemon, as a row. A window holds the whole file, or a quarter of it."""
    virtiofsd = (*tree.virtiofsd_command(), *PLACE, "--log-level", "error")
    window, quarter = ("--readonly", "--dax-window"), max(SMALLEST_WINDOW, size // 4)
    return (
        Daemon(THEIRS[0], (*virtiofsd, "--cache", "auto")),
        Daemon(THEIRS[1], (*virtiofsd, "--cache", "always")),
        Daemon(PLAIN[0], (*OURS, "--dax", "off", "--cache", "auto")),
        Daemon(PLAIN[1], (*OURS, "--dax", "off", "--cache", "always")),
        Daemon(DAX, (*OURS, *window, str(2 * size)), dax=True, figures=READS),
        Daemon(SMALL, (*OURS, *window, str(quarter)), dax=True, figures=("random",)),
    )


def build_measure() -> Path:
    """Compile the guest's program into the cache. blk.Unavailable without a compiler."""
    binary = fetch_rust.cache() / "measure" / "measure"
    compiler = os.environ.get("CC") or shutil.which("gcc")
    if compiler is None:
        raise blk.Unavailable("no C compiler here for the guest's program")
    binary.parent.mkdir(parents=True, exist_ok=True)
    partial = binary.with_name(f"measure.{os.getpid()}")  # others may do the same now
    flags = ["-O1", "-Wall", "-Wextra", "-Werror", "-static"]
    subprocess.run([compiler, *flags, "-o", str(partial), str(MEASURE)], check=True)
    partial.rename(binary)
    return binary


@contextmanager
def serving(daemon: Daemon, tag: str, socket: Path, folder: Path) -> Iterator[None]:
    """A daemon, once it listens; ended, by its own pid, in the end. blk.Unavailable if it does not start."""
    words = [word.format(socket=socket, folder=folder, tag=tag) for word in daemon.command]
    process = subprocess.Popen(words, stdin=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + SECONDS
        while not is_listened_on(socket):
            if process.poll() is not None or time.monotonic() > deadline:
                raise blk.Unavailable(f"{daemon.name} does not listen; what it said is above")
            time.sleep(0.02)
        yield
    finally:
        process.terminate()
        try:
            process.wait(SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def device(daemon: Daemon, tag: str, socket: Path) -> list[str]:
    """QEMU's words for a daemon."""
    share = f"vhost-user-fs-pci,tag={tag},queue-size=128"
    if daemon.dax:
        share = "vhost-user-test-device-pci,virtio-id=26,num_vqs=2,vq_size=128,config_size=40"
    return ["-chardev", f"socket,id={tag},path={socket}", "-device", f"{share},chardev={tag}"]


def interleaved(rounds: int, *, size: int = SIZE, files: int = FILES) -> Samples:
    """Every daemon and figure once a round. blk.Unavailable or tree.FetchError without the programs that are fetched."""
    samples: Samples = {}
    with ExitStack() as opened:
        rows = {f"fs{at}": daemon for at, daemon in enumerate(daemons(size))}
        guest = opened.enter_context(_booted(rows, size))
        for _ in range(rounds):
            for tag, daemon in rows.items():
                for figure, value in measured(guest, tag, daemon, files).items():
                    samples.setdefault((daemon.name, figure), []).append(value)
    return samples


@contextmanager
def _booted(rows: dict[str, Daemon], size: int) -> Iterator[Guest]:
    """A guest that has all shares, each in a folder of its own with the same file, on one CPU with their daemons."""
    before = os.sched_getaffinity(0)
    with ExitStack() as opened:
        sockets = Path(opened.enter_context(tempfile.TemporaryDirectory(prefix="vhu")))
        folders = Path(opened.enter_context(tempfile.TemporaryDirectory(prefix="vm.", dir=fetch_rust.cache())))
        program = build_measure()
        blk.make_file(folders / "file", size)
        opened.callback(os.sched_setaffinity, 0, before)
        os.sched_setaffinity(0, {max(before)})
        words = []
        for tag, daemon in rows.items():
            (folders / tag).mkdir()
            os.link(folders / "file", folders / tag / "file")
            opened.enter_context(serving(daemon, tag, sockets / tag, folders / tag))
            words += device(daemon, tag, sockets / tag)
        with Guest(words, programs={"measure": program}, memory=MEMORY, seconds=SECONDS) as guest:
            yield guest


def measured(guest: Guest, tag: str, daemon: Daemon, files: int) -> dict[str, float]:
    """What a daemon's figures are now."""
    found: dict[str, float] = {}
    guest.run("mkdir -p /mnt")
    for read in (figure for figure in daemon.figures if figure in READS):
        guest.run(f"echo 3 > /proc/sys/vm/drop_caches; mount -t virtiofs {tag} /mnt")
        before = _cached(guest)
        found |= _values(guest.run(f"measure {read} /mnt/file"))
        found[GROWTH] = max(found.get(GROWTH, 0.0), _cached(guest) - before)
        guest.run("umount /mnt")
    if METADATA[0] in daemon.figures:
        guest.run(f"echo 3 > /proc/sys/vm/drop_caches; mount -t virtiofs {tag} /mnt; mkdir /mnt/many")
        found |= _values(guest.run(f"measure metadata /mnt/many {files}"))
        guest.run("rmdir /mnt/many; umount /mnt")
    return found


def _values(printed: str) -> dict[str, float]:
    return {name: float(value) for name, value in (line.split() for line in printed.splitlines())}


def _cached(guest: Guest) -> float:
    """MiB in the guest's page cache."""
    return int(guest.run("grep ^Cached: /proc/meminfo").split()[1]) / 1024


def speed(samples: Samples, ours: Sequence[str], theirs: Sequence[str], figure: str) -> float:
    """How many times as fast ours is in its better mode than theirs in its better mode: medians over the rounds."""

    def ratio(one: str, other: str) -> float:
        pairs = zip(samples[one, figure], samples[other, figure], strict=True)
        more = UNITS[figure].endswith("/s")
        return statistics.median(our / their if more else their / our for our, their in pairs)

    return max(min(ratio(one, other) for other in theirs) for one in ours)


def report(samples: Samples) -> list[str]:
    """The figures as a table, and the goals."""
    lines = ["| in a guest | figure | median | range |", "|---|---|---|---|"]
    for (name, figure), values in samples.items():
        middle, low, high = statistics.median(values), min(values), max(values)
        lines.append(f"| {name} | {figure}, {UNITS[figure]} | {middle:,.1f} | {low:,.1f}-{high:,.1f} |")
    lines.append("")
    for text, ours, theirs, figure, limit in GOALS:
        found = speed(samples, ours, theirs, figure)
        lines.append(f"  {'met ' if found >= limit else 'MISS'}  rate {found:5.2f}x >= {limit:.2f}x  {text}")
    growth = statistics.median(samples[DAX, GROWTH])
    word = "met " if growth < NOTHING else "MISS"
    return [*lines, f"  {word}  {growth:.1f} MiB < {NOTHING:g} MiB  growth of the guest's page cache, DAX"]


def arguments() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="[%(default)s]")
    size = "MiB of the file, a power of two from 8 on [%(default)s]"
    parser.add_argument("--size", type=int, default=SIZE // MIB, help=size)
    parser.add_argument("--files", type=int, default=FILES, help="files that are made and deleted [%(default)s]")
    args = parser.parse_args()
    if args.rounds < 1 or args.files < 1 or args.size < 8 or args.size & (args.size - 1):
        parser.error("--rounds and --files are 1 or more, --size is a power of two from 8 on")
    return args


def main() -> int:
    args = arguments()
    try:
        lines = report(interleaved(args.rounds, size=args.size * MIB, files=args.files))
    except (blk.Unavailable, tree.FetchError) as reason:
        print(f"vm: {reason}", file=sys.stderr)
        return 3
    except (GuestFailed, OSError, subprocess.CalledProcessError) as failure:
        print(f"vm: {failure}", file=sys.stderr)
        return 1
    print("\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
