"""The block driver against a disk in memory."""

from __future__ import annotations

import random
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from vhostuser import DescriptorChain, LocalProtocolError, RequestFailed
from vhostuser.drivers.blk import FEATURES, BlockDriver
from vhostuser.errors import DeadlineExpired
from vhostuser.protocol.numbers import mask
from vhostuser.testing import DEADLINE, joined
from vhostuser.virtio.block import SECTOR, BlockConfig, BlockFeature, BlockRequest

from .devices import ID, SECTORS, Answering, Disk

F, R = BlockFeature, BlockRequest


@contextmanager
def driving(
    device: Disk | Answering, *, size: int = 128, features: int = FEATURES, packed: bool = False
) -> Iterator[BlockDriver]:
    with joined(device, features=features, packed=packed) as both:
        assert ("RING_PACKED" in both.frontend.features) is packed
        both.frontend.share_memory(4 << 20)
        yield BlockDriver(both.frontend, size=size)


def test_what_was_written_is_read_back() -> None:
    disk = Disk()
    with driving(disk) as driver:
        assert driver.read(3, 2) == bytes(disk.content[3 * SECTOR : 5 * SECTOR])
        data = random.Random(1).randbytes(5 * SECTOR)
        driver.write(7, data)
        assert driver.read(7, 5) == data == bytes(disk.content[7 * SECTOR : 12 * SECTOR])
        assert driver.read(SECTORS - 1, 1) == bytes(disk.content[-SECTOR:])
        driver.flush()
        assert disk.counts == {R.IN: 3, R.OUT: 1, R.FLUSH: 1}


def test_ranges_carry_their_numbers() -> None:
    disk = Disk()
    with driving(disk) as driver:
        driver.discard(1, 2)
        driver.write_zeroes(4, 3)
        driver.write_zeroes(9, 1, unmap=True)
        assert disk.ranges == [(1, 2, 0), (4, 3, 0), (9, 1, 1)]
        assert disk.counts == {R.DISCARD: 1, R.WRITE_ZEROES: 2}
        assert driver.read(4, 3) == bytes(3 * SECTOR)


def test_the_driver_knows_the_device() -> None:
    with driving(Disk()) as driver:
        assert driver.identify() == ID.decode()
        assert (driver.capacity, driver.block_size, driver.config.num_queues) == (SECTORS, 4096, 2)
        assert driver.features == {F.FLUSH, F.DISCARD, F.WRITE_ZEROES, F.MQ, F.BLK_SIZE}
        assert not driver.read_only
    with driving(Disk(8, F.RO)) as driver:
        assert driver.read_only
        assert driver.block_size == SECTOR


@pytest.mark.parametrize("size", [8, 36, 60, 72])
def test_a_configuration_space_may_have_any_length_of_the_specifications(size: int) -> None:
    space = BlockConfig(capacity=9, num_queues=1).pack().ljust(72, b"\0")[:size]
    with driving(Answering(lambda chain: None, space)) as driver:
        assert (driver.capacity, driver.config.num_queues) == (9, 1 if size > 8 else 0)


def test_without_a_configuration_space_there_is_no_driver() -> None:
    with pytest.raises(RequestFailed, match="GET_CONFIG"), driving(Answering(lambda chain: None, b"")):
        pass


# A no


def test_what_the_device_refuses_is_named() -> None:
    with driving(Disk()) as driver:
        with pytest.raises(RequestFailed, match=f"IN sector {SECTORS} was answered with IOERR") as caught:
            driver.read(SECTORS, 1)
        assert (caught.value.request, caught.value.status) == ("IN", 1)
        with pytest.raises(RequestFailed, match="OUT sector 255 was answered with IOERR"):
            driver.write(SECTORS - 1, bytes(2 * SECTOR))
        assert driver.read(0, 1) == bytes(SECTOR)


@pytest.mark.parametrize(("status", "name"), [(1, "IOERR"), (2, "UNSUPP"), (3, "status 3"), (255, "status 255")])
def test_a_status_counts_where_it_is_not_where_the_device_says_it_ends(status: int, name: str) -> None:
    def fail(chain: DescriptorChain) -> None:
        chain.writable[-1][-1:] = bytes([status])
        chain.written = 1

    with driving(Answering(fail)) as driver, pytest.raises(RequestFailed, match=f"answered with {name}$") as caught:
        driver.read(0, 1)
    assert caught.value.status == status


def test_no_status_at_all_is_no_success() -> None:
    with driving(Answering(lambda chain: None)) as driver, pytest.raises(RequestFailed, match="not even a status"):
        driver.identify()


def test_what_was_not_negotiated_is_not_sent() -> None:
    disk = Disk()
    with driving(disk, features=0) as driver:
        calls: dict[str, Callable[[], None]] = {
            "flush": driver.flush,
            "discard": lambda: driver.discard(0, 1),
            "write_zeroes": lambda: driver.write_zeroes(0, 1),
        }
        for name, call in calls.items():
            with pytest.raises(LocalProtocolError, match=f"{name} needs feature {name.upper()}, which was not offered"):
                call()
        assert driver.read(1, 1)
        assert disk.counts == {R.IN: 1}


@pytest.mark.parametrize("data", [b"", bytes(511), bytes(513)])
def test_only_whole_sectors_are_written(data: bytes) -> None:
    with driving(Disk()) as driver:
        with pytest.raises(LocalProtocolError, match=f"write data of {len(data)} bytes"):
            driver.write(0, data)
        with pytest.raises(LocalProtocolError, match="read count 0 is not at least 1"):
            driver.read(0, 0)


# Many


@pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
@pytest.mark.parametrize(("depth", "size"), [(1, 4), (7, 128), (85, 256), (128, 256), (32, 4)])
def test_many_requests_at_any_depth(depth: int, size: int, packed: bool) -> None:
    disk, rand = Disk(), random.Random(depth)
    with driving(disk, size=size, packed=packed) as driver:
        pieces = [(sector, rand.randbytes(SECTOR)) for sector in range(SECTORS)]
        assert driver.write_many(pieces, depth=depth) == SECTORS
        assert bytes(disk.content) == b"".join(data for _, data in pieces)
        wanted = [(sector, 2) for sector in range(0, SECTORS, 2)]
        found = dict(driver.read_many(wanted, depth=depth))
        assert b"".join(found[sector] for sector, _ in wanted) == bytes(disk.content)
        assert list(driver.read_many([])) == []


def test_as_many_are_in_flight_as_the_depth_says_and_the_queue_can_take() -> None:
    with driving(Disk(), size=16) as driver:
        for depth, most in ((3, 3), (64, 5)):
            reads = driver.read_many(((0, 1) for _ in range(20)), depth=depth)
            assert next(reads)[0] == 0
            assert len(driver.queue._flights) + len(driver.queue._done) <= most
            assert sum(1 for _ in reads) == 19
            assert driver.queue.in_flight == 0
    with driving(Disk(), size=2) as driver, pytest.raises(LocalProtocolError, match="depth 1 with 2 descriptors"):
        driver.write_many([(0, bytes(SECTOR))], depth=1)


def test_other_requests_may_be_made_between_many() -> None:
    disk = Disk()
    with driving(disk) as driver:
        for sector, data in driver.read_many(((sector, 1) for sector in range(64)), depth=8):
            driver.write(64 + sector, data)
        first, second = (driver.read_many((sector, 1) for sector in range(start, start + 9)) for start in (0, 64))
        assert sorted(data for _, data in first) == sorted(data for _, data in second)
        assert disk.content[64 * SECTOR : 128 * SECTOR] == disk.content[: 64 * SECTOR]


def test_two_iterators_over_one_queue_take_nothing_from_each_other() -> None:
    disk = Disk()
    with driving(disk) as driver:
        readers = [driver.read_many(((sector, 1) for sector in range(start, start + 20)), depth=4) for start in (0, 100)]
        both = [[sector for sector, _ in found] for found in zip(*zip(*readers, strict=True), strict=True)]
        assert [sorted(sectors) for sectors in both] == [list(range(20)), list(range(100, 120))]


def test_one_that_fails_among_many_ends_them_and_leaves_the_driver_well() -> None:
    with driving(Disk()) as driver:
        places = [(sector, 1) for sector in (0, 1, SECTORS, 2, 3, 4)]
        with pytest.raises(RequestFailed, match=f"IN sector {SECTORS} was answered with IOERR"):
            deque(driver.read_many(places, depth=4), maxlen=0)
        assert driver.queue.in_flight == 0
        assert driver.read(5, 1) == (5).to_bytes(4, "little") * 128


def test_an_iterator_that_is_left_alone_leaves_the_driver_well() -> None:
    with driving(Disk()) as driver:
        next(driver.read_many(((0, 1) for _ in range(100)), depth=16))  # its end is the end of the last reference
        assert driver.queue.in_flight == 0
        assert driver.read(5, 1) == (5).to_bytes(4, "little") * 128


def test_each_queue_has_a_driver_of_its_own() -> None:
    disk = Disk()
    with joined(disk, features=FEATURES) as both:
        both.frontend.share_memory(1 << 20)
        first, second = (BlockDriver(both.frontend, queue, 32) for queue in (0, 1))
        reads = first.read_many([(sector, 1) for sector in range(40)], depth=8)
        for sector, data in reads:
            second.write(sector + 100, data)
        assert disk.content[100 * SECTOR : 140 * SECTOR] == disk.content[: 40 * SECTOR]


def test_a_device_that_does_not_answer_in_time_is_an_error() -> None:
    go = threading.Event()
    with joined(Answering(lambda chain: go.wait(DEADLINE))) as both:
        both.frontend.share_memory(1 << 20)
        driver = BlockDriver(both.frontend, timeout=0.01)
        try:
            for call in (lambda: driver.read(0, 1), lambda: driver.write_many([(0, bytes(SECTOR))])):
                with pytest.raises(DeadlineExpired, match=r"queue 0: no answer within 0.01 s"):
                    call()
            assert driver.queue.in_flight == 0
        finally:
            go.set()


def test_the_features_are_those_of_the_specification() -> None:
    assert mask((5, 6, 9, 10, 12, 13, 14)) == FEATURES
