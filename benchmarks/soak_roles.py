"""The processes of `soak_kill.py`: two that survive, two that are killed, an honest peer; and what is known of the data."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from pathlib import Path
from types import FrameType, MappingProxyType
from typing import Final

from vhostuser import Backend, DescriptorChain, Device, Frontend
from vhostuser.devices.blk import BlockDevice
from vhostuser.devices.disk import Disk
from vhostuser.devices.shm import MappedFiles, Offer
from vhostuser.drivers.blk import FEATURES, BlockDriver
from vhostuser.protocol.framing import request_frame
from vhostuser.protocol.numbers import BackendRequest, FrontendRequest
from vhostuser.protocol.payloads import Mmap, VringState
from vhostuser.testing import Wire, memory_file
from vhostuser.transport.fds import close_all

MIB, PAGE, SECTOR = 1 << 20, 4096, 512
NONSENSE: Final = 0.01
SECTORS, DEPTH = 2048, 32
WAIT: Final = 30.0
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
