"""Our block driver against qemu-storage-daemon, which is libvhost-user: what it says is compared with the file."""

from __future__ import annotations

import os
import random
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count, pairwise
from pathlib import Path

import pytest

from tests.drivers.devices import Disk
from vhostuser import Disconnected, Frontend, RequestFailed
from vhostuser.drivers.blk import FEATURES, BlockDriver
from vhostuser.testing import DEADLINE, joined
from vhostuser.virtio.block import HEADER, RANGE, SECTOR, BlockFeature, BlockRequest, BlockStatus

from .peers import storage_daemon

pytestmark = [pytest.mark.vm, pytest.mark.usefixtures("qemu")]

SECTORS = 4096
OUT = BlockRequest.OUT


@pytest.fixture
def file(place: Path) -> Path:
    """A disk of 2 MiB whose bytes differ from sector to sector."""
    path = place / "disk"
    path.write_bytes(random.Random(1).randbytes(SECTORS * SECTOR))
    return path


@contextmanager
def connected(path: Path) -> Iterator[Frontend]:
    with Frontend.connect(path, features=FEATURES, reply_timeout=DEADLINE) as frontend:
        frontend.share_memory(8 << 20)
        yield frontend


@contextmanager
def driving(file: Path, *, size: int = 128, writable: bool = True) -> Iterator[BlockDriver]:
    """The daemon with this file, and a driver of its first queue."""
    path = file.with_name("s")
    with storage_daemon(file, path, writable=writable), connected(path) as frontend:
        yield BlockDriver(frontend, size=size, timeout=DEADLINE)


def pieces(seed: int, number: int = 256) -> list[tuple[int, bytes]]:
    """Random bytes for the whole disk, in pieces of many lengths and in no order."""
    rand = random.Random(seed)
    cuts = [0, *sorted(rand.sample(range(1, SECTORS), number - 1)), SECTORS]
    found = [(start, rand.randbytes((end - start) * SECTOR)) for start, end in pairwise(cuts)]
    rand.shuffle(found)
    return found


@pytest.mark.parametrize("depth", [1, 128])
def test_what_is_written_is_in_the_file_and_comes_back(file: Path, depth: int) -> None:
    with driving(file, size=512) as driver:
        assert driver.read(17, 3) == file.read_bytes()[17 * SECTOR : 20 * SECTOR]
        written = pieces(depth)
        assert driver.write_many(written, depth=depth) == len(written)
        driver.flush()
        content = b"".join(data for _, data in sorted(written))
        assert file.read_bytes() == content
        reads = [(sector, len(data) // SECTOR) for sector, data in written]
        assert sorted(driver.read_many(reads, depth=depth)) == sorted(written)


def test_the_device_is_known(file: Path) -> None:
    with driving(file) as driver:
        assert (driver.capacity, driver.block_size, driver.identify()) == (SECTORS, SECTOR, "vhost_user_blk")
        assert driver.features >= {BlockFeature.FLUSH, BlockFeature.DISCARD, BlockFeature.WRITE_ZEROES, BlockFeature.MQ}
        assert not driver.read_only
        assert driver.config.num_queues == 1


def test_discarded_and_zeroed_sectors_read_as_zeroes(file: Path) -> None:
    content = bytearray(file.read_bytes())
    with driving(file) as driver:
        driver.discard(1024, 1024)
        driver.write_zeroes(2051, 7)
        driver.write_zeroes(3072, 512, unmap=True)
        for first, count in ((1024, 1024), (2051, 7), (3072, 512)):
            assert driver.read(first, count) == bytes(count * SECTOR)
            content[first * SECTOR : (first + count) * SECTOR] = bytes(count * SECTOR)
        driver.flush()
        assert file.read_bytes() == content
        assert os.stat(file).st_blocks * 512 <= (SECTORS - 1024) * SECTOR


def test_what_it_refuses_is_named_and_harms_nothing(file: Path) -> None:
    content = file.read_bytes()
    with driving(file) as driver:
        for refused in (lambda: driver.read(SECTORS, 1), lambda: driver.write(SECTORS - 1, bytes(2 * SECTOR))):
            with pytest.raises(RequestFailed, match="was answered with IOERR"):
                refused()
        ticket = driver.queue.submit([HEADER.pack(99, 0, 0)], [1])
        assert driver.queue.finish(ticket, timeout=DEADLINE).data == bytes([BlockStatus.UNSUPP])
        assert driver.read(0, 8) == content[: 8 * SECTOR]
    assert file.read_bytes() == content


def test_a_read_only_export_takes_no_writes(file: Path) -> None:
    content = file.read_bytes()
    with driving(file, writable=False) as driver:
        assert driver.read_only
        with pytest.raises(RequestFailed, match="OUT sector 0 was answered with IOERR"):
            driver.write(0, bytes(SECTOR))
        assert driver.read(0, 1) == content[:SECTOR]
    assert file.read_bytes() == content


def test_four_queues_work_at_a_time(file: Path) -> None:
    path, content = file.with_name("s"), file.read_bytes()
    quarter = SECTORS // 4
    with storage_daemon(file, path, queues=4), connected(path) as frontend:
        assert frontend.queue_count == 4
        drivers = [BlockDriver(frontend, queue, 64, timeout=DEADLINE) for queue in range(4)]
        assert drivers[0].config.num_queues == 4
        wanted = [[(queue * quarter + at, 8) for at in range(0, quarter, 8)] for queue in range(4)]
        readers = [driver.read_many(places, depth=16) for driver, places in zip(drivers, wanted, strict=True)]
        rounds = list(zip(*readers, strict=True))  # all four are busy at a time
        for each in rounds:
            for queue, (sector, data) in enumerate(each):
                drivers[queue].write((sector + quarter) % SECTORS, data)
        drivers[3].flush()
    assert file.read_bytes() == content[-quarter * SECTOR :] + content[: -quarter * SECTOR]


def test_a_queue_is_stopped_and_started_again(file: Path) -> None:
    with driving(file) as driver:
        frontend = driver.queue._waiter
        assert isinstance(frontend, Frontend)
        for turn in range(1, 20):
            for _ in range(turn):
                driver.write(turn, bytes([turn]) * SECTOR)
            assert frontend.stop_queue(0) == turn
            driver.queue = frontend.start_queue(0, size=(32, 128)[turn % 2])
        assert driver.read(1, 19) == b"".join(bytes([turn]) * SECTOR for turn in range(1, 20))


def test_a_daemon_that_is_killed_is_gone_and_its_successor_has_what_was_flushed(file: Path) -> None:
    path = file.with_name("s")
    with storage_daemon(file, path) as process, connected(path) as frontend:
        driver = BlockDriver(frontend, size=512, timeout=DEADLINE)
        driver.write(5, b"A" * SECTOR)
        driver.flush()
        reads = driver.read_many(((0, 64) for _ in count()), depth=128)
        next(reads)
        process.kill()
        with pytest.raises(Disconnected):
            deque(reads, maxlen=0)
    path.unlink()
    with storage_daemon(file, path):
        for turn in (b"A", b"B", b"C"):  # and it serves one front-end after another
            with connected(path) as frontend:
                driver = BlockDriver(frontend, timeout=DEADLINE)
                assert driver.read(5, 1) == turn * SECTOR
                driver.write(5, bytes([turn[0] + 1]) * SECTOR)


def test_what_a_killed_daemon_left_undone_is_done_by_its_successor(file: Path) -> None:
    """A new front-end repeats what had no answer: then the file is what it would have been."""
    path, written = file.with_name("s"), pieces(5)
    answered: set[int] = set()
    with storage_daemon(file, path) as process, connected(path) as frontend:
        driver = BlockDriver(frontend, size=512, timeout=DEADLINE)
        tickets = {driver.queue.submit([HEADER.pack(OUT, 0, sector), data], [1]): sector for sector, data in written[:128]}
        answered.update(tickets[each.ticket] for each in driver.queue.completions(DEADLINE))
        process.kill()
        with suppress(Disconnected):
            while done := driver.queue.completions(DEADLINE):
                answered.update(tickets[each.ticket] for each in done)
        with pytest.raises(Disconnected):
            driver.read(0, 1)
    assert answered
    path.unlink()
    with storage_daemon(file, path), connected(path) as frontend:
        driver = BlockDriver(frontend, size=512, timeout=DEADLINE)
        for sector, data in written:
            assert sector not in answered or driver.read(sector, len(data) // SECTOR) == data
        driver.write_many([each for each in written if each[0] not in answered], depth=128)
        driver.flush()
    assert file.read_bytes() == b"".join(data for _, data in sorted(written))


def test_reads_writes_and_discards_are_mixed_at_full_depth(file: Path) -> None:
    """128 requests of three kinds in flight, each in a place of its own."""
    content = bytearray(file.read_bytes())
    with driving(file, size=512) as driver:
        reads = {}
        for number in range(128):
            start = number * 32
            if number % 3 == 0:
                reads[driver.queue.submit([HEADER.pack(BlockRequest.IN, 0, start)], [32 * SECTOR, 1])] = start
            elif number % 3 == 1:
                data = random.Random(number).randbytes(32 * SECTOR)
                driver.queue.submit([HEADER.pack(OUT, 0, start), data], [1])
                content[start * SECTOR : (start + 32) * SECTOR] = data
            else:
                driver.queue.submit([HEADER.pack(BlockRequest.DISCARD, 0, 0), RANGE.pack(start, 32, 0)], [1])
                content[start * SECTOR : (start + 32) * SECTOR] = bytes(32 * SECTOR)
        while driver.queue.in_flight:
            for done in driver.queue.completions(DEADLINE):
                assert done.buffers[-1] == bytes([BlockStatus.OK])
                if (at := reads.pop(done.ticket, None)) is not None:
                    assert done.buffers[0] == content[at * SECTOR : (at + 32) * SECTOR]
        assert reads == {}
        driver.flush()
        assert file.read_bytes() == content


def test_our_disk_and_the_daemon_give_the_same_answers(file: Path) -> None:
    """The device that the drivers' tests use is a block device as QEMU understands it."""
    ours = Disk(SECTORS)
    ours.content[:] = file.read_bytes()
    with driving(file) as theirs, joined(ours, features=FEATURES) as both:
        both.frontend.share_memory(8 << 20)
        driver = BlockDriver(both.frontend)
        for each in (theirs, driver):
            each.write_many(pieces(9, 32), depth=8)
            each.write_zeroes(9, 100)
        assert dict(theirs.read_many([(0, 512), (512, 512)])) == dict(driver.read_many([(0, 512), (512, 512)]))
    assert file.read_bytes() == ours.content
