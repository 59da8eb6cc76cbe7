"""Rules about SHMEM_UNMAP: a whole mapping, and nothing else, is taken away."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from ...protocol.numbers import MAP_RW, PAGE, BackendRequest, ProtocolFeature
from ...protocol.payloads import Mmap
from ..family import declare
from ..frontend_bench import FRONT_END, FrontendBench
from ..relations import APART, MIDDLE, OVERLAPS, Range
from ..rule import Level
from ..scripted_backend import REGION

F, B = ProtocolFeature, BackendRequest
UNMAP: Final = "VHOST_USER_BACKEND_SHMEM_UNMAP"
MAPPED: Final = (F.SHMEM, F.BACKEND_REQ, F.REPLY_ACK)
TOP: Final = 1 << 64
Check = Callable[[FrontendBench], None]


@FRONT_END.rule(UNMAP, protocol=MAPPED, queues=1)
def a_whole_mapping_can_be_taken_away(bench: FrontendBench) -> None:
    """A range that is one whole mapping can be unmapped."""
    bench.shared_memory()
    bench.maps(*MIDDLE)
    bench.unmaps(*MIDDLE)


def _part(place: Range) -> Check:
    def check(bench: FrontendBench) -> None:
        bench.shared_memory()
        bench.maps(*MIDDLE)
        bench.refuses_unmap(*place)
        bench.unmaps(*MIDDLE)

    return check


for _name, _place in {**OVERLAPS, **APART}.items():
    declare(
        FRONT_END,
        UNMAP,
        f"unmapping_a_range_{_name}_a_mapping_is_refused",
        f"The range is that of one whole mapping: one {_name.replace('_', ' ')} a mapping is none. That one stays as it is.",
        _part(_place),
        protocol=MAPPED,
        queues=1,
    )

RANGES: Final[dict[str, tuple[str, Range]]] = {
    "nothing": ("There is nothing where nothing was mapped.", Range(0, PAGE)),
    "no_bytes": ("A range has bytes.", Range(0, 0)),
    "what_is_behind_the_region": ("A range lies within its region.", Range(REGION, PAGE)),
    "a_range_that_wraps": ("Offset and length are added without wrapping.", Range(TOP - PAGE, 2 * PAGE)),
    "everything": ("There is no length that means all.", Range(0, TOP - PAGE)),
    "the_whole_region": ("A region is not taken away, mappings are.", Range(0, REGION)),
}
"""Ranges of no mapping."""


def _nowhere(place: Range) -> Check:
    def check(bench: FrontendBench) -> None:
        bench.shared_memory()
        bench.maps(*MIDDLE)
        bench.refuses_unmap(*place)
        bench.unmaps(*MIDDLE)

    return check


for _name, (_text, _place) in RANGES.items():
    declare(FRONT_END, UNMAP, f"unmapping_{_name}_is_refused", _text, _nowhere(_place), protocol=MAPPED, queues=1)


@FRONT_END.rule(UNMAP, protocol=MAPPED, queues=1)
def unmapping_twice_is_refused(bench: FrontendBench) -> None:
    """What was taken away is not there any more."""
    bench.shared_memory()
    bench.maps(0)
    bench.unmaps(0)
    bench.refuses_unmap(0)


@FRONT_END.rule(UNMAP, protocol=MAPPED, queues=1)
def unmapping_two_mappings_at_once_is_refused(bench: FrontendBench) -> None:
    """One request takes one mapping away, although two that touch are one range."""
    bench.shared_memory()
    bench.maps(0)
    bench.maps(PAGE)
    bench.refuses_unmap(0, 2 * PAGE)
    bench.unmaps(0)
    bench.unmaps(PAGE)


@FRONT_END.rule(UNMAP, protocol=MAPPED, queues=1)
def unmapping_the_range_in_another_region_is_refused(bench: FrontendBench) -> None:
    """A mapping is of its region: the same range of another is not it."""
    bench.shared_memory()
    bench.maps(0, shmid=0)
    bench.refuses_unmap(0, shmid=1)
    bench.unmaps(0, shmid=0)


@FRONT_END.rule(UNMAP, protocol=MAPPED, queues=1)
def unmapping_in_a_region_that_is_not_there_is_refused(bench: FrontendBench) -> None:
    """A mapping lies in a region that there is."""
    bench.shared_memory()
    bench.maps(0)
    bench.refuses_unmap(0, shmid=200)
    bench.unmaps(0)


@FRONT_END.rule(UNMAP, protocol=MAPPED, queues=1)
def a_range_can_be_mapped_again_after_it_was_unmapped(bench: FrontendBench) -> None:
    """What was taken away leaves its range free, as often as one likes."""
    bench.shared_memory()
    for _ in range(3):
        bench.maps(*MIDDLE)
        bench.unmaps(*MIDDLE)


@FRONT_END.rule(UNMAP, protocol=MAPPED, queues=1)
def a_range_can_be_mapped_in_other_pieces_after_it_was_unmapped(bench: FrontendBench) -> None:
    """What comes next may have other borders than what was there."""
    bench.shared_memory()
    bench.maps(0, 4 * PAGE)
    bench.unmaps(0, 4 * PAGE)
    bench.maps(PAGE, 2 * PAGE)
    bench.maps(3 * PAGE, 4 * PAGE)
    bench.maps(0)


@FRONT_END.rule(UNMAP, protocol=MAPPED, queues=1)
def the_neighbours_of_what_is_unmapped_stay(bench: FrontendBench) -> None:
    """Of three mappings side by side the middle one goes, and the others are there."""
    bench.shared_memory()
    for page in range(3):
        bench.maps(page * PAGE)
    bench.unmaps(PAGE)
    bench.refuses(0)
    bench.refuses(2 * PAGE)
    bench.maps(PAGE)


@FRONT_END.rule(UNMAP, protocol=MAPPED, queues=1)
def a_mapping_is_unmapped_without_acknowledgement(bench: FrontendBench) -> None:
    """Without need_reply a mapping is taken away in silence: the range is free afterwards."""
    bench.shared_memory()
    bench.maps(0)
    bench.channel.request(B.SHMEM_UNMAP, Mmap(0, 0, 0, PAGE))
    bench.maps(0)


@FRONT_END.rule(UNMAP, level=Level.ADVICE, protocol=MAPPED, queues=1)
def flags_and_file_offset_mean_nothing_for_unmapping(bench: FrontendBench) -> None:
    """A mapping is known by its region, offset and length: what else is in the payload does not count."""
    bench.shared_memory()
    bench.maps(0)
    bench.accepted(B.SHMEM_UNMAP, Mmap(0, 7 * PAGE, 0, PAGE, MAP_RW))


@FRONT_END.rule(UNMAP, protocol=MAPPED, queues=1)
def a_read_only_mapping_can_be_taken_away(bench: FrontendBench) -> None:
    """How a mapping was made is no matter for its end."""
    bench.shared_memory()
    bench.maps(0, flags=0)
    bench.unmaps(0)


SIZES: Final = {"no_payload": 0, "8_bytes": 8, "39_bytes": 39, "41_bytes": 41}


def _of_size(size: int) -> Check:
    def check(bench: FrontendBench) -> None:
        bench.shared_memory()
        bench.maps(0)
        bench.refused(B.SHMEM_UNMAP, Mmap(0, 0, 0, PAGE).pack()[:size].ljust(size, b"\0"))

    return check


for _name, _size in SIZES.items():
    declare(
        FRONT_END,
        UNMAP,
        f"unmapping_with_{_name}_is_refused",
        f"SHMEM_UNMAP has 40 bytes of payload, not {_size}.",
        _of_size(_size),
        level=Level.SHOULD,
        protocol=MAPPED,
        queues=1,
    )
