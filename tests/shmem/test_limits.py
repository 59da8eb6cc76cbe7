"""Regions at their limits: none at all, holes under views, want of fds, and what follows a mapping."""

from __future__ import annotations

import ctypes
import os
import resource
import select
import signal
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.memory_map import areas
from vhostuser import MemoryFault
from vhostuser.memory import mapping
from vhostuser.protocol.framing import Frame
from vhostuser.protocol.numbers import BackendRequest, FrontendRequest
from vhostuser.protocol.payloads import U64, Mmap
from vhostuser.testing import RawBackend, memory_file, message, sparse_file
from vhostuser.transport.fds import OwnedFd

from .conftest import PAGE, Sending

Q, B = FrontendRequest, BackendRequest
ACK = 5
KEEP_SIZE, PUNCH_HOLE = 1, 2


@pytest.mark.parametrize("sizes", [{}, {3: PAGE}], ids=["none", "another"])
@pytest.mark.parametrize("shmid", [0, 1, 255])
def test_sh11_where_no_region_is_none_is_mapped(sizes: dict[int, int], shmid: int) -> None:
    """A region of no size is one that is not there ("GET_SHMEM_CONFIG")."""
    with RawBackend(shared_memory=sizes) as raw, raw.frontend() as frontend, sparse_file(PAGE) as file:
        assert sorted(frontend.shm) == sorted(sizes)
        for request, fds in ((B.SHMEM_MAP, [file]), (B.SHMEM_UNMAP, [])):
            raw.channel.refused(request, Mmap(shmid, 0, 0, PAGE), fds=fds)
        assert (frontend.counters.maps, frontend.counters.refused) == (0, 2)


def test_sh24_a_hole_under_a_view_is_zeros(sending: Sending) -> None:
    """A seal against shrinking leaves that to whoever has the file; it is no fault."""
    with memory_file(2, fill=b"\1" * 2 * PAGE) as file:
        sending.channel.accepted(B.SHMEM_MAP, Mmap(0, 0, 0, 2 * PAGE), fds=[file])
        region = sending.frontend.shm[0]
        view = region.view(0, 2 * PAGE)
        with pytest.raises(PermissionError):
            os.ftruncate(file.fileno(), PAGE)
        punched = ctypes.CDLL(None, use_errno=True).fallocate(
            file.fileno(), KEEP_SIZE | PUNCH_HOLE, ctypes.c_long(PAGE), ctypes.c_long(PAGE)
        )
    assert punched == 0
    assert bytes(view) == b"\1" * PAGE + bytes(PAGE)
    assert region.read(0, 2 * PAGE) == b"\1" * PAGE + bytes(PAGE)


def test_sh25_a_handler_for_sigbus_is_left_alone(sending: Sending) -> None:
    """The program's handler stays, and is never called: not even where the file is gone."""
    called: list[int] = []
    before = signal.signal(signal.SIGBUS, lambda number, frame: called.append(number))
    try:
        mine = signal.getsignal(signal.SIGBUS)
        with sparse_file(2 * PAGE) as file:
            sending.channel.accepted(B.SHMEM_MAP, Mmap(0, 0, 0, 2 * PAGE, 1), fds=[file])
            os.ftruncate(file.fileno(), 0)
            for act in (lambda: sending.frontend.shm[0].read(PAGE, 8), lambda: sending.frontend.shm[0].write(PAGE, b"x")):
                with pytest.raises(MemoryFault):
                    act()
        assert signal.getsignal(signal.SIGBUS) is mine
        assert called == []
    finally:
        signal.signal(signal.SIGBUS, before)


@contextmanager
def no_fds() -> Iterator[None]:
    """In the block this process can open nothing more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    filler: list[int] = []
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(int(name) for name in os.listdir("/proc/self/fd")) + 1, hard))
        with pytest.raises(OSError, match="Too many open files"):
            filler += iter(lambda: os.dup(0), -1)
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for fd in filler:
            os.close(fd)


def test_sh28_once_there_are_fds_the_next_connection_maps() -> None:
    with sparse_file(PAGE) as file:
        with RawBackend() as raw, raw.frontend() as frontend:
            with no_fds():
                raw.channel.request(B.SHMEM_MAP, Mmap(0, 0, 0, PAGE), fds=[file], flags=9)
                assert raw.channel.receive_or_end() is None
            assert frontend.request(Q.GET_STATUS) == U64(0)
        with RawBackend() as raw, raw.frontend() as frontend:
            raw.channel.accepted(B.SHMEM_MAP, Mmap(0, 0, 0, PAGE), fds=[file])
            assert len(frontend.shm[0].mappings) == 1


def test_sh35_a_thousand_mappings_of_others_land_elsewhere(sending: Sending) -> None:
    region = sending.frontend.shm[0]
    with memory_file(16) as file:
        for _ in range(2):
            sending.channel.accepted(B.SHMEM_MAP, Mmap(0, 0, 0, 16 * PAGE), fds=[file])
            sending.channel.accepted(B.SHMEM_UNMAP, Mmap(0, 0, 0, 16 * PAGE))
    others = [mapping.reserve(PAGE) for _ in range(1000)]
    try:
        assert not [at for at in others if region.address <= at < region.address + region.size]
        (area,) = areas(region.address, region.address + region.size)
        assert area.mode == "---p"
    finally:
        for at in others:
            mapping.release(at, PAGE)


@pytest.mark.parametrize("maps", [1, 64])
def test_sh41_a_mapping_is_acknowledged_before_the_memory_that_follows(maps: int) -> None:
    """A program that shares memory because of a mapping: when the back-end sees the table, it has had its answers."""
    with RawBackend() as raw, raw.frontend() as frontend, sparse_file(PAGE) as file:
        channel, seen = raw.channel, list[int]()
        channel.pump = None

        def table(frame: Frame[OwnedFd]) -> bytes:
            while select.select([channel.socket], [], [], 0)[0]:
                answer = channel.receive()
                seen.append(U64.unpack(answer.payload).value)
            return message(frame.request, U64(0), flags=ACK)

        raw.raw_answers[Q.SET_MEM_TABLE] = table
        for at in range(maps):
            channel.request(B.SHMEM_MAP, Mmap(0, 0, at * PAGE, PAGE), fds=[file], flags=9)
        while len(frontend.shm[0].mappings) < maps:
            frontend.serve(0.01)
        frontend.share_memory(1 << 20)
        assert seen == [0] * maps
