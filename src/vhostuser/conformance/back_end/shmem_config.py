"""Rules about the configuration of shared memory regions."""

from __future__ import annotations

from struct import Struct
from typing import Final

from ...protocol.numbers import MAX_SHMIDS, PAGE, FrontendRequest, ProtocolFeature
from ..backend_bench import BACK_END, BackendBench
from ..outcome import Deviation
from ..rule import Level

F, Q = ProtocolFeature, FrontendRequest
SECTION: Final = "VHOST_USER_GET_SHMEM_CONFIG"
_CONFIG: Final = Struct(f"=II{MAX_SHMIDS}Q")


def regions_of(bench: BackendBench) -> tuple[int, list[int]]:
    """The number of regions that GET_SHMEM_CONFIG says there are, and all sizes."""
    payload = bench.replied(Q.GET_SHMEM_CONFIG).payload
    if len(payload) != _CONFIG.size:
        raise Deviation(f"{_CONFIG.size} bytes: a number and {MAX_SHMIDS} sizes", f"{len(payload)} bytes")
    count, _, *sizes = _CONFIG.unpack(payload)
    return count, sizes


@BACK_END.rule(SECTION, protocol=[F.SHMEM])
def the_configuration_of_regions_has_256_sizes(bench: BackendBench) -> None:
    """GET_SHMEM_CONFIG is answered with a number of regions, padding, and the sizes of 256 regions."""
    bench.agree()
    regions_of(bench)


@BACK_END.rule(SECTION, protocol=[F.SHMEM])
def the_number_of_regions_is_that_of_sizes_that_are_not_zero(bench: BackendBench) -> None:
    """Nregions is the number of regions that there are: those whose size is not 0."""
    bench.agree()
    count, sizes = regions_of(bench)
    there = sum(map(bool, sizes))
    if count != there:
        raise Deviation(f"{there} regions, as many as sizes that are not 0", f"nregions {count}")


@BACK_END.rule(SECTION, protocol=[F.SHMEM])
def a_region_is_whole_pages(bench: BackendBench) -> None:
    """The size of a region is a multiple of the page size."""
    bench.agree()
    for shmid, size in enumerate(regions_of(bench)[1]):
        if size % PAGE:
            raise Deviation(f"a multiple of {PAGE} as the size of region {shmid}", str(size))


@BACK_END.rule(SECTION, protocol=[F.SHMEM])
def the_configuration_of_regions_stays(bench: BackendBench) -> None:
    """The configuration of regions is constant for the lifetime of the connection."""
    bench.agree()
    first, second = regions_of(bench), regions_of(bench)
    if first != second:
        raise Deviation("the same regions twice", f"{first[0]} regions, then {second[0]}, of other sizes")


@BACK_END.rule(SECTION, protocol=[F.SHMEM, F.RESET_DEVICE])
def the_configuration_of_regions_outlives_a_reset(bench: BackendBench) -> None:
    """A reset takes mappings away, not regions."""
    bench.agree()
    before = regions_of(bench)
    bench.accepted(Q.RESET_DEVICE)
    if regions_of(bench) != before:
        raise Deviation("the regions of before the reset", "other ones")


@BACK_END.rule(SECTION, protocol=[F.SHMEM], level=Level.ADVICE)
def regions_can_be_reserved(bench: BackendBench) -> None:
    """All regions together have room in an address space of 47 bits."""
    bench.agree()
    if (total := sum(regions_of(bench)[1])) >= 1 << 46:
        raise Deviation("less than 2^46 bytes in all regions", f"{total:#x}")


@BACK_END.rule(SECTION, protocol=[F.SHMEM], level=Level.ADVICE)
def the_padding_of_the_configuration_of_regions_is_zero(bench: BackendBench) -> None:
    """Padding is zero where it is sent."""
    bench.agree()
    if any(bench.replied(Q.GET_SHMEM_CONFIG).payload[4:8]):
        raise Deviation("padding of zeros", "other bytes")
