"""Stops, resets and reconnections while a device is at work."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import MappingProxyType

import pytest

from vhostuser import DescriptorChain, Device, Frontend
from vhostuser.memory.mapping import map_file
from vhostuser.protocol.numbers import BackendRequest, FrontendRequest, ProtocolFeature, VhostFeature, mask
from vhostuser.protocol.payloads import U64, Log, VringState
from vhostuser.testing import DEADLINE, joined, listening, memory_file, raw_frontend, sparse_file, wait_until
from vhostuser.testing.raw_frontend import FEATURES, PROTOCOL_FEATURES
from vhostuser.transport.fds import close_all
from vhostuser.virtio.formats import PACKED, SPLIT, Format
from vhostuser.virtio.numbers import Feature

from .test_kept import Keeper
from .test_undrained import Rig, Stuck

Q, F = FrontendRequest, ProtocolFeature
MANY = 12


class ManyQueues(Keeper):
    """Keeps what it is given, on more queues than a second a queue would leave time for."""

    queue_sizes: tuple[int, ...] = (16,) * MANY
    drain_timeout = 1.0


def test_all_rings_of_a_reset_stop_in_the_time_of_one() -> None:
    device = ManyQueues()
    with joined(device, reply_timeout=DEADLINE) as (frontend, _):
        frontend.share_memory(1 << 20)
        for queue in [frontend.start_queue(index, size=16) for index in range(MANY)]:
            queue.submit([b"kept"], [8])
            queue.notify()
        wait_until(lambda: len(device.kept) == MANY, "all are kept")
        frontend.request(Q.RESET_DEVICE)  # a second a ring would be more than the front-end waits
        device.kept.clear()


@contextmanager
def stuck() -> Iterator[Stuck]:
    device = Stuck()
    try:
        yield device
    finally:
        device.goes_on.set()


@pytest.mark.parametrize("ring", [SPLIT, PACKED], ids=["split", "packed"])
def test_a_ring_that_is_stopped_wants_kicks(ring: Format) -> None:
    """Whoever has it next may not know of any other state."""
    with stuck() as device, raw_frontend(device) as raw:
        device.drain_timeout = DEADLINE
        raw.negotiate(features=FEATURES | mask((Feature.RING_PACKED,)) * ring.is_packed)
        memory = map_file(raw.share_memory().fileno(), 1 << 16, 0)
        raw.set_up_queue(size=16, ring=ring)
        sizes = ring.sizes(16)
        starts = (0, sizes[0], sizes[0] + -(-sizes[1] // 4) * 4)
        parts = [memory[start : start + size] for start, size in zip(starts, sizes, strict=True)]
        memory[0x8000:0x8004] = b"wait"
        ring.driver(16, *parts).add([(0x8000, 4)], [(0x9000, 2)])
        assert raw.kick
        os.eventfd_write(raw.kick.fileno(), 1)
        assert device.waits.wait(DEADLINE)
        raw.request(Q.GET_VRING_BASE, VringState(0, 0))
        device.goes_on.set()
        assert VringState.unpack(raw.receive().payload).index == 0
        assert int.from_bytes(parts[2][2:4] if ring.is_packed else parts[2][:2], "little") == 0


def test_what_python_does_when_a_log_begins_is_done_to_its_end() -> None:
    with stuck() as device, raw_frontend(device) as raw, sparse_file(0x1000) as log:
        rig = Rig(raw, device)
        rig.ask(b"wait")
        assert device.waits.wait(DEADLINE)
        wanted = raw.value(Q.GET_PROTOCOL_FEATURES) & (PROTOCOL_FEATURES | mask((F.LOG_SHMFD,)))
        raw.accepted(Q.SET_PROTOCOL_FEATURES, U64(wanted))
        raw.reply(Q.SET_LOG_BASE, Log(0x1000, 0), fds=[log])
        raw.accepted(Q.SET_FEATURES, U64(FEATURES | mask((VhostFeature.LOG_ALL,))))
        device.goes_on.set()
        wait_until(lambda: rig.answers() == 1, "it is given back")
        rig.close()


class Late(Device):
    """Says in what order its requests end."""

    queue_sizes = (16,)
    drain_timeout = DEADLINE

    def __init__(self) -> None:
        self.begun, self.goes_on = threading.Event(), threading.Event()
        self.ended: list[bytes] = []

    def process(self, queue: int, chain: DescriptorChain) -> None:
        request = chain.read()
        if request == b"first":
            self.begun.set()
            self.goes_on.wait(DEADLINE)
        self.ended.append(request)


def test_a_request_of_the_connection_before_ends_before_the_next_one_is_served() -> None:
    device = Late()
    with listening(device) as (path, _):
        with Frontend.connect(path) as frontend:
            frontend.share_memory(1 << 20)
            queue = frontend.start_queue(0, size=16)
            queue.submit([b"first"])
            queue.notify()
            assert device.begun.wait(DEADLINE)
        timer = threading.Timer(1.5, device.goes_on.set)
        timer.start()
        with Frontend.connect(path, reply_timeout=DEADLINE) as frontend:
            frontend.share_memory(1 << 20)
            frontend.start_queue(0, size=16).exchange(b"second")
        timer.join()
    assert device.ended == [b"first", b"second"]


class Mapping(Device):
    """Maps a page for each request, and waits for its host a minute."""

    queue_sizes = (16,)
    shared_memory = MappingProxyType({0: 1 << 16})
    drain_timeout = 60.0

    def process(self, queue: int, chain: DescriptorChain) -> None:
        with memory_file(1) as page:
            self.shm[0].map(page, shm_offset=0, len=4096)


@pytest.mark.parametrize("how", ["GET_VRING_BASE", "SET_VRING_ENABLE"])
def test_k2_a_stop_does_not_wait_for_what_the_front_end_can_not_answer_meanwhile(how: str) -> None:
    """QEMU disables a ring first, and then asks where it stopped."""
    with raw_frontend(Mapping(), reply_timeout=10 * DEADLINE) as raw:
        raw.negotiate()
        requests = raw.open_requests()
        memory = map_file(raw.share_memory().fileno(), 1 << 16, 0)
        raw.set_up_queue(size=16)
        sizes = SPLIT.sizes(16)
        starts = (0, sizes[0], sizes[0] + -(-sizes[1] // 4) * 4)
        parts = [memory[start : start + size] for start, size in zip(starts, sizes, strict=True)]
        SPLIT.driver(16, *parts).add([(0x8000, 4)], [])
        assert raw.kick
        os.eventfd_write(raw.kick.fileno(), 1)
        asked = requests.receive()
        assert asked.request == BackendRequest.SHMEM_MAP
        close_all(asked.fds)
        if how == "SET_VRING_ENABLE":
            raw.accepted(Q.SET_VRING_ENABLE, VringState(0, 0))
        raw.request(Q.GET_VRING_BASE, VringState(0, 0))
        assert VringState.unpack(raw.receive().payload).index == 0
