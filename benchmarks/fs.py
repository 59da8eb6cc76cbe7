"""What one FUSE request costs `vhu-fs`, without a VM: microseconds of the daemon's CPU, which others do not disturb much.

`fs.py` drives the daemon over its socket, both on one CPU. With `--against SRC` the `vhostuser` of another tree's `src`
serves, too, in turn; the ratio is of the same rounds.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from vhostuser.drivers.fuse import FuseSession
from vhostuser.errors import VhostUserError
from vhostuser.frontend import Frontend
from vhostuser.fuse.numbers import NO_HANDLE, ROOT_ID, MappingFlag, Opcode
from vhostuser.fuse.structs import (
    CreateIn,
    EntryOut,
    GetattrIn,
    OpenIn,
    OpenOut,
    ReadIn,
    ReleaseIn,
    SetupmappingIn,
    WriteIn,
)
from vhostuser.testing import is_listened_on

SRC: Final = Path(__file__).resolve().parents[1] / "src"
MIB: Final = 1 << 20
SLOT: Final = 2 * MIB
WINDOW: Final = 64 * MIB
COUNT: Final = 500
ROUNDS: Final = 15
SECONDS: Final = 60.0
_MADE: Final = EntryOut.STRUCT.size + OpenOut.STRUCT.size


@dataclass(frozen=True, slots=True)
class Served:
    """A session with a daemon, and its process."""

    session: FuseSession
    pid: int

    def spent(self) -> int:
        """Nanoseconds of CPU that the daemon has used so far."""
        return time.clock_gettime_ns(~self.pid << 3 | 2)  # the clock of another process, clock_getcpuclockid(3)


Act = Callable[[int], object]
"""Does one request, the so many-th."""


@contextmanager
def served(src: Path, folder: Path, *dax: str) -> Iterator[Served]:
    """A session with the daemon of a tree, ended by its pid. It shares a folder."""
    with tempfile.TemporaryDirectory(prefix="vhu") as place:
        socket = Path(place) / "s"
        program = "from vhostuser.devices.fs.share import share_directory\n" + _SERVE.format(dax=", ".join(dax))
        words = [sys.executable, "-c", program, str(folder), str(socket)]
        process = subprocess.Popen(words, env={**os.environ, "PYTHONPATH": str(src)}, stdin=subprocess.DEVNULL)
        try:
            deadline = time.monotonic() + SECONDS
            while not is_listened_on(socket) and process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.01)
            with Frontend.connect(str(socket)) as frontend:
                frontend.share_memory(16 * MIB)
                yield Served(FuseSession(frontend, timeout=SECONDS), process.pid)
        finally:
            process.kill()
            process.wait()


_SERVE: Final = """
import os, sys
from vhostuser.backend import Backend
from vhostuser.devices.fs.options import Dax, ShareOptions
from vhostuser.transport.fds import OwnedFd
options = ShareOptions({dax})
with share_directory(OwnedFd(os.open(sys.argv[1], os.O_PATH)), options) as device:
    Backend(device).serve(sys.argv[2])
"""
"""A daemon without a keeper, so that its pid is that of who serves."""


def acts(session: FuseSession) -> dict[str, Act]:
    """What is measured, by name: each is one request, but CREATE, which is three with RELEASE and UNLINK."""
    call = session.call
    file = EntryOut.unpack(call(Opcode.LOOKUP, ROOT_ID, None, b"file")).nodeid
    fh = OpenOut.unpack(call(Opcode.OPEN, file, OpenIn(os.O_RDONLY))).fh
    out = EntryOut.unpack(call(Opcode.LOOKUP, ROOT_ID, None, b"out")).nodeid
    out_fh = OpenOut.unpack(call(Opcode.OPEN, out, OpenIn(os.O_RDWR))).fh
    folder = EntryOut.unpack(call(Opcode.LOOKUP, ROOT_ID, None, b"folder")).nodeid
    listed = OpenOut.unpack(call(Opcode.OPENDIR, folder, OpenIn(os.O_RDONLY))).fh
    page, more = bytes(4096), bytes(128 << 10)

    def create(at: int) -> None:
        made = call(Opcode.CREATE, ROOT_ID, CreateIn(os.O_RDWR | os.O_EXCL, 0o644), b"new", room=_MADE)
        entry = EntryOut.unpack(made[: EntryOut.STRUCT.size])
        opened = OpenOut.unpack(made[EntryOut.STRUCT.size :])
        call(Opcode.RELEASE, entry.nodeid, ReleaseIn(opened.fh))
        call(Opcode.UNLINK, ROOT_ID, None, b"new")
        session.forget([entry.nodeid])

    return {
        "LOOKUP": lambda at: call(Opcode.LOOKUP, ROOT_ID, None, b"file"),
        "GETATTR": lambda at: call(Opcode.GETATTR, file, GetattrIn()),
        "READ 4 KiB": lambda at: call(Opcode.READ, file, ReadIn(fh, at % 1024 * 4096, 4096), room=4096),
        "READ 128 KiB": lambda at: call(Opcode.READ, file, ReadIn(fh, at % 32 << 17, 128 << 10), room=128 << 10),
        "WRITE 4 KiB": lambda at: call(Opcode.WRITE, out, WriteIn(out_fh, at % 1024 * 4096, 4096), data=page),
        "WRITE 128 KiB": lambda at: call(Opcode.WRITE, out, WriteIn(out_fh, at % 32 << 17, len(more)), data=more),
        "FORGET": lambda at: session.forget([NO_HANDLE]),
        "READDIR of 100": lambda at: call(Opcode.READDIR, folder, ReadIn(listed, 0, 4096), room=4096),
        "READDIRPLUS of 25": lambda at: call(Opcode.READDIRPLUS, folder, ReadIn(listed, 0, 4096), room=4096),
        "CREATE, RELEASE, UNLINK": create,
    }


def mapping_acts(session: FuseSession) -> dict[str, Act]:
    """What is measured with a window of 64 MiB: in order, so that each slot is new once, and then has another file range."""
    file = EntryOut.unpack(session.call(Opcode.LOOKUP, ROOT_ID, None, b"file")).nodeid

    def setup(at: int) -> None:
        foffset = at * 7 % (2 * WINDOW // SLOT) * SLOT
        given = SetupmappingIn(NO_HANDLE, foffset, SLOT, MappingFlag.READ, at * SLOT % WINDOW)
        session.call(Opcode.SETUPMAPPING, file, given)

    return {SETUP: setup}


SETUP: Final = "SETUPMAPPING 2 MiB"
FIRST: Final = "SETUPMAPPING 2 MiB, first touch"
Samples = dict[tuple[str, str], list[float]]


def interleaved(trees: dict[str, Path], rounds: int, count: int) -> Samples:
    """Every act of every tree once a round: microseconds of the daemon's CPU."""
    samples: Samples = {}
    before = os.sched_getaffinity(0)
    with tempfile.TemporaryDirectory(prefix="vhu-fs") as place, ExitStack() as opened:
        folder = Path(place)
        _fill(folder)
        opened.callback(os.sched_setaffinity, 0, before)
        os.sched_setaffinity(0, {max(before)})
        rows = []
        for name, src in trees.items():
            one = opened.enter_context(served(src, folder, "dax=Dax.OFF"))
            rows.append((name, one, acts(one.session)))
        for _ in range(rounds):
            for act in rows[0][2]:
                for name, one, found in rows:
                    samples.setdefault((act, name), []).append(_cost(one, found[act], count))
            for name, src in trees.items():
                _measure_window(samples, name, src, folder)
    return samples


def _fill(folder: Path) -> None:
    """The folder's files; the host's page cache has them."""
    (folder / "file").write_bytes(os.urandom(MIB) * (2 * WINDOW // MIB))
    (folder / "out").write_bytes(bytes(4 * MIB))
    (folder / "folder").mkdir()
    for at in range(100):
        (folder / "folder" / f"file-{at}").write_bytes(b"")


def _measure_window(samples: Samples, name: str, src: Path, folder: Path) -> None:
    """A new daemon's window: each slot for the first time, and then for others."""
    with served(src, folder, f"dax_window={WINDOW}", "readonly=True") as one:
        act = mapping_acts(one.session)[SETUP]
        slots = WINDOW // SLOT
        samples.setdefault((FIRST, name), []).append(_cost(one, act, slots))
        samples.setdefault((SETUP, name), []).append(_cost(one, lambda at: act(at + slots), 2 * slots))


def _cost(one: Served, act: Act, count: int) -> float:
    """Microseconds of the daemon's CPU for each of so many."""
    before = one.spent()
    for at in range(count):
        act(at)
    return (one.spent() - before) / count / 1e3


def report(samples: Samples, names: list[str]) -> list[str]:
    """A table: a row an act, with the ratio of the first tree to the second one."""
    lines = ["| request | " + " | ".join(f"{name}, µs" for name in names) + " | ratio |", "|---" * (len(names) + 2) + "|"]
    for act in dict.fromkeys(act for act, _ in samples):
        values = [samples[act, name] for name in names]
        ratio = statistics.median(ours / theirs for ours, theirs in zip(values[0], values[-1], strict=True))
        middles = " | ".join(f"{statistics.median(each):,.1f}" for each in values)
        lines.append(f"| {act} | {middles} | {ratio:.2f} |")
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="[%(default)s]")
    parser.add_argument("--count", type=int, default=COUNT, help="requests a measurement [%(default)s]")
    parser.add_argument("--against", type=Path, metavar="SRC", help="the `src` of another tree, to compare with")
    args = parser.parse_args()
    trees = {"this": SRC} | ({"that": args.against} if args.against else {})
    try:
        print("\n".join(report(interleaved(trees, args.rounds, args.count), list(trees))))
    except (VhostUserError, OSError) as failure:
        print(f"fs: {failure}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
