"""Requests of both sides at once, in any order: all are answered, and both sides agree on what is mapped."""

from __future__ import annotations

import random
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from tests.wire.devices import Scripted
from vhostuser import Frontend, MapRequest
from vhostuser.protocol.numbers import FrontendRequest
from vhostuser.protocol.payloads import U64, VringState
from vhostuser.testing import joined, sparse_file
from vhostuser.transport.fds import OwnedFd

Q = FrontendRequest
PAGE = 4096
PAGES = 64
RUNS, STEPS = 1_000, 12
WATCHDOG = 30
REGION = PAGES * PAGE


class Mapper:
    """The device's half of a run: random maps and unmaps, one by one and many at once, and what should be there."""

    def __init__(self, device: Scripted, file: OwnedFd, dice: random.Random) -> None:
        self.region, self.file, self.dice = device.shm[0], file, dice
        self.there: dict[int, int] = {}

    def run(self) -> None:
        for _ in range(STEPS):
            self.dice.choice((self.map, self.map, self.map_many, self.unmap, self.unmap_many))()

    def free(self) -> list[tuple[int, int]]:
        """Ranges, one a slot of four pages, where nothing is."""
        return [(at * PAGE, self.dice.randint(1, 4) * PAGE) for at in range(0, PAGES, 4) if at * PAGE not in self.there]

    def map(self) -> None:
        if free := self.free():
            offset, size = self.dice.choice(free)
            self.region.map(self.file, shm_offset=offset, len=size)
            self.there[offset] = size

    def map_many(self) -> None:
        free = self.free()
        ranges = self.dice.sample(free, self.dice.randint(0, len(free)))
        assert not any(self.region.map_many([MapRequest(self.file, offset, size) for offset, size in ranges]))
        self.there |= dict(ranges)

    def unmap(self) -> None:
        if self.there:
            offset = self.dice.choice(sorted(self.there))
            self.region.unmap(shm_offset=offset, len=self.there.pop(offset))

    def unmap_many(self) -> None:
        gone = self.dice.sample(sorted(self.there.items()), self.dice.randint(0, len(self.there)))
        assert not any(self.region.unmap_many(gone))
        for offset, _ in gone:
            del self.there[offset]


def front_end_steps(frontend: Frontend, dice: random.Random) -> list[Callable[[], object]]:
    """What a front-end may ask at any time; each waits for its answer and serves the back-end meanwhile."""
    queue = frontend._queues[0]
    steps: list[Callable[[], object]] = [
        lambda: frontend.request(Q.GET_FEATURES),
        lambda: frontend.config(0, 4),
        lambda: frontend.request(Q.SET_VRING_NUM, VringState(1, 16)),
        lambda: frontend.request(Q.GET_STATUS),
        lambda: frontend.request(Q.SET_STATUS, U64(15)),
        lambda: frontend.serve(0),
        lambda: queue.exchange(b"ping", 4),
    ]
    return [dice.choice(steps) for _ in range(STEPS)]


@pytest.mark.timeout(180)
def test_a_thousand_random_interleavings() -> None:
    """The device maps in a thread of its own while the queue thread answers and the front-end asks."""
    device = Scripted(regions={0: REGION})
    with joined(device) as both, sparse_file(REGION) as file, ThreadPoolExecutor(1) as pool:
        frontend = both.frontend
        frontend.share_memory(1 << 20)
        for seed in range(RUNS):
            dice = random.Random(seed)
            frontend.start_queue(0, size=16)
            assert device.ready.wait(WATCHDOG)
            mapper = Mapper(device, file, random.Random(~seed))
            mapping: Future[None] = pool.submit(mapper.run)
            for step in front_end_steps(frontend, dice):
                step()
            while not mapping.done():
                frontend.serve(0.001)
            mapping.result()
            assert {mapping.shm_offset: mapping.len for mapping in frontend.shm[0].mappings} == mapper.there
            assert frontend.shm[0].mappings == device.shm[0].mappings
            frontend.reset()
            assert not frontend.shm[0].mappings
        assert frontend.counters.refused == both.served.backend.counters.refused == 0


@pytest.mark.parametrize("seed", range(20))
def test_any_time_is_a_good_time_to_go(seed: int) -> None:
    """Either side ends in the midst of it: the other gets a clean error, and nothing is left."""
    dice = random.Random(seed)
    device = Scripted(regions={0: REGION})
    with joined(device) as both, sparse_file(REGION) as file, ThreadPoolExecutor(1) as pool:
        both.frontend.share_memory(1 << 20)
        both.frontend.start_queue(0, size=16)
        assert device.ready.wait(WATCHDOG)
        mapping = pool.submit(Mapper(device, file, dice).run)
        steps = front_end_steps(both.frontend, dice)
        for step in steps[: dice.randrange(STEPS)]:
            step()
        if seed % 2:
            both.frontend.close()
        else:
            both.served.stop()
        assert mapping.exception(WATCHDOG) is None or type(mapping.exception()).__name__ in (
            "Disconnected",
            "LocalProtocolError",
        )
        both.served.join(WATCHDOG)
        assert both.served.error is None
        assert not device.shm[0].mappings
