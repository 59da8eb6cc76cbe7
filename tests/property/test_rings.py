"""Both halves of a virtqueue back to back, and the device half over memory that a driver filled with anything."""

from __future__ import annotations

from collections import deque

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.virtio_rig import AVAIL, BUFFERS, INDIRECT, NEXT, PACKED_RIGS, SPLIT_RIGS, USED, WRITE, PackedRig, Rig, SplitRig
from vhostuser.errors import QueueBroken
from vhostuser.virtio.buffers import Table
from vhostuser.virtio.chain import DescriptorChain

lengths = st.lists(st.integers(0, 40), max_size=3)
steps = st.lists(st.tuples(st.sampled_from(["add", "pop", "push", "publish", "collect"]), lengths, lengths), max_size=60)
kinds = st.sampled_from(list(SPLIT_RIGS.values()))
splits = kinds.flatmap(
    lambda kind: st.builds(kind, st.sampled_from([1, 2, 4, 8]), start=st.sampled_from([0, 1, 65530, 65535]))
)
packed_kinds = st.sampled_from(list(PACKED_RIGS.values()))
packeds = st.tuples(packed_kinds, st.integers(1, 9)).flatmap(
    lambda row: st.builds(row[0], st.just(row[1]), start=st.integers(0, 2 * row[1] - 1))
)


def table_at(rig: Rig, at: int) -> Table:
    """Room for a table that nothing else has."""
    start = 0x1000 + 128 * at
    return Table(BUFFERS + start, rig.buffers[start : start + 128])


@given(rig=splits | packeds, steps=steps, tabled=st.sampled_from([0, 1, 2]))
def test_what_the_driver_adds_the_device_takes_and_gives_back_in_order(
    rig: Rig, steps: list[tuple[str, list[int], list[int]]], tabled: int
) -> None:
    """Every request, every other one, or none has its buffers in an indirect table."""
    offered: deque[tuple[int, int, int]] = deque()
    taken: deque[DescriptorChain] = deque()
    pushed: deque[tuple[int, int]] = deque()
    public: deque[tuple[int, int]] = deque()
    free = rig.size
    used_by: dict[int, int] = {}
    for at, (what, readable, writable) in enumerate(steps):
        count = len(readable) + len(writable)
        table = table_at(rig, at) if tabled and not at % tabled else None
        if table and 0 < count <= rig.size:
            count = 1
        if what == "add" and 0 < count <= free:
            buffers = [(BUFFERS, each) for each in readable], [(BUFFERS, each) for each in writable]
            head = rig.driver.add(*buffers, table)
            offered.append((head, sum(readable), sum(writable)))
            used_by[head], free = count, free - count
        elif what == "pop":
            chain = rig.device.pop()
            assert (chain is not None) == bool(offered)
            if chain:
                assert (chain.head, chain.readable_size, chain.writable_size) == offered.popleft()
                taken.append(chain)
        elif what == "push" and taken:
            chain = taken.popleft()
            chain.write(bytes(len(readable)))
            rig.device.push(chain)
            pushed.append((chain.head, chain.written))
        elif what == "publish":
            assert rig.device.publish() == bool(pushed)
            public += pushed
            pushed.clear()
        elif what == "collect":
            done = rig.driver.collect()
            assert done == (public.popleft() if public else None)
            free += used_by.pop(done[0]) if done else 0


addresses = st.one_of(st.integers(0, 64).map(lambda at: BUFFERS + at * 8), st.sampled_from([0, BUFFERS - 1, (1 << 64) - 1]))
descriptors = st.tuples(
    addresses,
    st.sampled_from([0, 1, 16, 32, 64, 17, 1 << 15, 1 << 31, (1 << 32) - 1]),
    st.sampled_from([0, 0, NEXT, NEXT, WRITE, WRITE | NEXT, INDIRECT, INDIRECT | NEXT, 0xFFFF]),
    st.integers(0, 9),
)


@given(
    kind=kinds,
    entries=st.lists(descriptors, min_size=8, max_size=8),
    tables=st.lists(descriptors, max_size=16),
    heads=st.lists(st.integers(0, 9), max_size=12),
    indirect=st.booleans(),
)
@settings(max_examples=300)
def test_any_descriptors_give_chains_or_a_broken_split_queue(
    kind: type[SplitRig],
    entries: list[tuple[int, int, int, int]],
    tables: list[tuple[int, int, int, int]],
    heads: list[int],
    indirect: bool,
) -> None:
    rig = kind(8, buffers=4096, indirect=indirect)
    rig.raw_table(BUFFERS, *tables)
    for index, entry in enumerate(entries):
        rig.describe(index, *entry)
    rig.offer(*heads)
    take_all(rig)


@given(
    kind=packed_kinds,
    entries=st.lists(descriptors, min_size=1, max_size=9),
    tables=st.lists(descriptors, max_size=16),
    start=st.integers(0, 17),
    spoilt=st.lists(st.tuples(st.integers(0, 8), st.sampled_from([AVAIL, USED, AVAIL | USED, 0xFFFF])), max_size=2),
    indirect=st.booleans(),
)
@settings(max_examples=300)
def test_any_descriptors_give_chains_or_a_broken_packed_queue(
    kind: type[PackedRig],
    entries: list[tuple[int, int, int, int]],
    tables: list[tuple[int, int, int, int]],
    start: int,
    spoilt: list[tuple[int, int]],
    indirect: bool,
) -> None:
    size = len(entries)
    rig = kind(size, buffers=4096, start=start % (2 * size), indirect=indirect)
    rig.raw_table(BUFFERS, *tables)
    for index, (addr, length, flags, buffer_id) in enumerate(entries):
        rig.describe(rig.next + index, addr, length, flags & ~(AVAIL | USED), buffer_id)
    for slot, bits in spoilt:
        rig.descriptors.cast("H")[8 * (slot % size) + 7] ^= bits
    take_all(rig)


def take_all(rig: Rig) -> None:
    """Take chains, and use their buffers, until there is none or the queue breaks."""
    try:
        while chain := rig.device.pop():
            assert rig.steps <= 9
            assert chain.readable_size + chain.writable_size <= 8 * 4096
            assert len(chain.read()) == chain.readable_size
            assert chain.write(b"x" * chain.writable_size) == chain.writable_size
            rig.steps = 0
    except QueueBroken:
        assert rig.steps <= 10


@given(parts=st.lists(st.binary(max_size=9), max_size=5), sizes=st.lists(st.integers(-1, 12), max_size=8))
def test_reading_a_chain_in_pieces_gives_all_its_bytes_in_order(parts: list[bytes], sizes: list[int]) -> None:
    chain = DescriptorChain(0, [memoryview(part) for part in parts], [])
    whole, got = b"".join(parts), b""
    for size in sizes:
        left = len(whole) - len(got)
        piece = chain.read(size)
        assert len(piece) == (left if size < 0 else min(size, left))
        got += piece
    assert got + chain.read() == whole


@given(lengths=st.lists(st.integers(0, 9), max_size=5), parts=st.lists(st.binary(max_size=9), max_size=8))
def test_writing_a_chain_in_pieces_fills_it_in_order(lengths: list[int], parts: list[bytes]) -> None:
    buffers = [memoryview(bytearray(length)) for length in lengths]
    chain = DescriptorChain(0, [], buffers)
    room = sum(lengths)
    for part in parts:
        fits = min(len(part), room - chain.written)
        assert chain.write(part) == fits
    assert b"".join(buffers)[: chain.written] == b"".join(parts)[: chain.written]
    assert chain.written == min(room, sum(map(len, parts)))
