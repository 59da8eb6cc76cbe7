"""`vhu-blk` is killed under load, again and again, and another one takes up what it had in progress."""

from __future__ import annotations

import random
import signal
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from vhostuser import Disconnected, Frontend
from vhostuser.drivers.blk import FEATURES, BlockDriver
from vhostuser.queue import Completion
from vhostuser.testing import DEADLINE
from vhostuser.virtio.block import HEADER, SECTOR, BlockRequest

from .programs import BLK, Program, serving

QUEUES, SIZE, DEPTH, KILLS = 4, 64, 16, 20
SECTORS = 1 << 16


class Load:
    """Writes to ever new sectors on all queues, with a flush now and then; what came back of them."""

    def __init__(self, frontend: Frontend, seed: int) -> None:
        self.chance = random.Random(seed)
        self.drivers = [BlockDriver(frontend, queue, SIZE, timeout=DEADLINE) for queue in range(QUEUES)]
        self.written: dict[int, bytes] = {}
        """What was given to each sector."""
        self.flying: list[dict[int, int | None]] = [{} for _ in range(QUEUES)]
        """Queue by queue: the sector of each ticket, None for a flush."""
        self.done = 0

    def fill(self) -> None:
        """Have as much in flight as there may be."""
        for driver, flying in zip(self.drivers, self.flying, strict=True):
            while len(flying) < DEPTH:
                self._submit(driver, flying)
            driver.queue.notify()

    def _submit(self, driver: BlockDriver, flying: dict[int, int | None]) -> None:
        if self.chance.random() < 0.05:
            flying[driver.queue.submit([HEADER.pack(BlockRequest.FLUSH, 0, 0)], [1])] = None
            return
        sector = len(self.written)
        self.written[sector] = data = self.chance.randbytes(SECTOR)
        flying[driver.queue.submit([HEADER.pack(BlockRequest.OUT, 0, sector), data], [1])] = sector

    def collect(self) -> None:
        """Take what came back: each ticket once, each with the status that all went well."""
        for driver, flying in zip(self.drivers, self.flying, strict=True):
            for completion in driver.queue.completions(DEADLINE) if flying else ():
                self._check(completion, flying)

    def _check(self, completion: Completion, flying: dict[int, int | None]) -> None:
        flying.pop(completion.ticket)
        assert completion.buffers[-1] == b"\0"
        self.done += 1


@pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
def test_p01_killed_under_load_and_started_anew_it_loses_and_repeats_nothing(tmp_path: Path, packed: bool) -> None:
    disk, path = tmp_path / "disk", tmp_path / "s"
    with disk.open("wb") as file:
        file.truncate(SECTORS * SECTOR)
    options = ("--blk-file", str(disk), "--num-queues", str(QUEUES))

    def start() -> None:
        path.unlink(missing_ok=True)
        lives.append(serving(path, *options, module=BLK))

    lives: list[Program] = []
    start()
    try:
        with Frontend.connect(path, wait=DEADLINE, features=FEATURES, inflight=True, packed=packed) as frontend:
            frontend.share_memory(16 << 20)
            frontend.track_inflight(SIZE)
            load = Load(frontend, seed=packed)
            for _ in range(KILLS):
                with suppress(Disconnected):
                    for _ in range(load.chance.randrange(1, 8)):
                        load.fill()
                        load.collect()
                    load.fill()
                with lives.pop() as program:
                    program.signal(signal.SIGKILL)
                    program.end()
                start()
                frontend.reconnect(path, wait=DEADLINE)
            while any(load.flying):
                load.collect()
            assert load.done > KILLS * DEPTH
            content = disk.read_bytes()
            for sector, data in load.written.items():
                assert content[sector * SECTOR : (sector + 1) * SECTOR] == data, sector
    finally:
        with ExitStack() as left:
            for program in lives:
                left.enter_context(program)
