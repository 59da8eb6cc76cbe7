"""Does anything get lost or leak while processes are killed? Half an hour at half load, and a death every ten seconds.

Two processes survive. `host` serves a disk, whose front-end (`guest`) sends nonsense once in a hundred times and is killed,
and beside it a device for an honest peer (`honest`), which must see no error. This process drives a disk and mappings in the
process `back`, which sends nonsense as well, and is killed; requests in flight go on with its successor by the inflight
area, mappings are made anew. After each death all data are read and compared. Nothing is killed that was not started here.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from soak_roles import (
    MIB,
    PAGE,
    PLACES,
    READY,
    ROLES,
    SECTOR,
    SECTORS,
    WAIT,
    Ledger,
    Load,
    Missed,
    half,
)

from vhostuser import Disconnected, Frontend, VhostUserError
from vhostuser.drivers.blk import FEATURES, BlockDriver
from vhostuser.drivers.shm import ShmDriver
from vhostuser.testing import usage, wait_until

HERE: Final = Path(__file__).resolve()
MINUTES, EVERY, SLOPE = 30.0, 10.0, 0.5
LONG_ENOUGH: Final = 600.0
"""Seconds from which on a slope is judged: a page more is 0.08 MiB an hour in three minutes."""
SETTLED: Final = 10.0
"""Seconds that a process has to come to rest before it is looked at."""


class Held(NamedTuple):
    """What a process holds."""

    fds: int
    mappings: int
    threads: int

    @classmethod
    def by(cls, pid: int) -> Held:
        return cls(*usage(pid))


def resident(pid: int) -> float:
    """MiB of resident memory."""
    with open(f"/proc/{pid}/statm") as file:
        return int(file.read().split()[1]) * PAGE / MIB


def slope(samples: list[tuple[float, float]]) -> float:
    """MiB an hour, by least squares, over what was sampled after the first quarter: until then pools fill."""
    rest = samples[len(samples) // 4 :]
    middle = sum(at for at, _ in rest) / len(rest), sum(value for _, value in rest) / len(rest)
    spread = sum((at - middle[0]) ** 2 for at, _ in rest)
    return sum((at - middle[0]) * (value - middle[1]) for at, value in rest) / spread * 3600 if spread else 0.0


class Soak:
    """All processes, and what is driven from here."""

    def __init__(self, folder: Path, stack: contextlib.ExitStack) -> None:
        self.folder, self._stack = folder, stack
        self.running: dict[str, subprocess.Popen[str]] = {}
        self.killed: dict[str, int] = {"back": 0, "guest": 0}
        self.dying: set[str] = set()
        self.samples: dict[str, list[tuple[float, float]]] = {}
        self.maps = 0
        self._dice = random.Random(1)
        for name in ("host.img", "back.img", "mapped"):
            (folder / name).write_bytes(bytes(SECTORS * SECTOR) if "img" in name else os.urandom(PLACES * PAGE))
        self._content = (folder / "mapped").read_bytes()
        for role in ("host", "back"):
            self._start(role)
        self._connect()
        for role in ("honest", "guest"):
            self._start(role)

    def _connect(self) -> None:
        options = {"features": FEATURES, "inflight": True}
        self.disk = self._stack.enter_context(Frontend.connect(self.folder / "disk", wait=WAIT, **options))  # type: ignore[arg-type]  # each of its kind
        self.maps_of = self._stack.enter_context(Frontend.connect(self.folder / "maps", wait=WAIT))
        self.disk.track_inflight(128)
        for frontend in (self.disk, self.maps_of):
            frontend.share_memory(4 * MIB)
        driver = BlockDriver(self.disk, on_disconnect=self._revive)
        self.load = Load(driver, Ledger(self.folder / "back.ledger"), self._dice)
        self._mapper = ShmDriver(self.maps_of)
        self._wanted = dict.fromkeys(range(PLACES), 0)
        self._map_wanted()

    def _start(self, role: str) -> None:
        """Start a process; one that has a back-end to come to has come there when this returns."""
        words = [sys.executable, str(HERE), "--role", role, "--folder", str(self.folder)]
        comes = role in ("guest", "honest")
        self.running[role] = process = subprocess.Popen(words, stdout=subprocess.PIPE if comes else None, text=True)
        if process.stdout and process.stdout.readline() != READY:
            raise Missed(f"{role} does not come to its back-end")

    def kill_one(self) -> None:
        """Kill the one that was killed less often, at whatever it is about."""
        role = min(self.killed, key=lambda each: self.killed[each])
        if role not in self.dying:
            self.dying.add(role)
            self.killed[role] += 1
            self.running[role].kill()

    def round(self) -> None:
        """Some requests of each kind, all of them checked."""
        began = time.monotonic()
        self.load.round()
        try:
            self._change_mappings()
        except Disconnected:
            self._revive()
        self._look_after()
        half(began)

    def _change_mappings(self) -> None:
        place = self._dice.randrange(PLACES)
        self._wanted[place] = self._dice.randrange(PLACES)
        self._mapper.unmap(shm_offset=2 * place * PAGE, len=PAGE)
        self._map(place)

    def _map_wanted(self) -> None:
        for place in self._wanted:
            self._map(place)

    def _map(self, place: int) -> None:
        page = self._wanted[place]
        self._mapper.map(0, shm_offset=2 * place * PAGE, len=PAGE, fd_offset=page * PAGE)
        self.maps += 1
        self._check(place, page)

    def _check(self, place: int, page: int) -> None:
        if self.maps_of.shm[0].read(2 * place * PAGE, PAGE) != self._content[page * PAGE : (page + 1) * PAGE]:
            raise Missed(f"place {place} of the region does not show page {page}")

    def _revive(self) -> None:
        """The back-end is gone: have another one, and all as it was."""
        if "back" not in self.dying:
            raise Missed(f"the back-end ended by itself: {self.running['back'].poll()}")
        self.running["back"].wait(WAIT)
        self._start("back")
        for frontend, path in ((self.disk, "disk"), (self.maps_of, "maps")):
            frontend.reconnect(self.folder / path, wait=WAIT)
        self._map_wanted()
        self.dying.discard("back")
        self._unverified = True

    _unverified = False

    def _look_after(self) -> None:
        """All data are there after a death; who was killed is started again; nobody else has ended."""
        if self._unverified:
            self._unverified = False
            self.load.verify()
        for role, process in list(self.running.items()):
            if process.poll() is None or role == "back":
                continue
            if role not in self.dying:
                raise Missed(f"{role} ended by itself: {process.returncode}")
            if process.stdout:
                process.stdout.close()
            self._start(role)
            self.dying.discard(role)

    @property
    def survivors(self) -> dict[str, int]:
        return {"front-end": os.getpid(), "host": self.running["host"].pid, "honest": self.running["honest"].pid}

    def sample(self, at: float) -> None:
        for name, pid in self.survivors.items():
            self.samples.setdefault(name, []).append((at, resident(pid)))

    def finish(self) -> int:
        """The honest peer has seen no error: how many requests it had."""
        process = self.running["honest"]
        process.terminate()
        said, _ = process.communicate(timeout=WAIT)
        if process.returncode:
            raise Missed(f"the honest peer ended with {process.returncode}")
        return int(said)

    def close(self) -> None:
        """End all that was started here."""
        for role in ("guest", "honest", "back", "host"):
            process = self.running[role]
            if process.poll() is None:
                process.kill()
            process.wait(WAIT)
            if process.stdout:
                process.stdout.close()


@contextlib.contextmanager
def dying(soak: Soak, every: float) -> Iterator[None]:
    """In the block somebody is killed every so many seconds, in the middle of whatever is done here."""
    signal.signal(signal.SIGALRM, lambda *_: soak.kill_one())
    signal.setitimer(signal.ITIMER_REAL, every, every)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def compare(soak: Soak, before: dict[str, Held]) -> list[str]:
    """A line for each survivor, which holds what it held."""
    lines = []
    for name, pid in soak.survivors.items():
        try:
            wait_until(lambda pid=pid, name=name: Held.by(pid) == before[name], "as before", within=SETTLED)  # type: ignore[misc]
        except AssertionError:
            raise Missed(f"{name} held {before[name]} and holds {Held.by(pid)}") from None
        held = before[name]
        lines.append(f"  met   {name}: {held.fds} fds, {held.mappings} shared mappings, {held.threads} threads as before")
    return lines


def judge(soak: Soak, seconds: float) -> list[str]:
    """A line for each survivor's memory; Missed if it grows, and that can be told from so long a time."""
    lines, grown = [], []
    for name, samples in soak.samples.items():
        rate = slope(samples)
        word = "met " if rate <= SLOPE else "MISS"
        if seconds < LONG_ENOUGH:
            word = "note"
        elif rate > SLOPE:
            grown.append(f"{name} grows by {rate:.2f} MiB an hour, more than {SLOPE:g}")
        first, last = samples[len(samples) // 4][1], samples[-1][1]
        lines.append(f"  {word}  {name}: RSS {rate:+.2f} MiB an hour <= {SLOPE:g} ({first:.2f} to {last:.2f} MiB)")
    if grown:
        raise Missed("\n".join([*lines, *grown]))
    return lines


def run(minutes: float, every: float) -> list[str]:
    """The whole soak: its figures."""
    with tempfile.TemporaryDirectory(prefix="vhu-soak-") as folder, contextlib.ExitStack() as stack:
        soak = Soak(Path(folder), stack)
        stack.callback(soak.close)
        for _ in range(5):
            soak.round()
        before = {name: Held.by(pid) for name, pid in soak.survivors.items()}
        began = time.monotonic()
        with dying(soak, every):
            while (now := time.monotonic() - began) < minutes * 60:
                soak.round()
                if not soak.samples or now - soak.samples["host"][-1][0] > every / 5:
                    soak.sample(now)
        while soak.dying:
            soak.round()
        seconds = time.monotonic() - began
        soak.load.verify()
        lines = compare(soak, before) + judge(soak, seconds)
        echoes = soak.finish()
    kills = f"{soak.killed['back']} back-ends and {soak.killed['guest']} front-ends killed"
    lines.insert(
        0, f"{seconds:.0f} s: {kills}, {soak.load.requests:,} requests of the disk and {soak.maps:,} mappings here,"
    )
    lines.insert(1, f"{echoes:,} echoes and mappings of the honest peer: nothing was lost, and it saw no error")
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=MINUTES, help="[%(default)s]")
    parser.add_argument("--every", type=float, default=EVERY, metavar="SECONDS", help="kill somebody [%(default)s]")
    parser.add_argument("--role", choices=ROLES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    logging.disable(logging.WARNING)  # each refusal has its line
    try:
        if args.role:
            ROLES[args.role](args.folder)
        else:
            print("\n".join(run(args.minutes, args.every)))
    except (Missed, VhostUserError, OSError, AssertionError) as failure:
        print(f"soak_kill: {failure}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
