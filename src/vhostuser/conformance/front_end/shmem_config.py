"""Rules about GET_SHMEM_CONFIG: when it is asked for, and what a front-end makes of the answer."""

from __future__ import annotations

from collections.abc import Callable
from struct import Struct
from typing import Final

from ...protocol.numbers import MAX_SHMIDS, PAGE, FrontendRequest, ProtocolFeature
from ...testing.files import message
from ...testing.wire import ACK
from ..family import declare
from ..frontend_bench import FRONT_END, FrontendBench
from ..outcome import Deviation
from ..rule import Level

F, Q = ProtocolFeature, FrontendRequest
CONFIG: Final = "VHOST_USER_GET_SHMEM_CONFIG"
LAYOUT: Final = "VIRTIO Shared Memory Region configuration"
ASKED: Final = (F.SHMEM,)
MAPPED: Final = (F.SHMEM, F.BACKEND_REQ, F.REPLY_ACK)
_LAYOUT: Final = Struct(f"=II{MAX_SHMIDS}Q")
MIB: Final = 1 << 20


@FRONT_END.rule(CONFIG, level=Level.SHOULD)
def the_regions_are_asked_for_where_shmem_is_taken(bench: FrontendBench) -> None:
    """Who acknowledges SHMEM asks which regions there are: without that no mapping has a place."""
    bench.settle()
    bench.need(F.SHMEM)
    if not bench.seen.of(Q.GET_SHMEM_CONFIG):
        raise Deviation("GET_SHMEM_CONFIG, as SHMEM was acknowledged", "none")


@FRONT_END.rule(CONFIG)
def the_regions_are_not_asked_for_without_shmem(bench: FrontendBench) -> None:
    """GET_SHMEM_CONFIG needs the protocol feature SHMEM."""
    bench.offer(bench.protocol & ~(1 << F.SHMEM))
    bench.settle()
    if bench.seen.of(Q.GET_SHMEM_CONFIG):
        raise Deviation("no GET_SHMEM_CONFIG without SHMEM", "GET_SHMEM_CONFIG")


@FRONT_END.rule(CONFIG, level=Level.ADVICE, protocol=ASKED)
def the_regions_are_asked_for_once(bench: FrontendBench) -> None:
    """The regions stay as they are for the whole connection: one question is enough."""
    bench.settle()
    bench.watch(lambda: False, moments=0.5)
    if (count := len(bench.seen.of(Q.GET_SHMEM_CONFIG))) != 1:
        raise Deviation("one GET_SHMEM_CONFIG", f"{count}")


@FRONT_END.rule(CONFIG, level=Level.ADVICE, protocol=ASKED)
def the_regions_are_asked_for_before_a_ring_starts(bench: FrontendBench) -> None:
    """A driver looks for the regions before it starts a device, so they are known by then."""
    bench.settle()
    for seen in bench.seen:
        if seen.request == Q.GET_SHMEM_CONFIG:
            return
        if seen.request == Q.SET_VRING_KICK:
            raise Deviation("GET_SHMEM_CONFIG before SET_VRING_KICK", "SET_VRING_KICK")


@FRONT_END.rule(CONFIG, protocol=ASKED)
def the_question_has_no_payload(bench: FrontendBench) -> None:
    """GET_SHMEM_CONFIG is a header and nothing else, and its reply needs no flag."""
    bench.settle()
    for seen in bench.seen.of(Q.GET_SHMEM_CONFIG):
        if seen.payload or seen.fds:
            raise Deviation("GET_SHMEM_CONFIG without payload and fds", f"{len(seen.payload)} bytes, {len(seen.fds)} fds")


# Numberings of other times

FOREIGN: Final = {
    20: (F.GET_VRING_BASE_INFLIGHT, "the drafts"),
    21: (F.GPA_ADDRESSES, "rust-vmm's vhost 0.16"),
    31: (None, "crosvm before 2025"),
}
"""Bits that have meant SHMEM to somebody: what they mean today, and to whom."""


def _not_shmem(bit: int) -> Callable[[FrontendBench], None]:
    def check(bench: FrontendBench) -> None:
        others = 1 << F.INFLIGHT_SHMFD if bit == F.GET_VRING_BASE_INFLIGHT else 0
        bench.offer(bench.protocol & ~(1 << F.SHMEM) | 1 << bit | others)
        bench.watch(lambda: bool(bench.seen.running or bench.seen.of(Q.GET_SHMEM_CONFIG)), moments=3)
        if bench.seen.of(Q.GET_SHMEM_CONFIG):
            raise Deviation(f"no GET_SHMEM_CONFIG because of bit {bit}", "GET_SHMEM_CONFIG")

    return check


for _bit, (_means, _whose) in FOREIGN.items():
    declare(
        FRONT_END,
        "Protocol features",
        f"bit_{_bit}_is_not_taken_for_shmem",
        f"SHMEM is bit 22; bit {_bit} was that in {_whose}, and now means {_means.name if _means else 'nothing'}.",
        _not_shmem(_bit),
    )


# Regions that are right

SIZES: Final[dict[str, tuple[str, dict[int, int], Level]]] = {
    "one_page": ("Any multiple of the page size is a size: one page too.", {0: PAGE}, Level.MUST),
    "three_pages": ("A size need not be a power of two.", {0: 3 * PAGE}, Level.MUST),
    "other_sizes": ("Regions need not be of one size.", {0: PAGE, 1: 4 * MIB, 2: 16 * PAGE}, Level.MUST),
    "gaps": ("Shmids need not begin at 0, nor follow each other.", {3: MIB, 7: MIB}, Level.MUST),
    "shmid_255": ("Shmids are 0 to 255: the last is one.", {255: MIB}, Level.MUST),
    "four_regions": ("There may be as many regions as shmids: four too.", dict.fromkeys(range(4), MIB), Level.SHOULD),
    "256_regions": ("There may be a region for each shmid: 256.", dict.fromkeys(range(MAX_SHMIDS), PAGE), Level.ADVICE),
    "4_gib": ("A size has 64 bits: a region may have 4 GiB and more.", {0: 8 << 30}, Level.SHOULD),
}


def _maps_in_each(sizes: dict[int, int]) -> Callable[[FrontendBench], None]:
    def check(bench: FrontendBench) -> None:
        bench.regions = sizes
        bench.shared_memory()
        for shmid in {min(sizes), max(sizes)}:
            bench.maps(sizes[shmid] - PAGE, shmid=shmid)

    return check


for _name, (_text, _sizes, _level) in SIZES.items():
    declare(
        FRONT_END,
        LAYOUT,
        f"regions_may_be_{_name}" if "_regions" in _name or _name in ("gaps", "other_sizes") else f"a_region_may_be_{_name}",
        f"{_text} The last page of the first and the last region can be mapped.",
        _maps_in_each(_sizes),
        level=_level,
        protocol=MAPPED,
        queues=1,
    )


@FRONT_END.rule(LAYOUT, protocol=MAPPED, queues=1)
def there_may_be_no_region_at_all(bench: FrontendBench) -> None:
    """All sizes may be 0: then the device runs, and every mapping is refused."""
    bench.regions = {}
    bench.start()
    bench.refuses(0)


@FRONT_END.rule(LAYOUT, level=Level.ADVICE, protocol=MAPPED, queues=1)
def a_huge_region_is_taken_or_ends_in_good_order(bench: FrontendBench) -> None:
    """A terabyte takes addresses, not memory: its last page can be mapped; or the connection ends."""
    bench.regions = {0: 1 << 40}
    bench.until(Q.GET_SHMEM_CONFIG)
    if bench.soon(lambda: bool(bench.seen.running) or bench.over, within=bench.deadline) and not bench.over:
        bench.maps((1 << 40) - PAGE)


# Regions that are wrong

WRONG: Final[dict[str, tuple[str, int, dict[int, int], Level]]] = {
    "100_bytes": ("Sizes are multiples of the page size, 100 is none.", 1, {0: 100}, Level.SHOULD),
    "a_page_and_a_byte": ("Sizes are multiples of the page size, 4097 is none.", 1, {0: PAGE + 1}, Level.SHOULD),
    "a_page_and_a_half": ("Sizes are multiples of the page size, 6144 is none.", 1, {0: PAGE + 2048}, Level.SHOULD),
    "half_of_all_addresses": ("No process has 2^63 bytes to reserve.", 1, {0: 1 << 63}, Level.ADVICE),
    "nearly_all_addresses": ("No process has 2^64 - 4096 bytes to reserve.", 1, {0: (1 << 64) - PAGE}, Level.ADVICE),
    "a_sum_that_wraps": ("Two regions of 2^63 bytes are 2^64, not 0.", 2, {0: 1 << 63, 1: 1 << 63}, Level.ADVICE),
    "too_small_a_count": (
        "The count is that of the sizes that are not 0: two here, not one.",
        1,
        {0: MIB, 1: MIB},
        Level.ADVICE,
    ),
    "a_count_of_0": ("The count is that of the sizes that are not 0: one here, not none.", 0, {0: MIB}, Level.ADVICE),
    "too_great_a_count": ("The count is that of the sizes that are not 0: one here, not two.", 2, {0: MIB}, Level.ADVICE),
    "a_count_of_257": ("There are at most 256 regions.", 257, {0: MIB}, Level.SHOULD),
    "the_greatest_count": ("There are at most 256 regions, not 2^32 - 1.", (1 << 32) - 1, {0: MIB}, Level.SHOULD),
}
"""Configurations that are none: the sentence, the count, the sizes, how much it matters."""


def _config(count: int, sizes: dict[int, int]) -> bytes:
    return _LAYOUT.pack(count, 0, *(sizes.get(shmid, 0) for shmid in range(MAX_SHMIDS)))


def _ends(name: str, config: bytes) -> Callable[[FrontendBench], None]:
    def check(bench: FrontendBench) -> None:
        bench.answers[Q.GET_SHMEM_CONFIG] = lambda frame: message(Q.GET_SHMEM_CONFIG, config, flags=ACK)
        bench.until(Q.GET_SHMEM_CONFIG)
        bench.starts_nothing(f"regions of {name.replace('_', ' ')}")

    return check


for _name, (_text, _count, _wrong, _level) in WRONG.items():
    declare(
        FRONT_END,
        LAYOUT,
        f"regions_of_{_name}_are_not_taken",
        f"{_text} The front-end starts no ring with such an answer.",
        _ends(_name, _config(_count, _wrong)),
        level=_level,
        protocol=ASKED,
        queues=1,
    )
