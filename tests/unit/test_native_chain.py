"""A request of a compiled ring against one of the pure class: alike in all that a device does to them, right or wrong."""

from __future__ import annotations

import copy
import gc
import pickle
import sys
import threading
from collections.abc import Callable, Sequence
from typing import TypeAlias

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.memory_map import areas
from tests.virtio_rig import BUFFERS, NEXT, PACKED_RIGS, SPLIT_RIGS, WRITE, CompiledRig, Rig
from vhostuser import DescriptorChain, _native
from vhostuser.errors import QueueBroken
from vhostuser.memory.guest import GuestMemory, GuestRegion
from vhostuser.memory.mapping import address_of, map_file
from vhostuser.testing import DEADLINE, sparse_file
from vhostuser.virtio.numbers import Feature
from vhostuser.virtio.packed import FIRST_BASE
from vhostuser.virtqueue import new_device_queue

pytestmark = pytest.mark.skipif(not _native.accelerated, reason="nothing is compiled here, or it is not wanted")

COMPILED: dict[str, type[Rig]] = {
    name: kind for name, kind in (SPLIT_RIGS | PACKED_RIGS).items() if "compiled" in name and "guarded" not in name
}
"""Those whose buffers are memory itself; in memory that may shrink views are of copies (test_guarded.py)."""


def pure(kind: type[Rig]) -> type[Rig]:
    """The rig that a compiled one is made of."""
    return next(base for base in kind.__bases__ if issubclass(base, Rig))


MIDDLE = 512
"""Where the memory of a rig has a border, which pieces may cross."""
Step: TypeAlias = Callable[[DescriptorChain], object]


def request(
    kind: type[Rig], readable: Sequence[tuple[int, int]], writable: Sequence[tuple[int, int]]
) -> tuple[DescriptorChain, Rig]:
    """A request with buffers at these offsets, of these sizes; each offset has a byte of its own."""
    rig = kind(16, buffers=2 * MIDDLE)
    rig.buffers[:] = bytes(at * 7 % 256 for at in range(2 * MIDDLE))
    give, take = ([(BUFFERS + at, size) for at, size in side] for side in (readable, writable))
    rig.driver.add(give, take)
    chain = rig.device.pop()
    assert chain is not None
    return chain, rig


def outcome(step: Step, chain: DescriptorChain) -> object:
    """What a step gives, or what it raises, in the words of a pure request, whose views are in a list."""
    try:
        return step(chain)
    except Exception as error:
        return type(error), str(error).replace("vhostuser._native.chain.RingChain", "DescriptorChain").replace(
            "tuple", "list"
        )


def shown(chain: DescriptorChain) -> list[object]:
    """All that a device can see of a request."""

    def look(name: str) -> Step:
        return lambda chain: getattr(chain, name)

    def content(name: str) -> Step:
        return lambda chain: [(bytes(view), view.readonly, view.format) for view in getattr(chain, name)]

    names = ("head", "entries", "written", "_read", "readable_size", "writable_size")
    return [outcome(look(name), chain) for name in names] + [
        outcome(content(name), chain) for name in ("readable", "writable")
    ]


def read(size: object) -> Step:
    return lambda chain: chain.read(size)  # type: ignore[arg-type]


def write(data: object) -> Step:
    return lambda chain: chain.write(data)  # type: ignore[arg-type]


def put(name: str, value: object) -> Step:
    return lambda chain: setattr(chain, name, value)


def delete(name: str) -> Step:
    return lambda chain: delattr(chain, name)


def release(name: str, at: int) -> Step:
    return lambda chain: getattr(chain, name)[at].release()


def move(name: str, source: str) -> Step:
    """Guest memory to guest memory, which may be the same."""
    return lambda chain: chain.write(getattr(chain, source)[0]) if getattr(chain, name) else None


def replace(name: str, views: Callable[[Sequence[memoryview]], object]) -> Step:
    return lambda chain: setattr(chain, name, views(getattr(chain, name)))


GONE = memoryview(b"released")
GONE.release()
DATA = (
    *(
        b"",
        b"a",
        b"some bytes",
        bytes(range(256)) * 8,
        bytearray(b"array"),
        memoryview(b"a view"),
        memoryview(b"a view")[::2],
    ),
    *(memoryview(b"signed").cast("b"), memoryview(b"of words").cast("H"), memoryview(b"square").cast("B", (2, 3))),
    *("text", None, 3, [1, 2], memoryview(b"scalar")[:1].cast("B", ()), GONE),
)
SIZES = (-1, 0, 1, 2, 7, 100, 1 << 40, 1 << 70, -5, -(1 << 70), True, None, 2.5, "3")
NUMBERS = (0, 1, 5, 40, 1 << 33, 1 << 70, -1, -(1 << 70), True, None, 2.5, "3")
sides = st.sampled_from(["readable", "writable"])
either = st.one_of(
    st.sampled_from(SIZES).map(read),
    st.integers(0, 30).map(read),
    st.sampled_from(range(len(DATA))).map(lambda at: write(DATA[at])),
    st.binary(max_size=30).map(write),
)
odd = st.one_of(
    st.sampled_from(NUMBERS).map(lambda value: put("written", value)),
    st.builds(put, st.sampled_from(["head", "entries"]), st.sampled_from(NUMBERS)),
    st.sampled_from([0, 3, 50, 1000, -1, -50]).map(lambda value: put("_read", value)),
    st.sampled_from(["head", "entries", "written"]).map(delete),
    st.builds(release, sides, st.integers(0, 3)),
    st.builds(move, st.just("writable"), sides),
    st.builds(
        replace, sides, st.sampled_from([list, tuple, lambda views: views[::-1], lambda views: views[1:], lambda _: None])
    ),
    st.builds(put, st.sampled_from(["readable_size", "nothing"]), st.just(1)).map(
        lambda step: lambda chain: type(outcome(step, chain))
    ),
)
buffers = st.lists(
    st.tuples(st.integers(0, 2 * MIDDLE - 40) | st.integers(MIDDLE - 40, MIDDLE), st.integers(0, 40)), max_size=8
)


@pytest.mark.parametrize("kind", COMPILED.values(), ids=COMPILED)
@given(readable=buffers, writable=buffers, steps=st.lists(st.one_of(either, either, odd), max_size=10), looks=st.booleans())
@settings(max_examples=400)
def test_whatever_a_device_does_to_a_request_it_is_as_with_the_pure_one(
    kind: type[Rig], readable: list[tuple[int, int]], writable: list[tuple[int, int]], steps: list[Step], looks: bool
) -> None:
    if not readable + writable:
        return
    (ours, rig), (theirs, other) = (request(each, readable, writable) for each in (kind, pure(kind)))
    assert (type(ours), type(theirs)) == (_native.chain.RingChain, DescriptorChain)
    for step in steps:
        if looks:
            assert shown(ours) == shown(theirs)
        assert outcome(step, ours) == outcome(step, theirs)
    assert shown(ours) == shown(theirs)
    assert bytes(rig.buffers) == bytes(other.buffers)


def test_it_is_a_request_to_whoever_asks() -> None:
    chain, rig = request(COMPILED["compiled"], [(0, 4)], [(8, 4)])
    other, _ = request(COMPILED["compiled"], [(0, 4)], [(8, 4)])
    assert isinstance(chain, DescriptorChain)
    assert {chain: 1, other: 2}[chain] == 1, "each is itself alone"
    assert chain != other
    assert chain.readable is chain.readable
    assert chain.writable is chain.writable
    assert [view.obj for view in (*chain.readable, *chain.writable)] == [rig.buffers.obj] * 2
    assert chain.read(size=2) == bytes(rig.buffers[:2])
    with pytest.raises(TypeError, match="requests come from rings"):
        _native.chain.RingChain()


def test_a_copy_of_it_is_a_request_with_the_same_buffers() -> None:
    chain, rig = request(COMPILED["compiled"], [(0, 4)], [(8, 4)])
    chain.read(1)
    chain.write(b"ab")
    other = copy.copy(chain)
    assert shown(other) == shown(chain)
    other.write(b"cd")
    assert bytes(rig.buffers[8:12]) == b"abcd"
    with pytest.raises(TypeError, match="memoryview"):
        pickle.dumps(chain)


@pytest.mark.parametrize("count", [1, 4, 5, 16])
def test_it_may_have_as_many_pieces_as_it_likes(count: int) -> None:
    """Beyond a few it has no room for them in itself."""
    chain, rig = request(COMPILED["compiled"], [(40 * at, 3) for at in range(count - 1)], [(1000, 3)])
    assert chain.read() == b"".join(bytes(rig.buffers[40 * at : 40 * at + 3]) for at in range(count - 1))
    assert (chain.write(b"four"), bytes(rig.buffers[1000:1003])) == (3, b"fou")


def test_its_fields_hold_what_was_put_there_and_no_more() -> None:
    chain, _ = request(COMPILED["compiled"], [(0, 4)], [(8, 600)])
    values = [int(f"{at}00") for at in (3, 4, 5)]

    def counts() -> list[int]:
        return [sys.getrefcount(value) for value in values]

    before = counts()
    chain.head, chain.entries, chain.written = values
    assert counts() == [count + 1 for count in before]
    assert (chain.write(b"x"), chain.written) == (1, 501)
    assert counts() == [before[0] + 1, before[1] + 1, before[2]]
    del chain
    assert counts() == before


def test_its_pieces_go_with_it() -> None:
    rig = CompiledRig(16)

    def serve() -> int:
        for _ in range(200):
            rig.offer(0)
            chain = rig.device.pop()
            assert chain is not None
            assert len(chain.read()) == 45
            rig.device.push(chain)
        gc.collect()
        return sys.getallocatedblocks()

    for at in range(16):
        rig.describe(at, BUFFERS + 40 * at, 3, NEXT if at < 15 else WRITE, at + 1)
    serve()
    before = serve()
    assert serve() - before < 50


def test_one_that_no_ring_made_harms_nobody() -> None:
    bare = _native.chain.RingChain.__new__(_native.chain.RingChain)
    for name in ("head", "entries", "written"):
        with pytest.raises(AttributeError):
            getattr(bare, name)
    assert ([*bare.readable, *bare.writable], bare.readable_size, bare.writable_size, bare.read()) == ([], 0, 0, b"")
    with pytest.raises(AttributeError):
        bare.write(b"x")
    _, rig = request(COMPILED["compiled"], [(0, 4)], [])
    with pytest.raises(AttributeError, match="deleted"):
        rig.device.push(bare)


@pytest.mark.parametrize("kind", COMPILED.values(), ids=COMPILED)
@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        *((name, value, TypeError) for name in ("head", "entries", "written") for value in (None, "7", 2.5, b"")),
        *((name, value, OverflowError) for name in ("head", "entries", "written") for value in (-1, 1 << 32, 1 << 70)),
        *((name, ..., AttributeError) for name in ("head", "entries", "written")),
    ],
)
def test_p19_a_ring_refuses_a_field_that_is_nonsense(
    kind: type[Rig], name: str, value: object, error: type[Exception]
) -> None:
    """And goes on with the next request as if nothing had been."""
    chain, rig = request(kind, [(0, 4)], [(8, 4)])
    kept = getattr(chain, name)
    if value is ...:
        delattr(chain, name)
    else:
        setattr(chain, name, value)
    before = bytes(rig.used), bytes(rig.descriptors)
    with pytest.raises(error):
        rig.device.push(chain)
    assert not rig.device.publish()
    assert (bytes(rig.used), bytes(rig.descriptors)) == before
    setattr(chain, name, kept)
    rig.device.push(chain)
    assert rig.device.publish()


def test_a_field_that_runs_code_when_it_is_read_harms_nobody() -> None:
    chain, rig = request(COMPILED["compiled"], [(0, 4)], [(8, 4)])

    class Deleting:
        def __index__(self) -> int:
            del chain.written, chain.head
            gc.collect()
            return 0

    chain.head = Deleting()  # type: ignore[assignment]
    with pytest.raises(AttributeError):
        rig.device.push(chain)


@pytest.mark.parametrize("kind", COMPILED.values(), ids=COMPILED)
def test_both_kinds_of_requests_may_be_given_to_both_kinds_of_rings(kind: type[Rig]) -> None:
    for taker, giver in ((kind, pure(kind)), (pure(kind), kind)):
        chain, rig = request(taker, [(0, 4)], [(8, 4)])
        chain.write(b"abc")
        ring = giver.new_device(rig, rig.base_at(0), indirect=True)
        ring.push(chain)
        assert ring.publish()
        assert rig.driver.collect() == (chain.head, 3)


class Mapped:
    """Rings over mapped memory of two regions, which can be told from all else in the process."""

    def __init__(self, features: int) -> None:
        self.rig = PACKED_RIGS["packed"](8) if features else SPLIT_RIGS["split"](8)
        with sparse_file(1 << 13) as file:
            views = [map_file(file.fileno(), 1 << 12, start) for start in (0, 1 << 12)]
        self.starts = [address_of(view) for view in views]
        self.memory = GuestMemory([GuestRegion(BUFFERS + (at << 12), 0, view, ()) for at, view in enumerate(views)])
        self.features = features
        base = FIRST_BASE if features else 0
        self.ring = new_device_queue(8, *self.rig.parts, self.memory, features, base=base)

    def pop(self) -> DescriptorChain:
        self.rig.driver.add([(BUFFERS + 4090, 12)], [(BUFFERS, 8)])
        chain = self.ring.pop()
        assert isinstance(chain, _native.chain.RingChain)
        return chain

    def let_go(self) -> list[int]:
        """Forget ring and memory, as a table that is replaced; where the regions were."""
        del self.ring, self.memory
        gc.collect()
        return self.starts


def complete(chain: DescriptorChain) -> None:
    assert len(chain.read()) == 12
    assert chain.write(b"12345") == 5


def there(start: int) -> bool:
    """A file is mapped at an address."""
    return any(area.inode for area in areas(start, start + 4096))


FORMATS = pytest.mark.parametrize("features", [0, 1 << Feature.RING_PACKED], ids=["split", "packed"])


@FORMATS
def test_a_view_keeps_its_region_after_request_ring_and_memory_are_gone_and_no_other(features: int) -> None:
    mapped = Mapped(features)
    chain = mapped.pop()
    first, second = mapped.let_go()
    (low, high), written = chain.readable, chain.writable
    assert (there(first), there(second)) == (True, True)
    written[0][:] = b"survives"
    del chain, written, low
    assert (there(first), there(second), bytes(high)) == (False, True, bytes(6))
    del high
    assert not there(second)


@FORMATS
def test_a_request_that_is_kept_is_completed_elsewhere_after_its_ring_was_laid_anew(features: int) -> None:
    """From another thread, after the memory that it was taken from is gone from the table."""
    mapped = Mapped(features)
    chain = mapped.pop()
    base = mapped.ring.base
    first, _ = mapped.let_go()
    worker = threading.Thread(target=complete, args=(chain,))
    worker.start()
    worker.join(DEADLINE)
    ring = new_device_queue(8, *mapped.rig.parts, GuestMemory(), features, base=base)
    ring.push(chain)
    assert ring.publish()
    assert mapped.rig.driver.collect() == (chain.head, 5)
    assert bytes(chain.writable[0]) == b"12345" + bytes(3)
    del chain, worker
    assert not there(first)


def test_what_is_out_of_the_ordinary_is_a_request_of_the_pure_class() -> None:
    """Such as one in more pieces than a ring has room for: the pure queue takes it."""
    regions = [GuestRegion(at, 0, memoryview(bytearray([at])), ()) for at in range(100)]
    rig = SPLIT_RIGS["split"](8)
    rig.describe(0, 0, 100, NEXT, 1)
    rig.describe(1, 1 << 40, 1, WRITE)
    rig.offer(0)
    ring = new_device_queue(8, *rig.parts, GuestMemory(regions), 0, base=0)
    with pytest.raises(QueueBroken, match="outside guest memory"):
        ring.pop()
    rig.describe(1, 3, 1, WRITE)
    assert type(chain := ring.pop()) is DescriptorChain
    assert chain.read() == bytes(range(100))
