"""qemu-storage-daemon is killed with requests in flight, and another one goes on. It tracks none: they are done again."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

import pytest

from vhostuser import Disconnected, Frontend, LocalProtocolError
from vhostuser.drivers.blk import FEATURES, BlockDriver
from vhostuser.queue import Completion
from vhostuser.testing import DEADLINE
from vhostuser.virtio.block import HEADER, SECTOR, BlockRequest
from vhostuser.vm.tree import storage_daemon_command

from .peers import Process, listening, storage_daemon

pytestmark = [pytest.mark.vm, pytest.mark.usefixtures("qemu")]

SECTORS = 4096
QUICK = 4
"""Requests that the slow daemon does at once; the others wait in it for years."""


@pytest.fixture
def file(place: Path) -> Path:
    path = place / "disk"
    path.write_bytes(bytes(SECTORS * SECTOR))
    return path


def slow_daemon(disk: Path, path: Path) -> AbstractContextManager[Process]:
    """One that takes every request, and is done with hardly any of them."""
    throttle = f"throttle-group,id=slow,x-iops-total=1,x-iops-total-max={QUICK}"
    command = [*storage_daemon_command(), "--object", throttle]
    command += ["--blockdev", f"file,node-name=file,filename={disk}"]
    command += ["--blockdev", "throttle,node-name=disk,file=file,throttle-group=slow"]
    export = f"vhost-user-blk,id=e0,node-name=disk,addr.type=unix,addr.path={path},num-queues=2,writable=on"
    return listening([*command, "--export", export], path)


@contextmanager
def connected(path: Path) -> Iterator[Frontend]:
    with Frontend.connect(path, features=FEATURES, reply_timeout=DEADLINE, inflight=True) as frontend:
        frontend.share_memory(8 << 20)
        yield frontend


def write(driver: BlockDriver, sector: int, data: bytes) -> int:
    return driver.queue.submit([HEADER.pack(BlockRequest.OUT, 0, sector), data], [1])


def take_all(driver: BlockDriver, found: list[Completion]) -> None:
    """Wait for all that is in flight."""
    while driver.queue.in_flight:
        found.extend(driver.queue.completions(DEADLINE))


def test_p01_after_a_kill_every_request_completes_once_and_the_data_is_right(file: Path) -> None:
    path, rand = file.with_name("s"), random.Random(3)
    with slow_daemon(file, path) as process, connected(path) as frontend:
        drivers = [BlockDriver(frontend, queue, 256, timeout=DEADLINE) for queue in range(2)]
        places = rand.sample(range(SECTORS), 100)
        data = {sector: rand.randbytes(SECTOR) for sector in places}
        tickets = [{write(driver, sector, data[sector]) for sector in places[at::2]} for at, driver in enumerate(drivers)]
        done: list[list[Completion]] = [[], []]
        drivers[0].queue.notify()
        done[0] += drivers[0].queue.completions(DEADLINE)
        drivers[1].queue.notify()
        process.kill()
        process.wait(DEADLINE)
        with pytest.raises(Disconnected):
            take_all(drivers[1], done[1])
        path.unlink()
        with storage_daemon(file, path, queues=2):
            with pytest.raises(LocalProtocolError, match="requests are in flight and not tracked"):
                frontend.reconnect(path)
            left = sum(driver.queue.waiting for driver in drivers)
            assert 100 - 2 * QUICK <= left < 100
            frontend.reconnect(path, resubmit=True)
            for driver, found, wanted in zip(drivers, done, tickets, strict=True):
                take_all(driver, found)
                assert sorted(each.ticket for each in found) == sorted(wanted)
                assert {each.data for each in found} == {b"\0"}
            drivers[0].flush()
            content = file.read_bytes()
            assert all(content[sector * SECTOR :][:SECTOR] == data.get(sector, bytes(SECTOR)) for sector in range(SECTORS))
            assert drivers[1].read(places[0], 1) == data[places[0]]


@pytest.mark.parametrize("indirect", [False, True])
@pytest.mark.parametrize("depth", [1, 64])
def test_a_driver_that_reconnects_writes_on_through_three_kills(file: Path, depth: int, indirect: bool) -> None:
    path, rand = file.with_name("s"), random.Random(depth)
    pieces = [(sector, rand.randbytes(4 * SECTOR)) for sector in range(0, SECTORS, 4)]
    rand.shuffle(pieces)
    with ExitStack() as stack:
        processes = [stack.enter_context(storage_daemon(file, path))]

        def next_daemon() -> None:
            processes[-1].wait(DEADLINE)
            path.unlink()
            processes.append(stack.enter_context(storage_daemon(file, path)))
            frontend.reconnect(path, wait=DEADLINE, resubmit=True)

        def given() -> Iterator[tuple[int, bytes]]:
            for number, piece in enumerate(pieces):
                if number % 256 == 200 and len(processes) < 4:
                    processes[-1].kill()
                yield piece

        frontend = stack.enter_context(connected(path))
        driver = BlockDriver(frontend, size=256, timeout=DEADLINE, indirect=indirect, on_disconnect=next_daemon)
        assert driver.write_many(given(), depth=depth) == len(pieces)
        driver.flush()
        assert len(processes) == 4
        assert file.read_bytes() == b"".join(data for _, data in sorted(pieces))


def test_in_indirect_tables_a_queue_of_128_has_128_requests_in_the_daemon(file: Path) -> None:
    path, size = file.with_name("s"), 128
    with slow_daemon(file, path), connected(path) as frontend:
        driver = BlockDriver(frontend, size=size, timeout=DEADLINE, indirect=True)
        data = [bytes([number + 1]) * SECTOR for number in range(size)]
        for sector in range(size):
            write(driver, sector, data[sector])
        with pytest.raises(BufferError, match="1 descriptors wanted, 0 of 128 are free"):
            driver.queue.submit([b"x"], [1])
        done: list[Completion] = []
        while len(done) < QUICK:
            done += driver.queue.completions(DEADLINE)
        assert {each.data for each in done} == {b"\0"}
        assert driver.queue.waiting == size - len(done)
        content = file.read_bytes()
        assert sum(content[sector * SECTOR :][:SECTOR] == data[sector] for sector in range(size)) >= len(done)


def test_an_idle_driver_goes_on_with_every_daemon_that_comes(file: Path) -> None:
    path = file.with_name("s")
    with connected_once(file, path) as (frontend, driver):
        for turn in range(1, 4):
            path.unlink()
            with storage_daemon(file, path):
                frontend.reconnect(path, wait=DEADLINE)
                assert driver.read(turn - 1, 1) == bytes([turn - 1]) * SECTOR
                driver.write(turn, bytes([turn]) * SECTOR)


@contextmanager
def connected_once(file: Path, path: Path) -> Iterator[tuple[Frontend, BlockDriver]]:
    """A driver whose daemon is gone."""
    with storage_daemon(file, path) as process, connected(path) as frontend:
        driver = BlockDriver(frontend, timeout=DEADLINE)
        assert driver.read(0, 1) == bytes(SECTOR)
        process.kill()
        process.wait(DEADLINE)
        yield frontend, driver
