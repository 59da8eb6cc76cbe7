"""Rules about the memory that a front-end shares: they look at the tables and regions that it sends."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from itertools import combinations
from typing import Final

from ...errors import RemoteProtocolError
from ...protocol.numbers import END_OF_ADDRESSES, MAX_REGIONS, FrontendRequest, ProtocolFeature
from ...protocol.payloads import U64, MemoryRegion, MemoryTable, SingleRegion
from ...trace.event import FdNote
from ..frontend_bench import FRONT_END, FrontendBench
from ..outcome import Deviation, NotApplicable
from ..rule import Level

F, Q = ProtocolFeature, FrontendRequest
TABLE: Final = "Multiple Memory regions description"
REGION: Final = "Memory region description"
SET_MEM_TABLE: Final = "VHOST_USER_SET_MEM_TABLE"
MAPPABLE: Final = frozenset({"file", "memfd", "device", "dma-buf"})
FEW_SLOTS: Final = 2


def _regions(bench: FrontendBench) -> Iterator[tuple[MemoryRegion, FdNote | None]]:
    """Each region that came, and its fd."""
    for seen, table in bench.seen.bodies(MemoryTable, Q.SET_MEM_TABLE):
        for at, region in enumerate(table.regions):
            yield region, seen.fds[at] if at < len(seen.fds) else None
    for seen, single in bench.seen.bodies(SingleRegion, Q.ADD_MEM_REG):
        yield single.region, seen.fds[0] if seen.fds else None


def _active(bench: FrontendBench) -> Iterator[list[MemoryRegion]]:
    """The regions that are active together, after each request about them."""
    active: list[MemoryRegion] = []
    for seen in bench.seen.of(Q.SET_MEM_TABLE, Q.ADD_MEM_REG, Q.REM_MEM_REG):
        with contextlib.suppress(RemoteProtocolError):
            body = seen.body()
            if isinstance(body, MemoryTable):
                active = [*body.regions]
            elif isinstance(body, SingleRegion) and seen.request == Q.ADD_MEM_REG:
                active.append(body.region)
            elif isinstance(body, SingleRegion):
                active = [each for each in active if not _is_same(each, body.region)]
            yield active


def _is_same(one: MemoryRegion, other: MemoryRegion) -> bool:
    """What REM_MEM_REG names a region by."""
    return (one.guest_addr, one.user_addr, one.size) == (other.guest_addr, other.user_addr, other.size)


def _shared(bench: FrontendBench) -> list[tuple[MemoryRegion, FdNote | None]]:
    """The same once the rings run; not applicable if there is none."""
    bench.start()
    if not (found := list(_regions(bench))):
        raise NotApplicable("it shares no memory")
    return found


@FRONT_END.rule(SET_MEM_TABLE, queues=1)
def memory_is_shared_before_a_ring_starts(bench: FrontendBench) -> None:
    """A ring lies in shared memory, so that is there before the ring is started."""
    bench.start()
    for seen in bench.seen:
        if seen.request in (Q.SET_MEM_TABLE, Q.ADD_MEM_REG):
            return
        if seen.request == Q.SET_VRING_KICK:
            raise Deviation("SET_MEM_TABLE or ADD_MEM_REG before SET_VRING_KICK", "SET_VRING_KICK")


@FRONT_END.rule(TABLE, queues=1)
def a_table_has_one_to_eight_regions(bench: FrontendBench) -> None:
    """A memory table has between one and eight regions."""
    bench.offer(bench.protocol & ~(1 << F.CONFIGURE_MEM_SLOTS))
    bench.start()
    for seen in bench.seen.of(Q.SET_MEM_TABLE):
        count = int.from_bytes(seen.payload[:4], "little")
        if not 0 < count <= MAX_REGIONS:
            raise Deviation(f"a table of 1 to {MAX_REGIONS} regions", f"{count} regions")


@FRONT_END.rule(REGION, queues=1)
def regions_have_bytes_and_do_not_wrap(bench: FrontendBench) -> None:
    """A region has bytes, and neither its guest nor its user addresses nor its part of the file pass 2^64."""
    for region, _ in _shared(bench):
        for start in (region.guest_addr, region.user_addr, region.mmap_offset):
            if not region.size or start + region.size > END_OF_ADDRESSES:
                raise Deviation("regions that have bytes and do not wrap", _words(region))


@FRONT_END.rule(REGION, queues=1)
def regions_do_not_overlap(bench: FrontendBench) -> None:
    """No two regions that are active at a time have a guest address in common."""
    _shared(bench)
    for regions in _active(bench):
        for one, other in combinations(regions, 2):
            if one.guest_addr < other.guest_addr + other.size and other.guest_addr < one.guest_addr + one.size:
                raise Deviation("regions apart from each other", f"{_words(one)} and {_words(other)}")


@FRONT_END.rule(REGION, queues=1)
def user_addresses_are_apart(bench: FrontendBench) -> None:
    """A user address is in one region at most, so that a ring's place can be found."""
    _shared(bench)
    for regions in _active(bench):
        for one, other in combinations(regions, 2):
            if one.user_addr < other.user_addr + other.size and other.user_addr < one.user_addr + one.size:
                raise Deviation("user addresses apart from each other", f"{_words(one)} and {_words(other)}")


@FRONT_END.rule(REGION, queues=1)
def regions_lie_in_their_files(bench: FrontendBench) -> None:
    """A file has the bytes that its region says, from the mmap offset on: beyond the end a back-end would die."""
    for region, note in _shared(bench):
        if note and note.kind in ("file", "memfd") and region.mmap_offset + region.size > note.size:
            raise Deviation(f"{_words(region)} within its file", f"a file of {note.size:#x} bytes")


@FRONT_END.rule(SET_MEM_TABLE, queues=1)
def memory_is_of_what_can_be_mapped(bench: FrontendBench) -> None:
    """The fds of regions are to be mapped, so they are files, in memory or not."""
    for region, note in _shared(bench):
        if note and note.kind not in MAPPABLE:
            raise Deviation(f"a file for {_words(region)}", f"a {note.kind}")


@FRONT_END.rule(SET_MEM_TABLE, level=Level.ADVICE, queues=1)
def memory_can_be_written(bench: FrontendBench) -> None:
    """Back-ends map memory for reading and writing, so the fds are open for both."""
    for region, note in _shared(bench):
        if note and note.access != "rw":
            raise Deviation(f"{_words(region)} open for reading and writing", f"opened as {note.access or 'a path'}")


@FRONT_END.rule("VHOST_USER_SET_MEM_TABLE", level=Level.ADVICE, queues=1)
def regions_are_whole_pages(bench: FrontendBench) -> None:
    """mmap() takes whole pages: guest address, size and offset of a region are multiples of 4096."""
    for region, _ in _shared(bench):
        if (region.guest_addr | region.size | region.mmap_offset) % 4096:
            raise Deviation("regions of whole pages", _words(region))


@FRONT_END.rule("VHOST_USER_ADD_MEM_REG", level=Level.SHOULD, protocol=[F.CONFIGURE_MEM_SLOTS])
def the_slots_are_asked_for_before_a_region_is_added(bench: FrontendBench) -> None:
    """Who adds regions one by one has asked with GET_MAX_MEM_SLOTS how many there may be."""
    bench.settle()
    for seen in bench.seen:
        if seen.request == Q.GET_MAX_MEM_SLOTS:
            return
        if seen.request == Q.ADD_MEM_REG:
            raise Deviation("GET_MAX_MEM_SLOTS before ADD_MEM_REG", "ADD_MEM_REG")


@FRONT_END.rule("VHOST_USER_GET_MAX_MEM_SLOTS", level=Level.SHOULD, protocol=[F.CONFIGURE_MEM_SLOTS])
def no_more_regions_are_added_than_there_are_slots(bench: FrontendBench) -> None:
    """A back-end has as many memory slots as it says; a front-end that needs more fails, and does not send more."""
    bench.slots = FEW_SLOTS
    bench.until(Q.GET_MAX_MEM_SLOTS)
    bench.watch(lambda: _live(bench) > FEW_SLOTS, moments=3)
    if (live := _live(bench)) > FEW_SLOTS:
        raise Deviation(f"at most {FEW_SLOTS} regions at a time", f"{live}")


def _live(bench: FrontendBench) -> int:
    """How many regions were added and not taken away, besides those of the table."""
    tables = [len(table.regions) for _, table in bench.seen.bodies(MemoryTable, Q.SET_MEM_TABLE)]
    added = len(bench.seen.of(Q.ADD_MEM_REG)) - len(bench.seen.of(Q.REM_MEM_REG))
    return (tables[-1] if tables else 0) + added


@FRONT_END.rule("VHOST_USER_SET_MEM_TABLE", level=Level.ADVICE, queues=1)
def a_refused_memory_table_starts_no_ring(bench: FrontendBench) -> None:
    """Memory that the back-end has refused is not there: a ring in it is not started."""
    bench.answers[Q.SET_MEM_TABLE] = bench.answers[Q.ADD_MEM_REG] = U64(1)
    bench.negotiated()
    bench.need(F.REPLY_ACK)
    bench.wait(lambda: bool(bench.seen.of(Q.SET_MEM_TABLE, Q.ADD_MEM_REG)) or bench.over, "SET_MEM_TABLE or ADD_MEM_REG")
    if not all(seen.asks for seen in bench.seen.of(Q.SET_MEM_TABLE, Q.ADD_MEM_REG)):
        raise NotApplicable("it does not ask whether its memory was taken")
    if bench.watch(lambda: bool(bench.seen.running), moments=2):
        raise Deviation("no ring after status 1 for the memory", "a ring that runs")


def _words(region: MemoryRegion) -> str:
    where = f"guest {region.guest_addr:#x}, user {region.user_addr:#x}, size {region.size:#x}"
    return f"a region at {where}, mmap offset {region.mmap_offset:#x}"
