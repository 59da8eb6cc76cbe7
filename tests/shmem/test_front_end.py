"""SHMEM_MAP and SHMEM_UNMAP from a raw back-end: what is refused changes nothing, not a page and not an fd."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.memory_map import areas, modes
from tests.relations import BASE, OVERLAPPING, RELATIONS
from vhostuser import MemoryFault
from vhostuser.protocol.numbers import BackendRequest
from vhostuser.protocol.payloads import Mmap
from vhostuser.testing import memory_file, sparse_file, usage
from vhostuser.testing.files import message
from vhostuser.transport.fds import OwnedFd

from .conftest import PAGE, PAGES, SIZES, Sending

MAP, UNMAP = BackendRequest.SHMEM_MAP, BackendRequest.SHMEM_UNMAP
TOP = 1 << 64
END = SIZES[0]


@pytest.fixture
def file() -> Iterator[OwnedFd]:
    """A file of 16 pages, page n full of n + 1."""
    with memory_file(PAGES) as fd:
        for page in range(PAGES):
            os.pwrite(fd.fileno(), bytes([page + 1]) * PAGE, page * PAGE)
        yield fd


def mmap_of(start: int, end: int, *, flags: int = 0, fd_offset: int = 0, shmid: int = 0) -> Mmap:
    return Mmap(shmid, fd_offset, start, end - start, flags)


def refused(sending: Sending, request: BackendRequest, body: Mmap | bytes, *fds: OwnedFd | int) -> None:
    """A no with need_reply, silence without; both leave everything as it was."""
    before, held = sending.shown(), usage()
    sending.channel.refused(request, body, fds=fds)
    sending.channel.request(request, body, fds=fds)
    sending.frontend.config(0, 1)
    assert sending.shown() == before
    assert usage() == held


@pytest.mark.parametrize("relation", RELATIONS)
def test_sh02_a_map_beside_or_over_another(sending: Sending, file: OwnedFd, relation: str) -> None:
    sending.channel.accepted(MAP, mmap_of(*BASE), fds=[file])
    new = mmap_of(*RELATIONS[relation], fd_offset=PAGE)
    if relation in OVERLAPPING:
        refused(sending, MAP, new, file)
    else:
        sending.channel.accepted(MAP, new, fds=[file])
        assert sending.frontend.shm[0].read(new.shm_offset, 1) == b"\2"
    assert sending.frontend.shm[0].read(BASE[0], 1) == b"\1"


@pytest.mark.parametrize("relation", RELATIONS)
def test_sh03_an_unmap_takes_exactly_one_mapping(sending: Sending, file: OwnedFd, relation: str) -> None:
    sending.channel.accepted(MAP, mmap_of(*BASE), fds=[file])
    if relation == "equals":
        sending.channel.accepted(UNMAP, mmap_of(*BASE))
        assert not sending.frontend.shm[0].mappings
    else:
        refused(sending, UNMAP, mmap_of(*RELATIONS[relation]))


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(Mmap(*numbers), id=name)
        for name, numbers in {
            "sh06-empty": (0, 0, 0, 0, 0),
            "sh07-wraps": (0, 0, TOP - PAGE, 2 * PAGE, 0),
            "sh07-last-byte": (0, 0, TOP - 1, 1, 0),
            "sh07-all": (0, 0, 0, TOP - 1, 0),
            "sh07-wraps-to-0": (0, 0, PAGE, TOP - PAGE, 0),
            "sh08-file-wraps": (0, TOP - PAGE, 0, 2 * PAGE, 0),
            "sh08-file-passes-2^63": (0, (1 << 63) - PAGE, 0, PAGE, 0),
            "sh09-offset-1": (0, 0, 1, PAGE, 0),
            "sh09-offset-2048": (0, 0, 2048, PAGE, 0),
            "sh09-file-512": (0, 512, 0, PAGE, 0),
            "sh09-len-1": (0, 0, 0, 1, 0),
            "sh09-len-4097": (0, 0, 0, PAGE + 1, 0),
            "sh10-past-the-end": (0, 0, END - PAGE, 2 * PAGE, 0),
            "sh10-behind-the-end": (0, 0, END, PAGE, 0),
            "sh11-unknown-1": (1, 0, 0, PAGE, 0),
            "sh11-unknown-255": (255, 0, 0, PAGE, 0),
            "sh17-flags-2": (0, 0, 0, PAGE, 2),
            "sh17-flags-3": (0, 0, 0, PAGE, 3),
            "sh17-flags-2^63": (0, 0, 0, PAGE, 1 << 63),
            "sh21-past-the-file": (0, 8 * PAGE, 0, 9 * PAGE, 0),
            "sh21-behind-the-file": (0, PAGES * PAGE, 0, PAGE, 0),
        }.items()
    ],
)
def test_a_map_that_can_not_be(sending: Sending, file: OwnedFd, body: Mmap) -> None:
    refused(sending, MAP, body, file)
    sending.channel.accepted(MAP, mmap_of(0, END), fds=[file])
    assert sending.frontend.counters.refused == 2


@pytest.mark.parametrize("flags", [0, 1, 7, 1 << 63])
def test_sh17_sh18_an_unmap_ignores_its_flags_and_file_offset_and_all_ignore_padding(
    sending: Sending, file: OwnedFd, flags: int
) -> None:
    padded = bytearray(mmap_of(0, PAGE).pack())
    padded[1:8] = b"\xff" * 7
    sending.channel.accepted(MAP, bytes(padded), fds=[file])
    padded = bytearray(mmap_of(0, PAGE, flags=flags, fd_offset=7).pack())
    padded[1:8] = b"\xff" * 7
    sending.channel.accepted(UNMAP, bytes(padded))


OPENERS: dict[str, Callable[[Path], int]] = {
    "directory": lambda file: os.open(file.parent, os.O_RDONLY),
    "O_PATH": lambda file: os.open(file, os.O_PATH),
    "O_WRONLY": lambda file: os.open(file, os.O_WRONLY),
    "proc": lambda file: os.open("/proc/self/status", os.O_RDONLY),
    "null": lambda file: os.open("/dev/null", os.O_RDWR),
    "eventfd": lambda file: os.eventfd(0),
    "empty": lambda file: os.memfd_create("empty"),
}


@pytest.mark.parametrize("flags", [0, 1], ids=["read-only", "read-write"])
@pytest.mark.parametrize("kind", [*OPENERS, "pipe", "socket"])
def test_sh12_an_fd_that_is_no_file(sending: Sending, tmp_path: Path, kind: str, flags: int) -> None:
    (tmp_path / "file").write_bytes(bytes(PAGE))
    with ExitStack() as opened:
        if kind in OPENERS:
            fd = OwnedFd(OPENERS[kind](tmp_path / "file"))
        else:
            ends = os.pipe() if kind == "pipe" else tuple(each.detach() for each in socket.socketpair())
            fd = OwnedFd(ends[0])
            opened.enter_context(OwnedFd(ends[1]))
        with fd:
            refused(sending, MAP, mmap_of(0, PAGE, flags=flags), fd)


def test_sh15_sh16_what_is_read_only_stays_so(sending: Sending, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(2 * PAGE))
    region = sending.frontend.shm[0]
    with OwnedFd(os.open(tmp_path / "file", os.O_RDONLY)) as only, OwnedFd(os.open(tmp_path / "file", os.O_RDWR)) as both:
        refused(sending, MAP, mmap_of(0, PAGE, flags=1), only)
        sending.channel.accepted(MAP, mmap_of(0, PAGE), fds=[both])
        sending.channel.accepted(MAP, mmap_of(PAGE, 2 * PAGE, flags=1, fd_offset=PAGE), fds=[both])
    assert modes(region.address, region.address + 3 * PAGE) == ["r--s", "rw-s", "---p"]
    with pytest.raises(MemoryFault, match="read-only"):
        region.write(PAGE - 1, b"xy")
    region.write(PAGE, b"xy")
    assert (tmp_path / "file").read_bytes()[PAGE - 1 : PAGE + 2] == b"\0xy"


def test_sh21_a_file_that_is_truncated_later_is_a_fault_and_no_signal(sending: Sending, file: OwnedFd) -> None:
    with sparse_file(2 * PAGE) as short:
        sending.channel.accepted(MAP, mmap_of(0, 2 * PAGE, flags=1), fds=[short])
        os.ftruncate(short.fileno(), PAGE)
    region = sending.frontend.shm[0]
    assert region.read(0, PAGE) == bytes(PAGE)
    for access in (lambda: region.read(PAGE, 1), lambda: region.read(0, 2 * PAGE), lambda: region.write(PAGE, b"x")):
        with pytest.raises(MemoryFault):
            access()
    sending.channel.accepted(UNMAP, mmap_of(0, 2 * PAGE))
    sending.channel.accepted(MAP, mmap_of(0, PAGE), fds=[file])


def test_sh24_a_view_wants_a_seal(sending: Sending, file: OwnedFd) -> None:
    with sparse_file(PAGE) as loose:
        sending.channel.accepted(MAP, mmap_of(0, PAGE), fds=[file])
        sending.channel.accepted(MAP, mmap_of(PAGE, 2 * PAGE), fds=[loose])
    region = sending.frontend.shm[0]
    view = region.view(0, PAGE)
    with pytest.raises(MemoryFault, match="not sealed against shrinking"):
        region.view(PAGE, PAGE)
    assert region.view(PAGE, PAGE, unsafe=True)[0] == 0
    sending.channel.accepted(UNMAP, mmap_of(0, PAGE))
    assert bytes(view) == b"\1" * PAGE


def test_sh26_the_quota_is_reached_long_before_the_kernels(sending: Sending, file: OwnedFd) -> None:
    """4,096 mappings; the next is refused; the process can do what it could; unmapping makes room."""
    whole = [
        message(MAP, mmap_of(2 * at * PAGE, (2 * at + 1) * PAGE, shmid=7, fd_offset=at % 2 * PAGE)) for at in range(4096)
    ]
    for each in whole:
        sending.channel.send(each, [file])
    assert len(sending.frontend.shm[7].mappings) == 4096
    refused(sending, MAP, mmap_of(0, PAGE), file)
    threads = [threading.Thread(target=bytearray, args=(64 << 20,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    sending.channel.accepted(UNMAP, mmap_of(0, PAGE, shmid=7))
    sending.channel.accepted(MAP, mmap_of(0, PAGE), fds=[file])


def test_sh30_no_fd_is_kept(sending: Sending, file: OwnedFd) -> None:
    before = usage().fds
    for page in range(PAGES):
        sending.channel.accepted(MAP, mmap_of(page * PAGE, (page + 1) * PAGE), fds=[file])
    assert usage().fds == before


def test_sh33_a_second_unmap_and_one_of_another_region(sending: Sending, file: OwnedFd) -> None:
    sending.channel.accepted(MAP, mmap_of(0, PAGE), fds=[file])
    sending.channel.accepted(MAP, mmap_of(PAGE, 2 * PAGE, shmid=5), fds=[file])
    refused(sending, UNMAP, mmap_of(0, PAGE, shmid=5))
    refused(sending, UNMAP, mmap_of(PAGE, 2 * PAGE))
    sending.channel.accepted(UNMAP, mmap_of(0, PAGE))
    refused(sending, UNMAP, mmap_of(0, PAGE))
    assert len(sending.frontend.shm[5].mappings) == 1


def test_sh35_nothing_else_lands_where_something_was(sending: Sending, file: OwnedFd) -> None:
    region = sending.frontend.shm[7]
    for _ in range(3):
        sending.channel.accepted(MAP, mmap_of(0, PAGES * PAGE, shmid=7), fds=[file])
        sending.channel.accepted(UNMAP, mmap_of(0, PAGES * PAGE, shmid=7))
    held = [bytearray(1 << 20) for _ in range(64)]
    (area,) = areas(region.address, region.address + region.size)
    assert (area.mode, area.end - area.start, len(held)) == ("---p", region.size, 64)


def test_sh45_sixty_four_fds_of_one_file_each_with_its_mode(sending: Sending, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(PAGES * PAGE))
    region = sending.frontend.shm[0]
    for page in range(PAGES):
        for turn in range(4):
            writable = turn == 3 and page % 2
            with OwnedFd(os.open(tmp_path / "file", os.O_RDWR if page % 2 else os.O_RDONLY)) as fd:
                body = mmap_of(page * PAGE, (page + 1) * PAGE, flags=int(bool(writable)), fd_offset=page * PAGE)
                sending.channel.accepted(MAP, body, fds=[fd])
            if turn < 3:
                sending.channel.accepted(UNMAP, body)
    assert modes(region.address, region.address + region.size) == ["r--s", "rw-s"] * (PAGES // 2)
