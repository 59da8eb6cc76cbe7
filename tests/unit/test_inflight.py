"""The inflight area: a back-end may be killed after any step, and what comes after it loses and repeats nothing."""

from __future__ import annotations

import itertools
import os
import random
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import FrameType
from unittest import mock

import pytest

from vhostuser import DescriptorChain, _native, accelerated
from vhostuser.errors import QueueBroken, RemoteProtocolError
from vhostuser.memory import inflight
from vhostuser.memory.guest import GuestMemory
from vhostuser.memory.inflight import PACKED, SPLIT, InflightArea, new_area
from vhostuser.protocol.payloads import Inflight, MemoryRegion, VringAddr
from vhostuser.testing import sparse_file
from vhostuser.tracked_packed import TrackedPacked
from vhostuser.tracked_split import TrackedSplit
from vhostuser.transport.fds import OwnedFd
from vhostuser.virtio.driver import DriverQueue
from vhostuser.virtio.formats import ring_format
from vhostuser.virtio.numbers import Feature
from vhostuser.virtqueue import DeviceQueue, Place

PARTS = (0x0, 0x4000, 0x8000)
BUFFERS = 0x10000
MEMORY = 0x20000
FORMATS = {"split": 0, "packed": 1 << Feature.RING_PACKED}
STEPS_IN = ("tracked_split", "tracked_packed", "inflight", "split", "packed")
"""The modules whose every line may be the last one."""


class Killed(BaseException):
    """The back-end is dead: what it has not stored is lost."""


class Shared:
    """What outlives a back-end: the memory with the ring in it, the area, and the driver."""

    def __init__(self, features: int, size: int, *, sealed: bool = True, entries: int | None = None) -> None:
        self.features, self.size = features, size
        self.file = sparse_file(MEMORY, seal=True)
        self.memory = GuestMemory.of([MemoryRegion(0, MEMORY, 0, 0)], [self.file.fileno()])
        self.body, self.area_file = new_area(2, entries or size)
        if not sealed:
            self.area_file.close()
            self.area_file = sparse_file(self.body.mmap_size)
        form = ring_format(features)
        views = [self.memory.at_user(at, length) for at, length in zip(PARTS, form.sizes(size), strict=True)]
        self.driver = form.driver(size, *views)
        self.base = form.first_base
        self.written: list[int] = []
        """What each request that came back says was written, in order."""

    def begin(self) -> DeviceQueue:
        """What a back-end begins with: it knows of no base but the first, as after QEMU's reconnection."""
        return self.place().begin(self.base if self.features else self.used)

    def place(self, *, tracked: bool = True) -> Place:
        """Where the ring lies: it is number 1."""
        area = InflightArea(self.body, self.area_file.fileno()) if tracked else None
        addresses = VringAddr(1, 0, PARTS[0], PARTS[2], PARTS[1], 0)
        return Place(1, self.size, addresses, self.memory, self.features, area)

    @property
    def used(self) -> int:
        """The used index of a split ring."""
        return int.from_bytes(self.memory.at_user(PARTS[2] + 2, 2), "little")

    def offer(self, number: int, buffers: int) -> None:
        """A request that says its number in its first bytes, in some buffers."""
        at = BUFFERS + 16 * number
        self.memory.at_user(at, 4)[:] = number.to_bytes(4, "little")
        self.driver.add([(at, 4)], [(at + 4 + each, 1) for each in range(buffers - 1)])

    def collect(self) -> int:
        """Take all that came back; a driver that is given something twice says so."""
        count = 0
        while done := self.driver.collect():
            self.written.append(done[1])
            count += 1
        return count

    def close(self) -> None:
        self.file.close()
        self.area_file.close()


def free_of(shared: Shared) -> int:
    assert isinstance(shared.driver, DriverQueue)
    return len(shared.driver._free)


def number_of(chain: DescriptorChain) -> int:
    return int.from_bytes(chain.read(4), "little")


@pytest.fixture(params=list(FORMATS.values()), ids=list(FORMATS))
def features(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture
def make(features: int) -> Iterator[Callable[..., Shared]]:
    made: list[Shared] = []

    def new(size: int = 8, **options: bool) -> Shared:
        made.append(Shared(features, size, **options))
        return made[-1]

    yield new
    for shared in made:
        shared.close()


def pop_all(queue: DeviceQueue) -> list[DescriptorChain]:
    """All that waits."""
    return list(iter(queue.pop, None))


def give_back(queue: DeviceQueue, *chains: DescriptorChain) -> None:
    """Give requests back, and show it."""
    for chain in chains:
        queue.push(chain)
    queue.publish()


def serve(queue: DeviceQueue, order: random.Random, batch: int = 3) -> bool:
    """Take up to `batch` requests and give them back in any order; whether there was one."""
    taken: list[DescriptorChain] = []
    while len(taken) < batch and (chain := queue.pop()):
        taken.append(chain)
    order.shuffle(taken)
    for chain in taken:
        chain.written = number_of(chain) & 0xFFFFFFFF
        queue.push(chain)
    queue.publish()
    return bool(taken)


def killing(step: int) -> Callable[[FrameType, str, object], object]:
    """A trace function that kills before the line number `step` of the modules in question is run."""
    left = itertools.count(step, -1)

    def trace(frame: FrameType, event: str, arg: object) -> object:
        if Path(frame.f_code.co_filename).stem not in STEPS_IN:
            return None
        if event == "line" and next(left) <= 0:
            raise Killed
        return trace

    return trace


def until_killed(step: int, work: Callable[[], object]) -> bool:
    """Run `work`; whether it was killed before its `step`th line."""
    before = sys.gettrace()
    sys.settrace(killing(step))  # type: ignore[arg-type]
    try:
        work()
    except Killed:
        return True
    finally:
        sys.settrace(before)
    return False


def live(shared: Shared, seed: int) -> None:
    """A back-end's life: begin, and serve until nothing is left."""
    queue, order = shared.begin(), random.Random(seed)
    while serve(queue, order):
        pass


def outlive(shared: Shared) -> None:
    """The life after: one request at a time, and the driver looks after each."""
    queue = shared.begin()
    shared.collect()
    while serve(queue, random.Random(0), batch=1):
        shared.collect()


def offer_all(shared: Shared, numbers: Iterator[int], most: int) -> int:
    """Offer requests of one to three buffers as long as there is room; how many."""
    count = 0
    for number in itertools.islice(numbers, most):
        try:
            shared.offer(number, 1 + number % 3)
        except BufferError:
            shared.offer(number, 1)
        count += 1
    return count


@pytest.mark.parametrize("size", [4, 8])
def test_p01_a_back_end_killed_before_any_line_loses_and_repeats_nothing(
    make: Callable[..., Shared], features: int, size: int
) -> None:
    for step in itertools.count(1):
        shared = make(size - (size == 8 and features > 0))
        numbers = iter(range(1, 100))
        offered = offer_all(shared, numbers, 2)
        live(shared, 0)
        shared.collect()
        offered += offer_all(shared, numbers, size // 2)
        killed = until_killed(step, partial(live, shared, step))
        outlive(shared)
        assert sorted(shared.written) == list(range(1, offered + 1)), step
        shared.close()
        if not killed:
            break
    assert step > 50, "the lines of a life were counted"


def test_p01_deaths_that_follow_each_other_lose_and_repeat_nothing(make: Callable[..., Shared]) -> None:
    chance = random.Random(7)
    for _ in range(60):
        shared, numbers, offered = make(chance.choice((4, 8, 16))), iter(range(1, 1000)), 0
        for seed in range(chance.randrange(2, 12)):
            room = shared.size // 3 - (offered - len(shared.written))
            offered += offer_all(shared, numbers, max(0, room))
            until_killed(chance.randrange(1, 400), partial(live, shared, seed))
            if chance.random() < 0.5:
                shared.collect()
        outlive(shared)
        assert sorted(shared.written) == list(range(1, offered + 1))
        shared.close()


@pytest.mark.parametrize(("lives", "size"), [(1, 3), (3, 4)])
def test_p01_a_packed_ring_that_wraps_loses_and_repeats_nothing(size: int, lives: int) -> None:
    """Chains of all descriptors but one: their flags stay behind, and look like those of what is offered next."""
    chance = random.Random(size * lives)
    for step in itertools.count(1):
        shared = Shared(FORMATS["packed"], size)
        for number in range(1, lives + 1):
            shared.offer(number, size - 1)
            outlive(shared)
        shared.offer(lives + 1, size - 1)
        killed = until_killed(step, partial(live, shared, step))
        if killed and step % 2:
            until_killed(chance.randrange(1, 150), partial(live, shared, step))
        outlive(shared)
        shared.offer(lives + 2, size - 1)
        outlive(shared)
        assert sorted(shared.written) == list(range(1, lives + 3)), step
        shared.close()
        if not killed:
            break
    assert step > 50, "the lines of a life were counted"


def test_p01_a_rollback_that_is_killed_before_any_line_is_made_by_the_next_one() -> None:
    for step in itertools.count(1):
        shared = Shared(FORMATS["packed"], 5)
        shared.offer(1, 3)
        queue = shared.begin()
        taken = pop_all(queue)
        assert isinstance(queue, TrackedPacked)
        queue.queue = mock.Mock(size=5, push=queue.queue.push, publish=mock.Mock(side_effect=Killed))
        with pytest.raises(Killed):
            give_back(queue, *taken)
        killed = until_killed(step, shared.begin)
        outlive(shared)
        assert shared.written == [1], step
        shared.close()
        if not killed:
            break
    assert step > 50, "the lines of a recovery were counted"


@pytest.mark.skipif(not accelerated, reason="nothing is compiled")
def test_the_compiled_ring_keeps_the_same_books() -> None:
    """After each step the area has the same bytes, and so has the ring."""
    sides = [Shared(0, 8), Shared(0, 8)]
    queues = [sides[0].begin(), sides[1].begin()]
    assert isinstance(queues[0], _native.ring.SplitRing)
    with mock.patch.object(_native, "accelerated", new=False):
        queues[1] = sides[1].begin()
    assert isinstance(queues[1], TrackedSplit)
    taken: list[list[DescriptorChain]] = [[], []]
    chance, numbers = random.Random(3), itertools.count(1)
    for _ in range(3000):
        step, at = chance.choice(("offer", "pop", "pop", "push", "push", "publish", "collect")), chance.random()
        number = next(numbers) % 500
        for side, queue, mine in zip(sides, queues, taken, strict=True):
            if step == "offer" and free_of(side) > 2:
                side.offer(number, 1 + number % 3)
            elif step == "pop" and (chain := queue.pop()):
                mine.append(chain)
            elif step == "push" and mine:
                queue.push(mine.pop(int(at * len(mine))))
            elif step == "publish":
                queue.publish()
            elif step == "collect":
                side.collect()
        areas = [os.pread(side.area_file.fileno(), 1 << 16, 0) for side in sides]
        assert areas[0] == areas[1]
    assert any(areas[0]), "the area is in use"
    for side in sides:
        side.close()


def test_what_was_taken_comes_again_in_the_order_in_which_it_was_taken(make: Callable[..., Shared]) -> None:
    shared = make(8)
    for number in (1, 2, 3, 4):
        shared.offer(number, 2)
    first = shared.begin()
    taken = [chain for _ in range(3) if (chain := first.pop())]
    first.push(taken[1])
    first.publish()
    second = shared.begin()
    again = [number_of(chain) for _ in range(3) if (chain := second.pop())]
    assert again == [1, 3, 4]
    assert second.pop() is None


def test_an_area_whose_file_may_shrink_is_used_by_copies(make: Callable[..., Shared]) -> None:
    shared = make(8, sealed=False)
    for number in (1, 2, 3):
        shared.offer(number, 2)
    queue = shared.begin()
    assert (chain := queue.pop())
    live(shared, 0)
    assert shared.collect() == 3
    assert number_of(chain) in shared.written


def test_an_area_that_is_gone_breaks_the_queue(make: Callable[..., Shared]) -> None:
    shared = make(8, sealed=False)
    shared.offer(1, 2)
    queue = shared.begin()
    os.ftruncate(shared.area_file.fileno(), 0)
    with pytest.raises(QueueBroken, match="the inflight area is gone"):
        serve(queue, random.Random(0))


def test_an_area_that_goes_while_a_request_is_in_progress_breaks_a_packed_queue_once() -> None:
    """What was to be published is not published later: nobody knows what the area says of it."""
    shared = Shared(FORMATS["packed"], 8, sealed=False)
    shared.offer(1, 2)
    queue = shared.begin()
    taken = pop_all(queue)
    os.ftruncate(shared.area_file.fileno(), 0)
    with pytest.raises(QueueBroken, match="the inflight area is gone"):
        give_back(queue, *taken)
    assert not queue.publish()
    assert shared.collect() == 0
    shared.close()


def test_an_area_without_room_for_a_packed_ring_breaks_that_ring(make: Callable[..., Shared], features: int) -> None:
    """One of an older front-end, say, whose parts are as large as those of split rings."""
    shared = make(8)
    shared.body = Inflight(inflight.area_size(SPLIT, 2, 8), 0, 2, 8)
    if features:
        with pytest.raises(QueueBroken, match="has 0x180 bytes, the part of ring 1 ends at 0x280"):
            shared.begin()
    else:
        shared.begin()
    InflightArea(shared.body, shared.area_file.fileno()).forget()


def test_a_ring_that_the_area_is_not_for_is_not_tracked(make: Callable[..., Shared]) -> None:
    shared = make(8)
    shared.body = Inflight(inflight.area_size(PACKED, 1, 8), 0, 1, 8)
    shared.offer(1, 2)
    queue = shared.begin()
    assert queue.pop()
    assert not any(os.pread(shared.area_file.fileno(), 1 << 16, 0))


@pytest.mark.parametrize("tracked", [False, True])
@pytest.mark.parametrize("slot", range(8))
def test_a_ring_full_of_what_is_in_progress_goes_on_elsewhere_where_it_was(slot: int, tracked: bool) -> None:
    """Also from slot 0 of an even round, whose base is 0x8000."""
    shared = Shared(FORMATS["packed"], 4)
    place = shared.place(tracked=tracked)
    queue = filled(shared, place.begin(None), slot)
    taken = pop_all(queue)
    queue = place.go_on(queue)
    give_back(queue, *taken)
    assert (len(taken), shared.collect()) == (4, 4)
    shared.close()


@pytest.mark.parametrize("slot", range(8))
def test_a_ring_full_of_what_is_in_progress_is_taken_up_where_it_was(slot: int) -> None:
    shared = Shared(FORMATS["packed"], 4)
    assert len(pop_all(filled(shared, shared.begin(), slot))) == 4
    queue = shared.begin()
    give_back(queue, *pop_all(queue))
    assert shared.collect() == 4
    shared.close()


def filled(shared: Shared, queue: DeviceQueue, slot: int) -> DeviceQueue:
    """The queue, whose driver offers all of a ring of four descriptors from a position on."""
    for number in range(slot):
        shared.offer(number, 1)
        give_back(queue, *pop_all(queue))
        assert shared.collect() == 1
    for number in range(4):
        shared.offer(number, 1)
    return queue


def test_a_ring_larger_than_the_areas_parts_is_refused(make: Callable[..., Shared]) -> None:
    with pytest.raises(QueueBroken, match="has 4 entries, the ring 8"):
        make(8, entries=4).begin()


def test_a_version_of_the_future_is_refused(make: Callable[..., Shared], features: int) -> None:
    shared = make(8)
    fields = InflightArea(shared.body, shared.area_file.fileno()).part(1, PACKED if features else SPLIT)
    assert fields
    fields.put(inflight.VERSION_AT, 2, 2)
    with pytest.raises(QueueBroken, match="version 2, not 1"):
        shared.begin()


def test_an_area_that_is_forgotten_has_nothing_in_progress(make: Callable[..., Shared]) -> None:
    shared = make(8)
    shared.offer(1, 2)
    assert shared.begin().pop()
    InflightArea(shared.body, shared.area_file.fileno()).forget()
    queue = shared.begin()
    assert [number_of(chain) for _ in range(2) if (chain := queue.pop())] == [1], "once, from the ring"


@pytest.mark.parametrize("seed", range(40))
def test_an_area_of_random_bytes_gives_requests_or_a_broken_queue(
    make: Callable[..., Shared], features: int, seed: int
) -> None:
    """The front-end can write whatever it likes there."""
    shared, chance = make(8), random.Random(seed)
    layout = PACKED if features else SPLIT
    fields = InflightArea(shared.body, shared.area_file.fileno()).part(1, layout)
    assert fields
    for at in range(0, layout.size(8), 2):
        fields.put(at, 2, chance.choice((0, 1, 2, 7, 8, 0xFFFF, chance.randrange(1 << 16))))
    fields.put(inflight.VERSION_AT, 2, 1)
    for number in (1, 2, 3):
        shared.offer(number, 2)
    try:
        queue = shared.begin()
        for _ in range(40):
            if not serve(queue, chance):
                break
    except QueueBroken:
        pass


@pytest.mark.parametrize(
    ("body", "match"),
    [
        (Inflight(64, 0, 1, 8), "mmap_size 0x40 is less than its queues need"),
        (Inflight(0x1000, 0x1000, 1, 8), "passes the file's end 0x1000"),
        (Inflight(0x100, 4, 1, 8), "is no multiple of 8"),
        (Inflight((1 << 64) - 8, 8, 1, 8), "passes the file's end"),
    ],
)
def test_an_area_that_can_not_be_is_refused(body: Inflight, match: str) -> None:
    with sparse_file(0x1000) as file, pytest.raises(RemoteProtocolError, match=match):
        InflightArea(body, file.fileno())


def test_a_pipe_is_no_area() -> None:
    ends = [OwnedFd(fd) for fd in os.pipe()]
    with ends[0], ends[1], pytest.raises(RemoteProtocolError, match="SET_INFLIGHT_FD"):
        InflightArea(Inflight(0, 0, 1, 8), ends[0].fileno())
