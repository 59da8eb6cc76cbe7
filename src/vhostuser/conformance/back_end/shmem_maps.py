"""Rules about SHMEM_MAP and SHMEM_UNMAP, of what a device maps by itself once a driver takes it."""

from __future__ import annotations

import fcntl
import os
import stat
from collections.abc import Callable
from typing import Final

from ...protocol.numbers import KNOWN_FLAGS, MAP_RW, NEED_REPLY, PAGE, REPLY, FrontendRequest, ProtocolFeature, mask
from ...protocol.payloads import U64, VringState
from ..backend_bench import BACK_END, BackendBench
from ..family import declare
from ..mappings import PLAIN, QUIET, Asked, acknowledge, all_of, asks_nothing, channel_of, first, run, start
from ..outcome import Deviation, NotApplicable
from ..rule import Level
from .shmem_config import regions_of

F, Q = ProtocolFeature, FrontendRequest
SUSPENDED: Final = "Suspended device state"
MAP: Final = "VHOST_USER_BACKEND_SHMEM_MAP"
NEEDS: Final = (F.SHMEM, F.BACKEND_REQ, F.REPLY_ACK)
Finding = Callable[[BackendBench, Asked], tuple[str, str] | None]
"""What was expected of a mapping and what came, if it is wrong."""


def _region(bench: BackendBench, asked: Asked) -> tuple[str, str] | None:
    size = regions_of(bench)[1][asked.body.shmid]
    return None if size else ("a region that GET_SHMEM_CONFIG has", f"shmid {asked.body.shmid}")


def _within(bench: BackendBench, asked: Asked) -> tuple[str, str] | None:
    size = regions_of(bench)[1][asked.body.shmid]
    return None if asked.end <= size else (f"a mapping that ends within {size:#x}", f"one that ends at {asked.end:#x}")


def _aligned(field: str) -> Finding:
    def find(bench: BackendBench, asked: Asked) -> tuple[str, str] | None:
        value = getattr(asked.body, field)
        return (f"{field} a multiple of {PAGE}", f"{value:#x}") if value % PAGE else None

    return find


def _some(bench: BackendBench, asked: Asked) -> tuple[str, str] | None:
    return None if asked.body.len else ("a length that is not 0", "len 0")


def _flags(bench: BackendBench, asked: Asked) -> tuple[str, str] | None:
    return (f"flags within {MAP_RW:#x}", f"{asked.body.flags:#x}") if asked.body.flags & ~MAP_RW else None


def _padding(bench: BackendBench, asked: Asked) -> tuple[str, str] | None:
    padding = asked.frame.payload[1:8]
    return ("padding of zeros", padding.hex()) if any(padding) else None


def _one_fd(bench: BackendBench, asked: Asked) -> tuple[str, str] | None:
    return None if len(asked.frame.fds) == 1 else ("one fd", f"{len(asked.frame.fds)} fds")


def _file(bench: BackendBench, asked: Asked) -> tuple[str, str] | None:
    mode = os.fstat(_fd(asked)).st_mode
    good = stat.S_ISREG(mode) or stat.S_ISCHR(mode) or stat.S_ISBLK(mode)
    return None if good else ("an fd that can be mapped", f"one of file type {stat.S_IFMT(mode):#o}")


def _long_enough(bench: BackendBench, asked: Asked) -> tuple[str, str] | None:
    found, end = os.fstat(_fd(asked)), asked.body.fd_offset + asked.body.len
    short = stat.S_ISREG(found.st_mode) and -(-found.st_size // PAGE) * PAGE < end
    return (f"a file of {end:#x} bytes or more", f"{found.st_size:#x} bytes") if short else None


def _access(bench: BackendBench, asked: Asked) -> tuple[str, str] | None:
    mode = fcntl.fcntl(_fd(asked), fcntl.F_GETFL) & os.O_ACCMODE
    if mode == os.O_WRONLY or (asked.body.writable and mode != os.O_RDWR):
        wanted = "writing and reading" if asked.body.writable else "reading"
        return f"an fd that is open for {wanted}", f"access mode {mode}"
    return None


def _request_flags(bench: BackendBench, asked: Asked) -> tuple[str, str] | None:
    flags = asked.frame.flags
    wrong = flags & REPLY or flags & 3 != 1 or flags & ~KNOWN_FLAGS
    return ("flags of a request of version 1", f"{flags:#x}") if wrong else None


def _asks(bench: BackendBench, asked: Asked) -> tuple[str, str] | None:
    return None if asked.frame.flags & NEED_REPLY else ("need_reply set", f"flags {asked.frame.flags:#x}")


def _fd(asked: Asked) -> int:
    if len(asked.frame.fds) != 1:
        raise NotApplicable("it maps without an fd")
    return asked.frame.fds[0].fileno()


MAPPINGS: Final[tuple[tuple[str, str, Level, Finding], ...]] = (
    ("a_mapping_is_in_a_region_that_is_there", "A mapping is in a region of the configuration.", Level.MUST, _region),
    ("a_mapping_ends_within_its_region", "A mapping ends where its region ends, or before.", Level.MUST, _within),
    ("a_mapping_begins_at_a_page", "shm_offset is a multiple of the page size.", Level.SHOULD, _aligned("shm_offset")),
    ("a_mapping_has_whole_pages", "len is a multiple of the page size.", Level.SHOULD, _aligned("len")),
    (
        "a_mapping_begins_at_a_page_of_its_file",
        "fd_offset is a multiple of the page size.",
        Level.SHOULD,
        _aligned("fd_offset"),
    ),
    ("a_mapping_is_not_empty", "len is not 0.", Level.MUST, _some),
    ("a_mapping_has_known_flags", "flags are 0 for read-only or 1 for read-write.", Level.MUST, _flags),
    ("the_padding_of_a_mapping_is_zero", "Padding is zero where it is sent.", Level.ADVICE, _padding),
    ("a_mapping_comes_with_one_fd", "SHMEM_MAP carries the fd of what is to be mapped.", Level.MUST, _one_fd),
    ("a_mapping_is_of_what_can_be_mapped", "The fd is one that mmap takes.", Level.MUST, _file),
    ("a_mapping_is_of_what_is_in_its_file", "Nothing behind the end of its file is mapped.", Level.SHOULD, _long_enough),
    ("a_mapping_may_be_made_of_its_fd", "The fd is open for what the flags say.", Level.MUST, _access),
    ("a_mapping_is_asked_for_by_a_request", "The flags are those of a request of version 1.", Level.MUST, _request_flags),
    ("a_mapping_wants_to_be_acknowledged", "Whoever maps wants to know whether it is mapped.", Level.ADVICE, _asks),
)
"""What holds for a mapping: a rule's name, its sentence, its level, and what looks."""


def _mapping(name: str, text: str, level: Level, find: Finding) -> None:
    def check(bench: BackendBench) -> None:
        start(bench)
        asked = first(bench)
        acknowledge(channel_of(bench), asked.frame)
        if found := find(bench, asked):
            raise Deviation(*found)

    declare(BACK_END, MAP, name, text, check, level=level, protocol=NEEDS)


for _row in MAPPINGS:
    _mapping(*_row)


@BACK_END.rule(MAP, protocol=NEEDS)
def mappings_do_not_overlap(bench: BackendBench) -> None:
    """Mapping over a mapping is not allowed: no two overlap."""
    start(bench)
    live = _live(bench)
    for asked in live:
        for other in live:
            same = asked is not other and asked.body.shmid == other.body.shmid
            if same and asked.body.shm_offset < other.end and other.body.shm_offset < asked.end:
                raise Deviation(
                    "mappings that do not overlap", f"two at {asked.body.shm_offset:#x} of region {asked.body.shmid}"
                )


@BACK_END.rule(MAP, protocol=NEEDS, level=Level.SHOULD)
def a_mapping_that_is_refused_is_survived(bench: BackendBench) -> None:
    """A front-end may refuse a mapping; the back-end goes on, and answers."""
    start(bench)
    if not [*all_of(bench, status=1)]:
        raise NotApplicable("it maps nothing by itself")
    bench.alive()


@BACK_END.rule(MAP, protocol=NEEDS)
def a_mapping_that_is_refused_is_not_taken_away(bench: BackendBench) -> None:
    """What is not mapped can't be unmapped: SHMEM_UNMAP names a whole mapping that is there."""
    start(bench)
    asked = [*all_of(bench, status=1)]
    if not asked:
        raise NotApplicable("it maps nothing by itself")
    for each in asked:
        if not each.is_map:
            raise Deviation("no SHMEM_UNMAP of what was refused", f"one at {each.body.shm_offset:#x}")


@BACK_END.rule(MAP, protocol=NEEDS, level=Level.SHOULD)
def the_main_channel_is_served_while_a_mapping_waits(bench: BackendBench) -> None:
    """A back-end that waits for the answer to SHMEM_MAP answers the front-end meanwhile, which may wait for that first."""
    start(bench)
    asked = first(bench)
    bench.alive()
    acknowledge(channel_of(bench), asked.frame)


@BACK_END.rule("VHOST_USER_SET_BACKEND_REQ_FD", protocol=NEEDS, level=Level.ADVICE)
def the_end_of_the_back_end_channel_is_survived(bench: BackendBench) -> None:
    """The main channel lives on when the back-end channel has ended."""
    start(bench)
    channel_of(bench).close()
    bench.alive()


@BACK_END.rule(MAP, protocol=NEEDS)
def nothing_is_mapped_without_the_feature(bench: BackendBench) -> None:
    """SHMEM_MAP is sent once SHMEM was negotiated; without it, nothing is mapped."""
    start(bench, protocol=PLAIN & ~mask((F.SHMEM,)))
    bench.alive()
    asks_nothing(bench, "for shared memory that was not negotiated")


@BACK_END.rule(MAP, protocol=NEEDS)
def a_device_starts_without_a_back_end_channel(bench: BackendBench) -> None:
    """A front-end need not give a back-end channel; rings start without one."""
    start(bench, channel=False)
    bench.alive()


@BACK_END.rule(SUSPENDED, protocol=NEEDS)
def nothing_is_mapped_before_a_ring_starts(bench: BackendBench) -> None:
    """While no ring is started a device sends no message: QEMU 11.1 has no region before that."""
    bench.agree(protocol=PLAIN)
    bench.open_requests()
    bench.share_memory()
    asks_nothing(bench, "before a ring is started")


@BACK_END.rule(MAP, protocol=(*NEEDS, F.RESET_DEVICE))
def a_reset_unmaps_without_a_word(bench: BackendBench) -> None:
    """Mappings are gone with a device reset: the back-end does not unmap them, and may map there again."""
    start(bench)
    if not _live(bench):
        raise NotApplicable("it maps nothing by itself")
    bench.accepted(Q.RESET_DEVICE)
    bench.request(Q.SET_FEATURES, U64(bench.acknowledged))
    run(bench)
    _live(bench)  # what was mapped before is none of them


@BACK_END.rule(SUSPENDED, protocol=NEEDS)
def nothing_is_mapped_once_the_rings_are_stopped(bench: BackendBench) -> None:
    """Once its rings are stopped a device sends no message: QEMU 11.1 dies of one."""
    start(bench)
    _live(bench)
    bench.replied(Q.GET_VRING_BASE, VringState(0, 0))
    asks_nothing(bench, "once the rings are stopped")


@BACK_END.rule(MAP, protocol=NEEDS)
def requests_without_reply_ack_do_not_ask_for_a_reply(bench: BackendBench) -> None:
    """While REPLY_ACK is not negotiated, need_reply is not set on the back-end channel either."""
    start(bench, protocol=PLAIN & ~mask((F.REPLY_ACK,)))
    for asked in all_of(bench, answer=False, patience=4 * QUIET):
        if asked.frame.flags & NEED_REPLY:
            raise Deviation("flags without need_reply", f"{asked.frame.flags:#x}")


def _live(bench: BackendBench) -> list[Asked]:
    """What is mapped once the back-end is quiet; an unmapping is of one of them."""
    live: list[Asked] = []
    for asked in all_of(bench):
        if asked.is_map:
            live.append(asked)
            continue
        same = [each for each in live if _place(each) == _place(asked)]
        if not same:
            raise Deviation("SHMEM_UNMAP of a whole mapping", f"one at {asked.body.shm_offset:#x}+{asked.body.len:#x}")
        live.remove(same[0])
    return live


def _place(asked: Asked) -> tuple[int, int, int]:
    return asked.body.shmid, asked.body.shm_offset, asked.body.len
