"""Requests whose buffers are in indirect tables ("Indirect Descriptors", "Indirect Flag"), in both formats."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from vhostuser import DescriptorChain, Frontend, LocalProtocolError, Queue
from vhostuser.drivers.blk import FEATURES, BlockDriver
from vhostuser.protocol.numbers import ProtocolFeature as F
from vhostuser.protocol.numbers import mask
from vhostuser.testing import DEADLINE, RawBackend, Served, joined
from vhostuser.testing.raw_backend import FEATURES as FEATURES_OF_RAW
from vhostuser.virtio.block import SECTOR
from vhostuser.virtio.numbers import Feature

from .devices import SECTORS, Answering, Disk

SIZE = 8
formats = pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])


class Waiting(Answering):
    """A device that echoes once it may."""

    def __init__(self) -> None:
        super().__init__(self._echo)
        self.may = threading.Event()

    def _echo(self, chain: DescriptorChain) -> None:
        self.may.wait(DEADLINE)
        chain.write(chain.read())


@contextmanager
def started(packed: bool) -> Iterator[tuple[Frontend, Queue, Waiting]]:
    device = Waiting()
    with joined(device, packed=packed) as both:
        try:
            both.frontend.share_memory(1 << 20)
            yield both.frontend, both.frontend.start_queue(0, size=SIZE, indirect=True), device
        finally:
            device.may.set()


@formats
def test_a_queue_of_n_holds_n_requests_of_any_number_of_buffers(packed: bool) -> None:
    with started(packed) as (_, queue, device):
        free, rand = queue._memory.free, random.Random(5)
        for _ in range(5):
            wanted = {}
            for number in range(SIZE):
                parts = [rand.randbytes(rand.randrange(1, 40)) for _ in range(1 + number // 2)]
                sizes = [len(part) for part in parts][: SIZE - len(parts)]
                ticket = queue.submit(parts, sizes)
                wanted[ticket] = b"".join(parts)[: sum(sizes)]
            with pytest.raises(BufferError, match="1 descriptors wanted, 0 of 8 are free"):
                queue.submit([b"x"], [1])
            device.may.set()
            assert {ticket: queue.finish(ticket, timeout=DEADLINE).data for ticket in wanted} == wanted
            device.may.clear()
            assert queue._memory.free == free


@formats
def test_a_request_has_no_more_buffers_than_the_queue_entries(packed: bool) -> None:
    with started(packed) as (_, queue, device):
        device.may.set()
        free = queue._memory.free
        with pytest.raises(BufferError, match="9 buffers wanted, a table of this queue has 1 to 8"):
            queue.submit([b"x"] * 5, [1] * 4)
        with pytest.raises(BufferError):
            queue.submit()
        assert queue._memory.free == free
        ticket = queue.submit([b"ab"] * 4, [2] * 4)
        assert queue.finish(ticket, timeout=DEADLINE).buffers == (b"ab",) * 4


def test_tables_are_only_for_back_ends_that_offer_them() -> None:
    with RawBackend() as raw, raw.frontend() as frontend:
        frontend.share_memory(1 << 20)
        with pytest.raises(LocalProtocolError, match="start_queue indirect needs RING_INDIRECT_DESC, which was not offered"):
            frontend.start_queue(0, size=SIZE, indirect=True)
        frontend.start_queue(0, size=SIZE)


@formats
def test_tables_go_on_with_another_back_end(packed: bool) -> None:
    features = FEATURES_OF_RAW | mask((Feature.RING_INDIRECT_DESC, *([Feature.RING_PACKED] if packed else [])))
    with (
        RawBackend(features=features, protocol_features=mask((F.MQ, F.REPLY_ACK))) as raw,
        raw.frontend(packed=packed) as frontend,
    ):
        frontend.share_memory(1 << 20)
        queue = frontend.start_queue(0, size=SIZE, indirect=True)
        wanted = {queue.submit([data, data], [2, 2]): data + data for data in (bytes([at, at]) for at in range(SIZE))}
        raw.main.end()
        served = Served(Answering(lambda chain: chain.write(chain.read())))
        try:
            frontend.reconnect(served.connected(), wait=DEADLINE, resubmit=True)
            assert {ticket: queue.finish(ticket, timeout=DEADLINE).data for ticket in wanted} == wanted
        finally:
            served.stop()


@formats
def test_a_disk_has_as_many_requests_as_its_queue_entries(packed: bool) -> None:
    disk = Disk()
    with joined(disk, features=FEATURES, packed=packed) as both:
        both.frontend.share_memory(4 << 20)
        driver = BlockDriver(both.frontend, size=SIZE, indirect=True, timeout=DEADLINE)
        data = random.Random(7).randbytes(SECTORS * SECTOR)
        most = 0

        def given() -> Iterator[tuple[int, bytes]]:
            nonlocal most
            for sector in range(SECTORS):
                most = max(most, driver.queue.in_flight + 1)
                yield sector, data[sector * SECTOR :][:SECTOR]

        assert driver.write_many(given()) == SECTORS
        assert most == SIZE
        assert bytes(disk.content) == data
        assert dict(driver.read_many([(0, 100), (100, 156)])) == {0: data[: 100 * SECTOR], 100: data[100 * SECTOR :]}
