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
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType, MappingProxyType
from typing import Final, NamedTuple

from vhostuser import Backend, DescriptorChain, Device, Disconnected, Frontend, VhostUserError
from vhostuser.devices.blk import BlockDevice
from vhostuser.devices.disk import Disk
from vhostuser.devices.shm import MappedFiles, Offer
from vhostuser.drivers.blk import FEATURES, BlockDriver
from vhostuser.drivers.shm import ShmDriver
from vhostuser.protocol.framing import request_frame
from vhostuser.protocol.numbers import BackendRequest, FrontendRequest
from vhostuser.protocol.payloads import Mmap, VringState
from vhostuser.testing import Wire, memory_file, usage, wait_until
from vhostuser.transport.fds import close_all

HERE: Final = Path(__file__).resolve()
MIB, PAGE, SECTOR = 1 << 20, 4096, 512
MINUTES, EVERY, SLOPE = 30.0, 10.0, 0.5
LONG_ENOUGH: Final = 600.0
"""Seconds from which on a slope is judged: a page more is 0.08 MiB an hour in three minutes."""
NONSENSE: Final = 0.01
SECTORS, DEPTH = 2048, 32
WAIT: Final = 30.0
SETTLED: Final = 10.0
"""Seconds that a process has to come to rest before it is looked at."""
READY: Final = "ready\n"
WINDOW, PLACES = 64 * PAGE, 16


class Missed(Exception):
    """A goal is missed."""


# What is written, and what is known of it


class Ledger:
    """The number that was last written to each sector, in a file that outlives who writes it: begun, then done."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
        os.ftruncate(self._fd, SECTORS * 16)

    def begin(self, sector: int, number: int) -> None:
        os.pwrite(self._fd, number.to_bytes(8, "little"), sector * 16)

    def finish(self, sector: int, number: int) -> None:
        os.pwrite(self._fd, number.to_bytes(8, "little"), sector * 16 + 8)

    def check(self, content: bytes) -> None:
        """Each sector has what was done last, or what was begun and never answered."""
        rows = os.pread(self._fd, SECTORS * 16, 0)
        for sector in range(SECTORS):
            begun, done = (int.from_bytes(rows[sector * 16 + at : sector * 16 + at + 8], "little") for at in (0, 8))
            there = content[sector * SECTOR : (sector + 1) * SECTOR]
            if there not in (sector_of(begun), sector_of(done)):
                raise Missed(f"sector {sector} has {there[:8].hex()}, and not what was written: {done:#x} or {begun:#x}")


def sector_of(number: int) -> bytes:
    return number.to_bytes(8, "little") * (SECTOR // 8)


class Load:
    """Writes and reads of a disk, all of them checked."""

    def __init__(self, driver: BlockDriver, ledger: Ledger, dice: random.Random) -> None:
        self._driver, self._ledger, self._dice = driver, ledger, dice
        self.requests = 0

    def round(self) -> None:
        """DEPTH writes at a time, of other sectors each; then as many reads of them."""
        sectors = self._dice.sample(range(SECTORS), DEPTH)
        numbers = {sector: self._dice.getrandbits(64) for sector in sectors}
        for sector, number in numbers.items():
            self._ledger.begin(sector, number)
        self._driver.write_many(((sector, sector_of(number)) for sector, number in numbers.items()), depth=DEPTH)
        for sector, number in numbers.items():
            self._ledger.finish(sector, number)
        for sector, data in self._driver.read_many(((sector, 1) for sector in sectors), depth=DEPTH):
            if data != sector_of(numbers[sector]):
                raise Missed(f"sector {sector} reads {data[:8].hex()} after {numbers[sector]:#x} was written")
        self.requests += 2 * DEPTH

    def verify(self) -> None:
        """All of the disk is as it was written."""
        self._ledger.check(b"".join(self._driver.read(start, 64) for start in range(0, SECTORS, 64)))


def half(began: float) -> None:
    """Rest for as long as the work took since then."""
    time.sleep(time.monotonic() - began)


# The processes


class Echo(Device):
    """Gives back what came, and has it mapped in the region."""

    queue_sizes = (64,)
    shared_memory = MappingProxyType({0: WINDOW})

    def __init__(self) -> None:
        self._file = memory_file(1)

    def process(self, queue: int, chain: DescriptorChain) -> None:
        asked = chain.read()
        os.pwrite(self._file.fileno(), asked, 0)
        if self.shm[0].mappings:
            self.shm[0].unmap(shm_offset=0, len=PAGE)
        self.shm[0].map(self._file, shm_offset=0, len=PAGE)
        chain.write(asked)


class Rude(MappedFiles):
    """Asks its front-end for nonsense now and then, and must be refused."""

    dice = random.Random(3)

    def process(self, queue: int, chain: DescriptorChain) -> None:
        if self.dice.random() < NONSENSE:
            self._be_rude()
        super().process(queue, chain)

    def _be_rude(self) -> None:
        body = self.dice.choice([Mmap(9, 0, 0, PAGE), Mmap(0, 1, 0, PAGE), Mmap(0, 0, WINDOW, PAGE), Mmap(0, 0, 0, 1 << 62)])
        port = self.shm[0]._port
        with port.lock, memory_file(1) as file:
            if (channel := port._channel) is None:
                return
            frame = request_frame(BackendRequest.SHMEM_MAP, body, (file.fileno(),), need_reply=True)
            channel.send(frame, "nonsense")
            reply = channel.receive()
            close_all(reply.fds)
            if not int.from_bytes(reply.payload, "little"):
                os._exit(3)  # nonsense was accepted


def serve(backends: dict[str, Backend]) -> None:
    """Serve each at its path, until SIGTERM."""
    threads = [threading.Thread(target=backend.serve, args=(path,)) for path, backend in backends.items()]

    def stop(number: int, frame: FrameType | None) -> None:
        for backend in backends.values():
            backend.stop()

    signal.signal(signal.SIGTERM, stop)
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def host(folder: Path) -> None:
    """Survives: a disk for a guest that is rude and killed, and an echo for an honest peer."""
    disk = BlockDevice(Disk(folder / "host.img"))
    serve({f"{folder}/host": Backend(disk), f"{folder}/honest": Backend(Echo())})


def back(folder: Path) -> None:
    """Is killed: a disk, and a device that maps."""
    disk = BlockDevice(Disk(folder / "back.img"))
    rude = Rude({0: WINDOW}, (), [Offer(str(folder / "mapped"))], num_queues=1)
    rude.dice = random.Random()
    serve({f"{folder}/disk": Backend(disk), f"{folder}/maps": Backend(rude)})


def guest(folder: Path) -> None:
    """Is killed: loads the host's disk, and sends nonsense."""
    dice = random.Random()
    with Frontend.connect(folder / "host", wait=WAIT, features=FEATURES) as frontend:
        frontend.share_memory(4 * MIB)
        load = Load(BlockDriver(frontend), Ledger(folder / "host.ledger"), dice)
        load.verify()
        wire = Wire(frontend._driving.channel.socket)
        print(end=READY, flush=True)
        while True:
            began = time.monotonic()
            load.round()
            if dice.random() < NONSENSE * 2 * DEPTH:
                wire.refused(FrontendRequest.SET_VRING_NUM, VringState(dice.randrange(1, 1 << 16), 16))
            half(began)


def honest(folder: Path) -> None:
    """Asks for an echo until SIGTERM, and sees each twice: as an answer, and mapped. Says how many it were."""
    done, over = 0, []
    signal.signal(signal.SIGTERM, lambda *_: over.append(True))
    with Frontend.connect(folder / "honest", wait=WAIT) as frontend:
        frontend.share_memory(MIB)
        queue = frontend.start_queue(0, size=64)
        print(end=READY, flush=True)
        while not over:
            began, asked = time.monotonic(), (done + 1).to_bytes(8, "little")
            if queue.exchange(asked, 8, timeout=WAIT) != asked or frontend.shm[0].read(0, 8) != asked:
                raise Missed(f"the honest peer was answered wrongly at request {done}")
            done += 1
            half(began)
    print(done, flush=True)


ROLES: Final = {"host": host, "back": back, "guest": guest, "honest": honest}


# This process, which survives as well


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
