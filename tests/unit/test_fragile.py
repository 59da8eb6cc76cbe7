"""Memory of a file that may shrink: private copies, counted; a ring that is worked on in a copy; blocks of huge pages."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from functools import partial
from unittest import mock

import pytest

from tests.virtio_rig import AVAIL, DESCRIPTOR, WRITE
from vhostuser.errors import MemoryFault, QueueBroken
from vhostuser.memory import guest, mapping
from vhostuser.memory.fragile import Copies, FragilePackedQueue, FragileQueue, RingPart, pour_back
from vhostuser.memory.guest import GuestMemory, Span, map_region, span
from vhostuser.memory.mapping import may_shrink
from vhostuser.protocol.payloads import MemoryRegion
from vhostuser.testing import memory_file
from vhostuser.transport.fds import OwnedFd
from vhostuser.virtio.chain import DescriptorChain

PAGE = 4096
MIB = 1 << 20


@pytest.fixture
def file() -> Iterator[int]:
    """Eight pages, each full of its number, that may be taken away."""
    with memory_file(8, seal=False) as fd:
        yield fd.fileno()


def of(file: int, copies: Copies | None = None) -> GuestMemory:
    return GuestMemory.of([MemoryRegion(0, 8 * PAGE, 0, 0)], [file], None, copies)


def test_only_a_seal_keeps_a_file_from_shrinking(file: int) -> None:
    with memory_file() as sealed, OwnedFd(os.open("/proc/self/exe", os.O_RDONLY)) as plain:
        assert [may_shrink(fd) for fd in (file, sealed.fileno(), plain.fileno())] == [True, False, True]


def test_a_slice_is_a_copy_that_nobody_changes(file: int) -> None:
    memory = of(file)
    assert memory.fragile
    (view,) = memory.slices(PAGE, 4)
    os.pwrite(file, b"new", PAGE)
    assert bytes(view) == b"\1\1\1\1"
    view[:] = b"mine"
    assert os.pread(file, 4, PAGE) == b"new\1"


def test_a_page_that_is_gone_is_a_fault_and_the_others_live(file: int) -> None:
    memory = of(file)
    os.ftruncate(file, 2 * PAGE)
    with pytest.raises(MemoryFault, match="the file was truncated"):
        memory.slices(2 * PAGE - 1, 2)
    assert [bytes(view) for view in memory.slices(2 * PAGE - 1, 1)] == [b"\1"]


def test_there_is_no_view_of_a_ring_in_such_memory(file: int) -> None:
    memory = of(file)
    with pytest.raises(MemoryFault, match="may shrink"):
        memory.at_user(0, PAGE)


def test_q17_a_chain_that_names_the_same_memory_over_and_over_is_a_fault_before_it_is_copied(file: int) -> None:
    memory = of(file, Copies(6 * PAGE))
    first = memory.slices(0, 4 * PAGE)
    with pytest.raises(MemoryFault, match="0x3000 bytes more to copy than the 0x6000"):
        memory.slices(0, 3 * PAGE)
    del first
    gc.collect()
    assert memory.slices(0, 6 * PAGE)


def test_a_copy_that_failed_is_not_counted(file: int) -> None:
    memory = of(file, Copies(PAGE))
    os.ftruncate(file, PAGE)
    for _ in range(3):
        with pytest.raises(MemoryFault, match="truncated"):
            memory.slices(PAGE, PAGE)
    assert memory.slices(0, PAGE)


def queue(memory: GuestMemory) -> FragileQueue:
    part = memory.ring_part
    return FragileQueue(8, part(0, 128), part(256, 20), part(512, 68), memory)


def test_a_whole_copy_is_written_back_wherever_the_device_wrote(file: int) -> None:
    """virtio-blk puts its status at the end of what it may write, whatever it says it wrote."""
    os.pwrite(file, bytes(PAGE), 0)
    memory = of(file)
    chain = DescriptorChain(3, [], memory.slices(2 * PAGE - 4, 8))
    chain.writable[-1][-1:] = b"!"
    ring = queue(memory)
    ring.push(chain)
    pour_back(chain)
    assert os.pread(file, 8, 2 * PAGE - 4) == b"\1\1\1\1\2\2\2!"
    assert os.pread(file, 16, 512) == bytes(16), "not yet published"
    assert ring.publish()
    assert os.pread(file, 16, 512) == bytes.fromhex("0000 0100 03000000 00000000 00000000")
    assert not ring.publish()


def packed_queue(memory: GuestMemory) -> FragilePackedQueue:
    part = memory.ring_part
    return FragilePackedQueue(4, part(0, 64), part(64, 4), part(68, 4), memory)


def packed_ring(file: int) -> None:
    """A ring of four descriptors, each available, with buffers in page 1 and later."""
    entries = (DESCRIPTOR.pack((1 + at) * PAGE, 4, at, AVAIL | WRITE) for at in range(4))
    os.pwrite(file, b"".join(entries) + bytes(4) + b"\xff" * 4, 0)


def test_a_packed_queue_shows_used_descriptors_the_first_one_last(file: int, monkeypatch: pytest.MonkeyPatch) -> None:
    packed_ring(file)
    ring, written = packed_queue(of(file)), []
    chains = [ring.pop() for _ in range(3)]
    assert os.pread(file, 4, 68) == bytes(4), "it wants every kick"
    monkeypatch.setattr(RingPart, "write_back", lambda part, start, stop: written.append((start, stop)))
    for chain in chains:
        assert chain is not None
        ring.push(chain)
    assert written == [(8, 14), (24, 30), (40, 46)], "lengths and ids, while the flags are the driver's"
    written.clear()
    assert ring.publish()
    assert written == [(40, 48), (24, 32), (8, 16)]


def test_what_a_packed_queue_pushed_survives_another_look_at_the_ring(file: int) -> None:
    packed_ring(file)
    ring = packed_queue(of(file))
    for written in (1, 2, 3):
        chain = ring.pop()
        assert chain is not None
        chain.written = written
        ring.push(chain)
    assert all(os.pread(file, 2, 16 * at + 14) == (AVAIL | WRITE).to_bytes(2, "little") for at in range(4))
    assert ring.publish()
    tails = [(at + 1).to_bytes(4, "little") + at.to_bytes(2, "little") + b"\x82\x80" for at in range(3)]
    assert [os.pread(file, 8, 16 * at + 8) for at in range(3)] == tails
    assert not ring.publish()


def test_a_packed_queue_reads_a_descriptor_behind_the_flags_that_make_it_available(
    file: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The driver writes all of it between our look at the rest and our look at the flags, in one copy."""
    os.pwrite(file, bytes(72), 0)
    ring, fill, looks = packed_queue(of(file)), mapping.fill, list[int]()

    def slow(buffer: memoryview, address: int) -> None:
        fill(buffer, address)
        if not looks:
            packed_ring(file)
            buffer[-2:] = AVAIL.to_bytes(2, "little")
        looks.append(address)

    monkeypatch.setattr(mapping, "fill", slow)
    chain = ring.pop()
    assert chain is not None
    assert chain.writable_size == 4


@pytest.mark.parametrize("moment", ["lay", "pop", "push", "publish"])
def test_m06_memory_that_goes_away_breaks_a_packed_queue_at_any_moment(file: int, moment: str) -> None:
    packed_ring(file)
    memory = of(file)
    ring = packed_queue(memory)
    chain = ring.pop()
    assert chain is not None
    push = partial(ring.push, chain)
    for step, work in (("lay", lambda: packed_queue(memory)), ("pop", ring.pop), ("push", push), ("publish", ring.publish)):
        if step == moment:
            os.ftruncate(file, 0)
            with pytest.raises(QueueBroken, match="guest memory is gone"):
                work()
            return
        work()


@pytest.mark.parametrize("moment", ["lay", "pop", "publish"])
def test_m06_memory_that_goes_away_breaks_the_queue_at_any_moment(file: int, moment: str) -> None:
    """One request from end to end; the file is cut before one of its steps."""
    os.pwrite(file, bytes(PAGE), 0)
    memory = of(file)
    ring = queue(memory)
    ring.push(DescriptorChain(0, [], []))
    steps = (("lay", lambda: queue(memory)), ("pop", ring.pop), ("publish", ring.publish))
    for step, work in steps:
        if step != moment:
            work()
            continue
        os.ftruncate(file, 0)
        with pytest.raises(QueueBroken, match="guest memory is gone"):
            work()
        return


def test_m06_what_was_written_to_memory_that_goes_away_is_a_fault(file: int) -> None:
    buffers = of(file).slices(PAGE, 4)
    os.ftruncate(file, 0)
    with pytest.raises(MemoryFault, match="truncated"):
        pour_back(DescriptorChain(0, [], buffers))


def test_m06_a_buffer_that_is_gone_breaks_the_queue_too(file: int) -> None:
    os.pwrite(file, bytes(PAGE), 0)
    os.pwrite(file, (PAGE).to_bytes(8, "little") + (4).to_bytes(4, "little") + b"\2\0\0\0", 0)
    ring = queue(of(file))
    os.pwrite(file, b"\0\0\1\0\0\0", 256)
    os.ftruncate(file, PAGE)
    with pytest.raises(QueueBroken, match="points outside guest memory"):
        ring.pop()


def test_a_ring_part_of_read_only_memory_says_so(file: int) -> None:
    with OwnedFd(os.open(f"/proc/self/fd/{file}", os.O_RDONLY)) as fd:
        part = of(fd.fileno()).ring_part(0, 16)
    assert isinstance(part, RingPart)
    assert part.readonly


# Huge pages


@pytest.mark.parametrize(
    ("offset", "size", "block", "expected"),
    [
        (0, PAGE, PAGE, Span(0, PAGE, 0)),
        (PAGE + 1, PAGE, PAGE, Span(PAGE, 2 * PAGE, 1)),
        (0, 2 * MIB, 2 * MIB, Span(0, 2 * MIB, 0)),
        (PAGE, 2 * MIB, 2 * MIB, Span(0, 4 * MIB, PAGE)),
        (3 * MIB, MIB, 2 * MIB, Span(2 * MIB, 2 * MIB, MIB)),
        (3 * MIB, MIB + 1, 2 * MIB, Span(2 * MIB, 4 * MIB, MIB)),
        ((1 << 40) + 5 * MIB, 1 << 30, 1 << 30, Span(1 << 40, 2 << 30, 5 * MIB)),
    ],
)
def test_m07_whole_blocks_are_mapped_around_a_region(offset: int, size: int, block: int, expected: Span) -> None:
    assert span(offset, size, block) == expected


@pytest.mark.parametrize("seal", [True, False])
def test_m07_a_region_inside_a_block_shows_the_right_bytes(seal: bool) -> None:
    """As if this file had pages of 16 KiB: the kernel of this machine may have none to spare."""
    with memory_file(8, seal=seal) as fd, mock.patch.object(guest, "block_size", return_value=4 * PAGE):
        region = map_region(MemoryRegion(0, PAGE, 0, 5 * PAGE + 8), fd.fileno())
        assert bytes(region.view[:]) == b"\5" * (PAGE - 8) + b"\6" * 8


def test_m07_a_file_of_huge_pages_is_mapped_in_whole_ones() -> None:
    try:
        file = OwnedFd(os.memfd_create("huge", os.MFD_CLOEXEC | os.MFD_HUGETLB | os.MFD_HUGE_2MB))
    except OSError:
        pytest.skip("this kernel has no huge pages of 2 MiB")
    with file:
        os.ftruncate(file.fileno(), 2 * MIB)
        try:
            os.posix_fallocate(file.fileno(), 0, 2 * MIB)
        except OSError:
            pytest.skip("this machine has no huge page of 2 MiB to spare")
        memory = GuestMemory.of([MemoryRegion(0, PAGE, 0, 3 * PAGE)], [file.fileno()])
        assert b"".join(memory.slices(0, PAGE)) == bytes(PAGE)
