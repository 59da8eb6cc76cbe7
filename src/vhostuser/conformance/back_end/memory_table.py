"""Rules about SET_MEM_TABLE."""

from __future__ import annotations

import os
from collections.abc import Callable
from struct import Struct
from typing import Final

from ...protocol.numbers import PAGE, FrontendRequest, ProtocolFeature
from ...protocol.payloads import MemoryRegion, MemoryTable
from ...testing.raw_frontend import MEMORY
from ..backend_bench import BACK_END, BackendBench, Body
from ..family import declare
from ..rule import Level

F, Q = ProtocolFeature, FrontendRequest
SECTION: Final = "VHOST_USER_SET_MEM_TABLE"
_COUNT: Final = Struct("=II")
_TOP: Final = (1 << 64) - PAGE


def _region(at: int, size: int = MEMORY, user: int | None = None, offset: int = 0) -> MemoryRegion:
    return MemoryRegion(at, size, at if user is None else user, offset)


def _raw(count: int, *regions: MemoryRegion) -> bytes:
    return _COUNT.pack(count, 0) + b"".join(region.pack() for region in regions)


REFUSED: Final[tuple[tuple[str, str, Body, int], ...]] = (
    ("of_no_region", "A memory table has at least one region.", _raw(0), 0),
    ("of_more_regions_than_come", "As many regions come as num_regions says.", _raw(2, _region(0)), 2),
    ("of_fewer_regions_than_come", "As many regions come as num_regions says.", _raw(1, _region(0), _region(MEMORY)), 1),
    ("of_nine_regions", "Peers have room for eight regions.", _raw(9, *(_region(n * MEMORY) for n in range(9))), 9),
    ("of_four_billion_regions", "num_regions is not believed.", _raw((1 << 32) - 1, _region(0)), 1),
    ("with_overlapping_regions", "Regions never overlap.", _raw(2, _region(0), _region(PAGE, user=1 << 40)), 2),
    ("with_equal_regions", "Regions never overlap.", _raw(2, _region(0), _region(0, user=1 << 40)), 2),
    ("with_an_empty_region", "A region has a size.", _raw(1, _region(0, 0)), 1),
    ("with_guest_addresses_that_wrap", "A region ends below 2^64.", _raw(1, _region(_TOP, 2 * PAGE, user=0)), 1),
    ("with_user_addresses_that_wrap", "A region ends below 2^64.", _raw(1, _region(0, 2 * PAGE, user=_TOP)), 1),
    ("with_an_offset_that_wraps", "A region lies in its file.", _raw(1, _region(0, 2 * PAGE, offset=_TOP)), 1),
)
"""Memory tables that are none: how its name ends, why, the payload, and the fds that come."""
LENIENT: Final = ("of_no_region", "of_nine_regions")
"""What the specification says nothing of."""

ELSEWHERE: Final = (MemoryRegion(0, MEMORY, 0x7F00_0000_0000, 0), MemoryRegion(1 << 32, MEMORY, 0x7E00_0000_0000, 0))


def _refused(end: str, text: str, body: Body, count: int) -> None:
    def check(bench: BackendBench) -> None:
        bench.agree()
        bench.refused(Q.SET_MEM_TABLE, body, fds=[bench.memory_file() for _ in range(count)])

    level = Level.ADVICE if end in LENIENT else Level.SHOULD
    declare(BACK_END, SECTION, f"a_memory_table_{end}_is_refused", text, check, level=level, protocol=[F.REPLY_ACK])


for _row in REFUSED:
    _refused(*_row)


def _kinds() -> dict[str, Callable[[], tuple[int, int]]]:
    return {
        "a_pipe": os.pipe,
        "an_eventfd": lambda: (os.eventfd(0, os.EFD_CLOEXEC), -1),
        "a_directory": lambda: (os.open("/", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC), -1),
    }


KINDS: Final = _kinds()


def _unmappable(word: str, make: Callable[[], tuple[int, int]]) -> None:
    def check(bench: BackendBench) -> None:
        bench.agree()
        made = [fd for fd in make() if fd >= 0]
        try:
            bench.refused(Q.SET_MEM_TABLE, MemoryTable([_region(0)]), fds=made[:1])
        finally:
            for fd in made:
                os.close(fd)

    text = f"Memory that can't be mapped, {word.replace('_', ' ')}, is no memory: the table is refused."
    declare(BACK_END, SECTION, f"memory_that_is_{word}_is_refused", text, check, level=Level.SHOULD, protocol=[F.REPLY_ACK])


for _word, _make in KINDS.items():
    _unmappable(_word, _make)


@BACK_END.rule(SECTION, protocol=[F.REPLY_ACK])
def a_memory_table_of_eight_regions_is_taken(bench: BackendBench) -> None:
    """A memory table may have eight regions."""
    bench.agree()
    table = MemoryTable([_region(number * MEMORY) for number in range(8)])
    bench.accepted(Q.SET_MEM_TABLE, table, fds=[bench.memory_file() for _ in range(8)])


@BACK_END.rule(SECTION, protocol=[F.REPLY_ACK])
def regions_may_be_parts_of_one_file(bench: BackendBench) -> None:
    """A region lies in its file at its mmap offset; two may lie in one file, which comes with both."""
    bench.agree()
    fd, half = bench.memory_file(), MEMORY // 2
    table = MemoryTable([_region(0, half), _region(half, half, offset=half)])
    bench.accepted(Q.SET_MEM_TABLE, table, fds=[fd, fd])


@BACK_END.rule(SECTION, protocol=[F.REPLY_ACK])
def user_addresses_need_not_be_guest_addresses(bench: BackendBench) -> None:
    """User addresses are the front-end's own, and have nothing to do with guest addresses."""
    bench.agree()
    bench.accepted(Q.SET_MEM_TABLE, MemoryTable(ELSEWHERE), fds=[bench.memory_file(), bench.memory_file()])


@BACK_END.rule(SECTION, protocol=[F.REPLY_ACK], level=Level.SHOULD)
def regions_may_come_in_any_order(bench: BackendBench) -> None:
    """Nothing says in which order regions come in a memory table."""
    bench.agree()
    bench.accepted(Q.SET_MEM_TABLE, MemoryTable(ELSEWHERE[::-1]), fds=[bench.memory_file(), bench.memory_file()])


@BACK_END.rule(SECTION, protocol=[F.REPLY_ACK])
def a_memory_table_takes_the_place_of_the_one_before(bench: BackendBench) -> None:
    """SET_MEM_TABLE sets the whole memory: regions of the table before do not count, so none overlaps them."""
    bench.agree()
    for _ in range(8):
        bench.accepted(Q.SET_MEM_TABLE, MemoryTable([_region(0)]), fds=[bench.memory_file()])


@BACK_END.rule(SECTION, protocol=[F.REPLY_ACK], level=Level.SHOULD)
def a_memory_table_that_is_refused_leaves_the_connection_in_step(bench: BackendBench) -> None:
    """A memory table that can't be taken is refused by a status; the connection goes on, and takes a right one."""
    bench.agree()
    bench.refused_in_step(Q.SET_MEM_TABLE, MemoryTable([_region(0)]), fds=[bench.eventfd()])
    bench.accepted(Q.SET_MEM_TABLE, MemoryTable([_region(0)]), fds=[bench.memory_file()])
