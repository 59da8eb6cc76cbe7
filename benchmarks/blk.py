"""`vhu-blk` against qemu-storage-daemon, driven by libblkio: all servers and their driver in turn on one CPU.

`blk.py` makes a file that the page cache holds, starts every server with it, and prints nanoseconds a request and the
goals. `blk.py --soak SECONDS` is 32 requests in flight for so long: none may fail.
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

import fetch_rust

from vhostuser.testing import is_listened_on
from vhostuser.vm import tree

HERE: Final = Path(__file__).resolve().parent

SIZE: Final = 1 << 30
STAMPED: Final = 4096
"""Each of so many bytes begins with its place in the file, which the driver looks at."""
ROUNDS: Final = 15
"""Many short rounds: those who share the machine disturb both terms of a ratio then, or neither."""
SECONDS: Final = 60.0
"""What a driver's run or the start of a server may take; a deadline."""
LARGEST_RSS: Final = 40 << 20


class Unavailable(RuntimeError):
    """This machine lacks something that the benchmark needs; one line."""


class LoadFailed(RuntimeError):
    """A request failed, or a server ended."""


@dataclass(frozen=True, slots=True)
class Load:
    """What the driver does: as its arguments."""

    name: str
    what: str
    depth: int
    bytes: int
    requests: int

    def words(self, socket: Path) -> list[str]:
        """The driver's arguments."""
        return [str(socket), self.what, str(self.depth), str(self.bytes), str(self.requests)]


QD1, QD32, BIG = LOADS = (
    Load("4 KiB random, 1 in flight", "randread", 1, 4096, 2_000),
    Load("4 KiB random, 32 in flight", "randread", 32, 4096, 6_000),
    Load("1 MiB sequential, 4 in flight", "read", 4, 1 << 20, 150),
)
SOAK: Final = Load("4 KiB random, 32 in flight", "randread", 32, 4096, 20_000)


@dataclass(frozen=True, slots=True)
class Server:
    """A program that listens at {socket} with the disk {file}: the first of these command lines that it takes."""

    name: str
    commands: tuple[tuple[str, ...], ...]


OURS: Final = (sys.executable, "-m", "vhostuser.cli.blk", "--socket-path", "{socket}", "--blk-file", "{file}")
OURS_ONCE_MORE: Final = (*OURS, "--read-only", "--reconnect", "--log-level", "warn")
EXPORT: Final = "vhost-user-blk,id=e0,node-name=disk,addr.type=unix,addr.path={socket},writable=off"
NODE: Final = "file,node-name=disk,filename={file},read-only=on"


def servers() -> tuple[Server, ...]:
    """Every server, as a row."""
    daemon = tuple(tree.storage_daemon_command())
    uring = ("--object", "iothread,id=io0", "--blockdev", f"{NODE},aio=io_uring", "--export", f"{EXPORT},iothread=io0")
    return (
        Server(MAIN_LOOP, ((*daemon, "--blockdev", NODE, "--export", EXPORT),)),
        Server(IO_URING, ((*daemon, *uring),)),
        Server(PYTHON, ((*OURS_ONCE_MORE, "--handler", "python"), OURS_ONCE_MORE)),
        Server(NATIVE, ((*OURS_ONCE_MORE, "--handler", "native"),)),
    )


MAIN_LOOP: Final = "qemu-storage-daemon, main loop"
IO_URING: Final = "qemu-storage-daemon, io_uring in an iothread"
PYTHON: Final = "vhu-blk, Python handler"
NATIVE: Final = "vhu-blk, native path"
GOALS: Final = (
    (NATIVE, MAIN_LOOP, QD1, 1.5),
    (NATIVE, IO_URING, QD1, 1.0),
    (NATIVE, MAIN_LOOP, QD32, 1.8),
    (NATIVE, IO_URING, QD32, 1.5),
    (PYTHON, MAIN_LOOP, QD1, 1.5),
    (PYTHON, IO_URING, QD1, 1.0),
    (PYTHON, MAIN_LOOP, QD32, 1.8),
    (PYTHON, IO_URING, QD32, 1.1),
    (NATIVE, MAIN_LOOP, BIG, 0.95),
    (NATIVE, IO_URING, BIG, 0.95),
    (PYTHON, MAIN_LOOP, BIG, 0.95),
    (PYTHON, IO_URING, BIG, 0.95),
)
"""Servers, and how many times the second one's speed the first has to reach."""

Process = subprocess.Popen[bytes]


@dataclass(frozen=True, slots=True)
class Measured:
    """Nanoseconds a request by server and load, one a round; and what each server's memory was in the end."""

    samples: dict[tuple[str, Load], list[float]]
    resident: dict[str, int]
    missing: dict[str, str]
    """Servers that did not start, and what they said."""


def build_c() -> Path:
    """Compile the driver into the cache. Unavailable without libblkio or a compiler."""
    source, binary = HERE / "blkio.c", fetch_rust.cache() / "blkio" / "blkio"
    try:
        libraries = tree.blkio_flags()
    except tree.FetchError as missing:
        raise Unavailable(str(missing)) from None
    if binary.exists() and binary.stat().st_mtime > source.stat().st_mtime:
        return binary
    compiler = os.environ.get("CC") or shutil.which("gcc")
    if compiler is None:
        raise Unavailable("no C compiler here for the driver")
    binary.parent.mkdir(parents=True, exist_ok=True)
    flags = ["-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror"]
    partial = binary.with_name(f"blkio.{os.getpid()}")  # others may do the same now
    subprocess.run([compiler, *flags, "-o", str(partial), str(source), *libraries], check=True)
    partial.rename(binary)
    return binary


def make_file(path: Path, size: int) -> None:
    """Write a file whose blocks begin with their places: all of it is in the page cache then."""
    rest, step = bytes(STAMPED - 8), 1 << 20
    with open(path, "wb") as file:
        for start in range(0, size, step):
            places = range(start, start + step, STAMPED)
            file.write(b"".join(place.to_bytes(8, "little") + rest for place in places))


def drive(binary: Path, load: Load, socket: Path) -> float:
    """Run the driver once; nanoseconds a request."""
    words = [*tree.loaded(binary), *load.words(socket)]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise LoadFailed(f"{load.name}: not done after {SECONDS:g} s") from None
    if done.returncode:
        raise LoadFailed(f"{load.name}: {done.stderr.strip()}")
    return float(done.stdout)


@contextmanager
def running(command: Sequence[str], socket: Path, file: Path) -> Iterator[Process]:
    """A server, once it listens. Unavailable, with its last words, if it ends instead; killed in the end."""
    words = [word.format(socket=socket, file=file) for word in command]
    with tempfile.TemporaryFile("a+b") as said:
        process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=said, stderr=said)
        try:
            deadline = time.monotonic() + SECONDS
            while not is_listened_on(socket):
                if process.poll() is not None or time.monotonic() > deadline:
                    lines = os.pread(said.fileno(), 1 << 16, 0).decode(errors="replace").strip().splitlines()
                    raise Unavailable(lines[-1] if lines else "it does not listen")
                time.sleep(0.005)
            yield process
        finally:
            process.kill()  # does nothing if it has ended
            process.wait(SECONDS)


def start(server: Server, socket: Path, file: Path, opened: ExitStack) -> Process:
    """Start a server until `opened` ends. Unavailable if it takes none of its command lines."""
    for command in server.commands:
        try:
            return opened.enter_context(running(command, socket, file))
        except Unavailable as unknown:
            reason = unknown
    raise reason


def resident(pid: int) -> int:
    """Bytes that a process has in memory, but for what it shares: guest memory, that is."""
    total, shared = 0, False
    with open(f"/proc/{pid}/smaps") as file:
        for line in file:
            name, _, rest = line.partition(" ")
            if not name.endswith(":"):
                shared = rest[3] == "s"
            elif name == "Rss:" and not shared:
                total += int(rest.split()[0]) << 10
    return total


def interleaved(rounds: int, *, size: int = SIZE, loads: Sequence[Load] = LOADS) -> Measured:
    """Every server and load once a round. Unavailable without the programs that are fetched."""
    binary, measured = build_c(), Measured({}, {}, {})
    before = os.sched_getaffinity(0)
    with tempfile.TemporaryDirectory(prefix="vhu") as sockets, ExitStack() as opened:
        file = Path(opened.enter_context(tempfile.TemporaryDirectory(prefix="disk.", dir=fetch_rust.cache()))) / "disk"
        make_file(file, size)
        opened.callback(os.sched_setaffinity, 0, before)
        os.sched_setaffinity(0, {max(before)})
        running_ones: dict[str, tuple[Process, Path]] = {}
        for number, server in enumerate(servers()):
            socket = Path(sockets) / str(number)
            try:
                running_ones[server.name] = start(server, socket, file, opened), socket
            except Unavailable as reason:
                measured.missing[server.name] = str(reason)
        for _ in range(rounds):
            for load in loads:
                for name, (_, socket) in running_ones.items():
                    measured.samples.setdefault((name, load), []).append(drive(binary, load, socket))
        measured.resident.update((name, resident(process.pid)) for name, (process, _) in running_ones.items())
    return measured


def ratio(measured: Measured, ours: str, theirs: str, load: Load) -> float | None:
    """How many times as fast ours is: the median over the rounds; None if one of them was not measured."""
    our, their = measured.samples.get((ours, load)), measured.samples.get((theirs, load))
    if our is None or their is None:
        return None
    return statistics.median(slow / fast for fast, slow in zip(our, their, strict=True))


def report(measured: Measured) -> list[str]:
    """The rows as a table, and the goals."""
    head = "| disk, by libblkio | load | µs a request | range | thousands a second | speed / main loop |"
    lines = [head, "|---|---|---|---|---|---|"]
    for (name, load), values in measured.samples.items():
        low, high, middle = min(values) / 1e3, max(values) / 1e3, statistics.median(values) / 1e3
        speed = ratio(measured, name, MAIN_LOOP, load)
        shown = "" if speed is None else f"{speed:.2f}"
        lines.append(f"| {name} | {load.name} | {middle:,.1f} | {low:,.1f}-{high:,.1f} | {1e3 / middle:,.1f} | {shown} |")
    lines.append("")
    lines += [f"  note  {name} did not start: {reason}" for name, reason in measured.missing.items()]
    lines += [_goal(measured, *row) for row in GOALS]
    return lines + [_memory(measured, name) for name in (NATIVE, PYTHON)]


def _goal(measured: Measured, ours: str, theirs: str, load: Load, limit: float) -> str:
    text, speed = f"{load.name}: {ours} against {theirs}", ratio(measured, ours, theirs, load)
    if speed is None:
        return f"  --    not measured  {text}"
    return f"  {'met ' if speed >= limit else 'MISS'}  rate {speed:5.2f}x >= {limit:.2f}x  {text}"


def _memory(measured: Measured, name: str) -> str:
    text, bytes = f"resident beyond shared memory, after that: {name}", measured.resident.get(name)
    if bytes is None:
        return f"  --    not measured  {text}"
    theirs = measured.resident.get(MAIN_LOOP, 0)
    word = "met " if bytes <= LARGEST_RSS else "MISS"
    return f"  {word}  {bytes / 2**20:.1f} MiB <= {LARGEST_RSS >> 20} MiB  {text} ({MAIN_LOOP}: {theirs / 2**20:.1f})"


def lines_for_goals(rounds: int = ROUNDS) -> list[str]:
    """The report, or one line that says why there is none."""
    try:
        return report(interleaved(rounds))
    except Unavailable as reason:
        return [f"  --    not measured  vhu-blk against qemu-storage-daemon: {reason}"]


def soak(seconds: float) -> list[str]:
    """Each way of ours under load for so long; LoadFailed at the first error."""
    binary, lines = build_c(), []
    with tempfile.TemporaryDirectory(prefix="vhu", dir=fetch_rust.cache()) as folder:
        file, socket = Path(folder) / "disk", Path(folder) / "s"
        make_file(file, SIZE >> 2)
        for server in servers()[2:]:
            with ExitStack() as opened:
                try:
                    start(server, socket, file, opened)
                except Unavailable as reason:
                    lines.append(f"{server.name}: not measured: {reason}")
                    continue
                done, began = 0, time.monotonic()
                while (took := time.monotonic() - began) < seconds:
                    drive(binary, SOAK, socket)
                    done += SOAK.requests
                lines.append(f"{server.name}: {done:,} reads in {took:.0f} s, {SOAK.depth} in flight, none failed")
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="[%(default)s]")
    parser.add_argument("--size", type=int, default=SIZE, help="bytes of the file, whole MiB [%(default)s]")
    parser.add_argument("--soak", type=float, metavar="SECONDS", help="no comparison: load for so long")
    args = parser.parse_args()
    try:
        lines = soak(args.soak) if args.soak else report(interleaved(args.rounds, size=args.size))
    except Unavailable as reason:
        print(f"blk: {reason}", file=sys.stderr)
        return 3
    except (LoadFailed, OSError, subprocess.CalledProcessError) as failure:
        print(f"blk: {failure}", file=sys.stderr)
        return 1
    print("\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
