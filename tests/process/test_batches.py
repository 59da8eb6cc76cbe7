"""Devices that take all requests that wait at once."""

from __future__ import annotations

import os
from collections.abc import Sequence

import pytest

from vhostuser import DescriptorChain, Device
from vhostuser.memory.mapping import map_file
from vhostuser.testing import DEADLINE, MockDriver, answer_of, chain_of, joined, raw_frontend, wait_until
from vhostuser.testing.raw_frontend import FEATURES
from vhostuser.virtio.formats import PACKED, SPLIT, Format
from vhostuser.virtio.numbers import Feature

from .test_undrained import Rig


class Batching(Device):
    """Answers each request with its place in the batch."""

    queue_sizes = (16,)

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def process_batch(self, queue: int, chains: Sequence[DescriptorChain]) -> None:
        self.sizes.append(len(chains))
        for place, chain in enumerate(chains):
            if chain.read() == b"fail":
                raise ValueError("this one")
            chain.write(b"%d" % place)


@pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
def test_what_waits_together_is_handled_together(packed: bool) -> None:
    device = Batching()
    with joined(device, packed=packed) as (frontend, _):
        frontend.share_memory(1 << 20)
        queue = frontend.start_queue(0, size=16)
        assert queue.exchange(b"one", reply_size=1) == b"0"
        tickets = [queue.submit([b"many"], [1]) for _ in range(7)]
        queue.notify()
        answers = [queue.finish(ticket, timeout=DEADLINE).data for ticket in tickets]
        assert sum(device.sizes) == 8
        assert answers == sorted(answers) or len(device.sizes) > 2
        assert queue.exchange(b"fail", reply_size=1) == b"", "it comes back with nothing"
        assert queue.exchange(b"on", reply_size=1) == b"0"


def test_a_broken_request_breaks_the_queue_after_those_before_it() -> None:
    device = Batching()
    with raw_frontend(device) as raw:
        rig = Rig(raw, device)  # type: ignore[arg-type]
        assert rig.driver
        rig.memory[0x10000:0x10003] = b"ok "
        rig.driver.add([(0x10000, 3)], [(0x20000, 1)])
        rig.driver.add([(1 << 40, 3)], [])
        assert raw.kick
        os.eventfd_write(raw.kick.fileno(), 1)
        wait_until(lambda: raw.served.backend.counters.broken == 1, "the queue is broken")
        assert rig.answers() == 1
        rig.close()


@pytest.mark.parametrize("ring", [SPLIT, PACKED], ids=["split", "packed"])
def test_a_mock_driver_may_leave_nonsense(ring: Format) -> None:
    with raw_frontend(Batching()) as raw:
        features = raw_features(ring)
        raw.negotiate(features=features)
        memory = map_file(raw.share_memory().fileno(), 1 << 20, 0)
        driver = MockDriver(raw, memory, form=ring)
        memory[0x8000:0x8002] = b"hi"
        assert driver.exchange([(0x8000, 2)], [(0x9000, 1)]) == 1
        slot = 2 if ring.is_packed else driver.driver.add([(0x8000, 2)], [])
        if ring.is_packed:
            driver.describe(slot, 1 << 40, 2, 0, 1 << 7)
        else:
            driver.describe(slot, 1 << 40, 2, 0, 0)
        driver.kick()
        driver.broken()


def raw_features(ring: Format) -> int:
    return FEATURES | ring.is_packed << Feature.RING_PACKED


def test_a_device_is_asked_without_a_connection() -> None:
    chains = [chain_of(b"a", b"b", room=(1, 1)), chain_of(room=())]
    Batching().process_batch(0, chains)
    assert [answer_of(chain) for chain in chains] == [b"0", b""]
