"""Rules about SHMEM_MAP: what is refused, and that a refusal changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from ...protocol.numbers import MAP_RW, PAGE, BackendRequest, ProtocolFeature
from ...protocol.payloads import Mmap
from ...testing.files import memory_file
from ...transport.fds import close_all
from .. import fd_kinds
from ..family import declare
from ..fd_kinds import UNMAPPABLE, Make
from ..frontend_bench import FRONT_END, FrontendBench
from ..relations import EQUAL, MIDDLE, OVERLAPS, Range
from ..rule import Level
from ..scripted_backend import REGION

F, B = ProtocolFeature, BackendRequest
MAP: Final = "VHOST_USER_BACKEND_SHMEM_MAP"
MAPPED: Final = (F.SHMEM, F.BACKEND_REQ, F.REPLY_ACK)
TOP: Final = 1 << 64
Check = Callable[[FrontendBench], None]


def _over(place: Range) -> Check:
    def check(bench: FrontendBench) -> None:
        bench.shared_memory()
        bench.maps(*MIDDLE)
        bench.refused(B.SHMEM_MAP, Mmap(0, 0, *place, MAP_RW), fds=[bench.file(place.len // PAGE)])
        bench.unmaps(*MIDDLE)

    return check


for _name, _place in {**OVERLAPS, **EQUAL}.items():
    declare(
        FRONT_END,
        MAP,
        f"a_mapping_{_name}_another_is_refused",
        f"Mapping over what is mapped already fails: a range {_name.replace('_', ' ')} another. That one stays as it is.",
        _over(_place),
        protocol=MAPPED,
        queues=1,
    )

RANGES: Final[dict[str, tuple[str, Range, Level]]] = {
    "no_bytes": ("A mapping has bytes.", Range(0, 0), Level.MUST),
    "a_page_past_the_end": ("A mapping ends where its region ends.", Range(REGION - PAGE, 2 * PAGE), Level.MUST),
    "a_page_behind_the_region": ("A mapping begins within its region.", Range(REGION, PAGE), Level.MUST),
    "a_page_more_than_the_region": ("A mapping has at most the bytes of its region.", Range(0, REGION + PAGE), Level.MUST),
    "an_end_of_2_64": ("An end of 2^64 is not 0.", Range(TOP - PAGE, PAGE), Level.MUST),
    "an_end_that_wraps_to_a_page": (
        "Offset and length are added without wrapping.",
        Range(TOP - PAGE, 2 * PAGE),
        Level.MUST,
    ),
    "an_end_that_wraps_to_0": ("Offset and length are added without wrapping.", Range(PAGE, TOP - PAGE), Level.MUST),
    "all_bytes_there_are": ("A length of 2^64 - 4096 is no small one.", Range(0, TOP - PAGE), Level.MUST),
    "a_negative_offset": ("Offsets have no sign: -4096 is very far.", Range(TOP - PAGE, PAGE), Level.MUST),
    "half_the_addresses": ("A length of 2^63 is no negative one.", Range(0, 1 << 63), Level.MUST),
    "an_offset_of_1": ("Whole pages can be mapped: an offset of 1 is none.", Range(1, PAGE), Level.SHOULD),
    "an_offset_of_half_a_page": ("Whole pages can be mapped: an offset of 2048 is none.", Range(2048, PAGE), Level.SHOULD),
    "an_offset_of_512": ("Whole pages can be mapped: a sector is none.", Range(512, PAGE), Level.SHOULD),
    "one_byte": ("Whole pages can be mapped: a byte is none.", Range(0, 1), Level.SHOULD),
    "a_page_and_a_half": ("Whole pages can be mapped: 6144 bytes are none.", Range(0, 6144), Level.SHOULD),
    "a_page_and_a_byte": ("Whole pages can be mapped: 4097 bytes are none.", Range(0, PAGE + 1), Level.SHOULD),
}
"""Ranges that can't be mapped: the sentence, the range, how much it matters."""


def _nowhere(place: Range) -> Check:
    def check(bench: FrontendBench) -> None:
        bench.shared_memory()
        bench.refused(B.SHMEM_MAP, Mmap(0, 0, *place, MAP_RW), fds=[bench.file(REGION // PAGE + 2)])

    return check


for _name, (_text, _place, _level) in RANGES.items():
    declare(
        FRONT_END,
        MAP,
        f"a_mapping_of_{_name}_is_refused",
        _text,
        _nowhere(_place),
        level=_level,
        protocol=MAPPED,
        queues=1,
    )

FILE_OFFSETS: Final[dict[str, tuple[str, int, Level]]] = {
    "1": ("A mapping begins with a page of its file.", 1, Level.SHOULD),
    "512": ("A mapping begins with a page of its file.", 512, Level.SHOULD),
    "2048": ("A mapping begins with a page of its file.", 2048, Level.SHOULD),
    "2_63": ("No file has a byte at 2^63.", 1 << 63, Level.SHOULD),
    "2_64_less_a_page": ("File offset and length are added without wrapping.", TOP - PAGE, Level.SHOULD),
}
"""Where in a file no mapping begins."""


def _from(offset: int) -> Check:
    def check(bench: FrontendBench) -> None:
        bench.shared_memory()
        bench.refused(B.SHMEM_MAP, Mmap(0, offset, 0, PAGE, MAP_RW), fds=[bench.file(3)])

    return check


for _name, (_text, _offset, _level) in FILE_OFFSETS.items():
    declare(
        FRONT_END,
        MAP,
        f"a_mapping_from_{_name}_of_the_file_is_refused",
        _text,
        _from(_offset),
        level=_level,
        protocol=MAPPED,
        queues=1,
    )


def _of(make: Make) -> Check:
    def check(bench: FrontendBench) -> None:
        bench.shared_memory()
        bench.refused(B.SHMEM_MAP, Mmap(0, 0, 0, PAGE, MAP_RW), fds=[bench.keep(make())])

    return check


for _name, (_text, _make) in UNMAPPABLE.items():
    declare(FRONT_END, MAP, f"{_name}_is_refused", _text, _of(_make), level=Level.SHOULD, protocol=MAPPED, queues=1)


@FRONT_END.rule(MAP, level=Level.ADVICE, protocol=MAPPED, queues=1)
def the_channel_outlives_a_file_that_can_not_be_mapped(bench: FrontendBench) -> None:
    """A wrong fd fails its own request: the channel goes on with the next."""
    bench.shared_memory()
    for make in (fd_kinds.pipe, lambda: fd_kinds.opened("/"), lambda: fd_kinds.opened("/dev/null")):
        bench.refused_in_step(B.SHMEM_MAP, Mmap(0, 0, 0, PAGE, MAP_RW), fds=[bench.keep(make())])
    bench.maps(0)


@FRONT_END.rule(MAP, protocol=MAPPED, queues=1)
def a_file_open_for_reading_is_not_mapped_for_writing(bench: FrontendBench) -> None:
    """With the flag for writing the pages are to be written, which an fd that can only be read does not allow."""
    bench.shared_memory()
    file = bench.keep(fd_kinds.one_page_read_only())
    bench.refused(B.SHMEM_MAP, Mmap(0, 0, 0, PAGE, MAP_RW), fds=[file])


@FRONT_END.rule(MAP, protocol=MAPPED, queues=1)
def a_mapping_without_a_file_is_refused(bench: FrontendBench) -> None:
    """The file that is to be mapped comes with the request."""
    bench.shared_memory()
    bench.refused(B.SHMEM_MAP, Mmap(0, 0, 0, PAGE, MAP_RW))


FD_COUNTS: Final = {"two": 2, "eight": 8, "64": 64}


def _with_fds(count: int) -> Check:
    def check(bench: FrontendBench) -> None:
        bench.shared_memory()
        fds = [memory_file(1) for _ in range(count)]
        bench.channel.request(B.SHMEM_MAP, Mmap(0, 0, 0, PAGE, MAP_RW), fds=fds, flags=0x9)
        close_all(fds)
        bench.expect_refusal(B.SHMEM_MAP)

    return check


for _name, _count in FD_COUNTS.items():
    declare(
        FRONT_END,
        MAP,
        f"a_mapping_with_{_name}_files_is_refused",
        f"Exactly one file comes with a mapping, not {_name}.",
        _with_fds(_count),
        level=Level.SHOULD,
        protocol=MAPPED,
        queues=1,
    )

FLAGS: Final = {"2": 2, "3": 3, "2_63": 1 << 63, "all_bits": TOP - 1}


def _flagged(flags: int) -> Check:
    def check(bench: FrontendBench) -> None:
        bench.shared_memory()
        bench.refuses(0, flags=flags)

    return check


for _name, _flags in FLAGS.items():
    declare(
        FRONT_END,
        MAP,
        f"a_mapping_with_flags_{_name}_is_refused",
        f"Flags are 0 (read-only) or 1 (read-write): {_flags:#x} asks for what nobody knows.",
        _flagged(_flags),
        level=Level.ADVICE,
        protocol=MAPPED,
        queues=1,
    )

SHMIDS: Final = {"2": 2, "128": 128, "255": 255}


def _in(shmid: int) -> Check:
    def check(bench: FrontendBench) -> None:
        bench.shared_memory()
        bench.refuses(0, shmid=shmid)

    return check


for _name, _shmid in SHMIDS.items():
    declare(
        FRONT_END,
        MAP,
        f"a_mapping_in_region_{_name}_is_refused_if_there_is_none",
        f"A mapping lies in a region that GET_SHMEM_CONFIG has shown, which {_name} is not.",
        _in(_shmid),
        protocol=MAPPED,
        queues=1,
    )


@FRONT_END.rule(MAP, level=Level.ADVICE, protocol=MAPPED, queues=1)
def a_mapping_past_the_end_of_its_file_is_refused(bench: FrontendBench) -> None:
    """Pages behind the end of a file kill who touches them: a front-end looks at the size first."""
    bench.shared_memory()
    bench.refused(B.SHMEM_MAP, Mmap(0, 0, 0, 2 * PAGE, MAP_RW), fds=[bench.file(1)])


@FRONT_END.rule(MAP, level=Level.ADVICE, protocol=MAPPED, queues=1)
def a_mapping_behind_the_end_of_its_file_is_refused(bench: FrontendBench) -> None:
    """The same where the whole mapping lies behind the end."""
    bench.shared_memory()
    bench.refuses(0, fd_offset=4 * PAGE)


@FRONT_END.rule(MAP, level=Level.ADVICE, protocol=MAPPED, queues=1)
def a_mapping_of_an_empty_file_is_refused(bench: FrontendBench) -> None:
    """The same where the file has no byte."""
    bench.shared_memory()
    bench.refused(B.SHMEM_MAP, Mmap(0, 0, 0, PAGE, MAP_RW), fds=[bench.keep(fd_kinds.on_disk(0))])


@FRONT_END.rule(MAP, protocol=MAPPED, queues=1)
def a_refused_mapping_leaves_its_range_free(bench: FrontendBench) -> None:
    """What was refused is not there: the same range can be mapped afterwards."""
    bench.shared_memory()
    bench.refused(B.SHMEM_MAP, Mmap(0, 0, 0, PAGE, MAP_RW))
    bench.maps(0)


@FRONT_END.rule(MAP, level=Level.SHOULD, protocol=MAPPED, queues=1)
def the_channel_outlives_refusals(bench: FrontendBench) -> None:
    """A refusal is a status, not the end: what is wrong with one request says nothing of the next."""
    bench.shared_memory()
    bench.maps(*MIDDLE)
    bench.refused_in_step(B.SHMEM_MAP, Mmap(0, 0, *MIDDLE, MAP_RW), fds=[bench.file(4)])
    bench.refused_in_step(B.SHMEM_MAP, Mmap(0, 0, REGION, PAGE, MAP_RW), fds=[bench.file()])
    bench.refused_in_step(B.SHMEM_MAP, Mmap(9, 0, 0, PAGE, MAP_RW), fds=[bench.file()])
    bench.refused_in_step(B.SHMEM_UNMAP, Mmap(0, 0, 0, PAGE))
    bench.unmaps(*MIDDLE)
