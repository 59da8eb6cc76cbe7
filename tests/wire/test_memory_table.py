"""SET_MEM_TABLE with one thing wrong: refused, the table of before is kept, every fd is closed."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator

import pytest

from tests.relations import BASE, OVERLAPPING, RELATIONS
from vhostuser.protocol.numbers import FrontendRequest
from vhostuser.protocol.payloads import U64, MemoryRegion, MemoryTable, VringAddr, VringState
from vhostuser.testing import ServedRawFrontend, raw_frontend, sparse_file, usage
from vhostuser.transport.fds import OwnedFd

from .devices import Scripted

Q = FrontendRequest
PAGE = 4096
MIB = 1 << 20
TOP = 1 << 64


@pytest.fixture
def device() -> Scripted:
    return Scripted()


@pytest.fixture
def raw(device: Scripted) -> Iterator[ServedRawFrontend]:
    """Negotiated; one region of 1 MiB at guest and user address 0 is shared, and a ring in it will start."""
    with raw_frontend(device) as raw:
        raw.negotiate()
        raw.share_memory()
        yield raw


def regions(*rows: tuple[int, int, int, int]) -> MemoryTable:
    return MemoryTable([MemoryRegion(*row) for row in rows])


def refused(raw: ServedRawFrontend, body: MemoryTable | bytes, fds: list[OwnedFd]) -> None:
    """It is refused, nothing is kept of it, and the table of before still carries a ring."""
    raw.alive()
    before = usage()
    raw.refused(Q.SET_MEM_TABLE, body, fds=fds)
    raw.alive()
    assert usage() == before
    device = raw.served.device
    assert isinstance(device, Scripted)
    raw.set_up_queue()
    assert device.ready.wait(10)


@pytest.mark.parametrize("count", [0, 9, 255, 0xFFFFFFFF])
def test_m01_a_number_of_regions_that_can_not_be(raw: ServedRawFrontend, count: int) -> None:
    with sparse_file(MIB) as file:
        body = struct.pack("=II", count, 0) + MemoryRegion(0, MIB, 0, 0).pack() * min(count, 9)
        refused(raw, body, [file] * min(count, 9))


@pytest.mark.parametrize("size", [0, 8, 39, 41, 72, 296])
def test_m01_a_size_that_is_not_that_of_the_regions(raw: ServedRawFrontend, size: int) -> None:
    with sparse_file(MIB) as file:
        body = regions((0, MIB, 0, 0)).pack()
        refused(raw, (body + bytes(size))[:size], [file])


@pytest.mark.parametrize("count", [0, 1, 3, 8])
def test_m02_another_number_of_fds_than_regions(raw: ServedRawFrontend, count: int) -> None:
    with sparse_file(MIB) as file:
        refused(raw, regions((0, PAGE, 0, 0), (MIB, PAGE, MIB, 0)), [file] * count)


@pytest.mark.parametrize("relation", RELATIONS)
def test_m03_regions_that_share_guest_addresses(raw: ServedRawFrontend, relation: str) -> None:
    (start, end), (first, last) = BASE, RELATIONS[relation]
    body = regions((start, end - start, 0, 0), (first, last - first, 1 << 32, 0))
    with sparse_file(MIB) as file:
        if relation in OVERLAPPING:
            refused(raw, body, [file, file])
        else:
            raw.accepted(Q.SET_MEM_TABLE, body, fds=[file, file])


@pytest.mark.parametrize(
    "row",
    [
        (0, 0, 0, 0),
        (TOP - PAGE, 2 * PAGE, 0, 0),
        (0, 2 * PAGE, TOP - PAGE, 0),
        (0, 2 * PAGE, 0, TOP - PAGE),
        (0, TOP - 1, 0, 0),
        (TOP - 1, TOP - 1, 0, 0),
        (0, PAGE, 0, 1 << 63),
    ],
)
def test_m05_a_region_that_is_empty_or_wraps(raw: ServedRawFrontend, row: tuple[int, int, int, int]) -> None:
    with sparse_file(MIB) as file:
        refused(raw, regions(row), [file])


@pytest.mark.parametrize(("size", "offset"), [(MIB + PAGE, 0), (MIB, PAGE), (PAGE, MIB), (1 << 40, 0)])
def test_m06_a_region_that_its_file_is_too_short_for(raw: ServedRawFrontend, size: int, offset: int) -> None:
    with sparse_file(MIB) as file:
        refused(raw, regions((0, size, 0, offset)), [file])


@pytest.mark.parametrize("offset", [0, 1, 512, PAGE - 16, PAGE + 16])
def test_m07_an_offset_that_is_no_page_gives_the_right_bytes(device: Scripted, raw: ServedRawFrontend, offset: int) -> None:
    """The rings lie in a region whose bytes begin at any place of the file: the device finds the request there."""
    with sparse_file(MIB + 2 * PAGE) as file:
        raw.accepted(Q.SET_MEM_TABLE, regions((0, MIB, 0, offset)), fds=[file])
        raw.set_up_queue()
        assert device.ready.wait(10)
        call = raw.eventfd()
        raw.accepted(Q.SET_VRING_CALL, U64(0), fds=[call])
        number = file.fileno()
        os.pwrite(number, b"ping", offset + 0x8000)
        os.pwrite(number, struct.pack("<QIHH", 0x8000, 4, 1, 1) + struct.pack("<QIHH", 0x9000, 4, 2, 0), offset)
        os.pwrite(number, struct.pack("<HHH", 0, 1, 0), offset + 256)
        assert raw.kick is not None
        os.eventfd_write(raw.kick.fileno(), 1)
        os.set_blocking(call.fileno(), True)
        assert os.eventfd_read(call.fileno()) == 1
        assert os.pread(number, 4, offset + 0x9000) == b"ping"


@pytest.mark.parametrize("kind", ["pipe", "eventfd", "directory", "O_PATH", "O_WRONLY", "null", "proc", "socket"])
def test_m09_an_fd_that_is_no_memory(raw: ServedRawFrontend, kind: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    file = tmp_path_factory.mktemp("m09") / "file"
    file.write_bytes(bytes(MIB))
    ends = socket.socketpair()
    pipe = os.pipe2(os.O_CLOEXEC)
    openers = {
        "pipe": lambda: os.dup(pipe[0]),
        "eventfd": lambda: os.eventfd(0),
        "directory": lambda: os.open(file.parent, os.O_RDONLY),
        "O_PATH": lambda: os.open(file, os.O_PATH),
        "O_WRONLY": lambda: os.open(file, os.O_WRONLY),
        "null": lambda: os.open("/dev/null", os.O_RDWR),
        "proc": lambda: os.open("/proc/self/status", os.O_RDONLY),
        "socket": lambda: os.dup(ends[0].fileno()),
    }
    with ends[0], ends[1], OwnedFd(pipe[0]), OwnedFd(pipe[1]), OwnedFd(openers[kind]()) as fd:
        refused(raw, regions((0, PAGE, 0, 0)), [fd])


@pytest.mark.parametrize("row", [(0, PAGE, 0, 0), (TOP - PAGE, PAGE, 0, 0), (0, PAGE, TOP - PAGE, 0)])
def test_m16_the_first_and_the_last_page_of_the_address_space(
    raw: ServedRawFrontend, row: tuple[int, int, int, int]
) -> None:
    with sparse_file(MIB) as file:
        raw.accepted(Q.SET_MEM_TABLE, regions(row), fds=[file])
        raw.alive()


@pytest.mark.parametrize(
    ("descriptor", "used", "available"),
    [
        (MIB, 0x484, 0x400),
        (0, MIB - 128, 0x400),  # 4 + 8 * 16 + 2 bytes are wanted
        (0, 0x484, MIB - 32),
        (MIB - 240, 0x484, 0x400),
        (TOP - 16, 0x484, 0x400),
        (0, TOP - 4, 0x400),
        (0, 0x484, TOP - 2),
    ],
)
def test_m17_a_ring_that_is_not_in_memory(raw: ServedRawFrontend, descriptor: int, used: int, available: int) -> None:
    raw.accepted(Q.SET_VRING_NUM, VringState(0, 16))
    status = raw.status(Q.SET_VRING_ADDR, VringAddr(0, 0, descriptor, used, available, 0))
    status = status or raw.status(Q.SET_VRING_KICK, U64(0), fds=[raw.eventfd()])
    assert status or raw.status(Q.SET_VRING_ENABLE, VringState(0, 1))
    raw.alive()
    raw.reply(Q.GET_VRING_BASE, VringState(0, 0))
    raw.set_up_queue()
    device = raw.served.device
    assert isinstance(device, Scripted)
    assert device.ready.wait(10)
