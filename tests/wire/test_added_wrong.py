"""M05, M07, M09: ADD_MEM_REG with what SET_MEM_TABLE would not take either, and with what it would."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from vhostuser.memory.mapping import map_file
from vhostuser.protocol.numbers import FrontendRequest, ProtocolFeature, mask
from vhostuser.protocol.payloads import SingleRegion
from vhostuser.testing import MockDriver, ServedRawFrontend, raw_frontend, sparse_file, usage
from vhostuser.testing.raw_frontend import PROTOCOL_FEATURES
from vhostuser.transport.fds import OwnedFd

from .devices import Scripted

Q, F = FrontendRequest, ProtocolFeature
PAGE = 4096
MIB = 1 << 20
TOP = 1 << 64
FAR = 1 << 40


@pytest.fixture
def raw() -> Iterator[ServedRawFrontend]:
    """Memory slots are negotiated; no memory is shared."""
    with raw_frontend(Scripted(regions={})) as raw:
        raw.negotiate(protocol=PROTOCOL_FEATURES | mask((F.CONFIGURE_MEM_SLOTS,)))
        yield raw


def refused(raw: ServedRawFrontend, body: SingleRegion, fd: OwnedFd) -> None:
    """It is refused, nothing is kept of it, and a right one is still taken."""
    with sparse_file(MIB, seal=True) as good:
        raw.alive()
        before = usage()
        raw.refused(Q.ADD_MEM_REG, body, fds=[fd])
        raw.alive()
        assert usage() == before
        raw.accepted(Q.ADD_MEM_REG, SingleRegion(0, MIB, 0, 0), fds=[good])
        ring = MockDriver(raw, map_file(good.fileno(), MIB, 0))
        assert ring.exchange([(0x8000, 4)], [(0x9000, 4)]) == 4


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
        (0, MIB + PAGE, 0, 0),
        (0, PAGE, 0, MIB),
    ],
)
def test_m05_an_added_region_that_is_empty_or_wraps(raw: ServedRawFrontend, row: tuple[int, int, int, int]) -> None:
    with sparse_file(MIB) as file:
        refused(raw, SingleRegion(*row), file)


@pytest.mark.parametrize("kind", ["pipe", "eventfd", "directory", "O_PATH", "O_WRONLY", "null", "proc", "socket"])
def test_m09_an_added_region_of_an_fd_that_is_no_memory(raw: ServedRawFrontend, kind: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(MIB))
    with ExitStack() as stack:
        ends = [stack.enter_context(end) for end in socket.socketpair()]
        pipe = [stack.enter_context(OwnedFd(fd)) for fd in os.pipe2(os.O_CLOEXEC)]
        openers: dict[str, Callable[[], int]] = {
            "pipe": lambda: os.dup(pipe[0].fileno()),
            "eventfd": lambda: os.eventfd(0),
            "directory": lambda: os.open(tmp_path, os.O_RDONLY),
            "O_PATH": lambda: os.open(tmp_path / "file", os.O_PATH),
            "O_WRONLY": lambda: os.open(tmp_path / "file", os.O_WRONLY),
            "null": lambda: os.open("/dev/null", os.O_RDWR),
            "proc": lambda: os.open("/proc/self/status", os.O_RDONLY),
            "socket": lambda: os.dup(ends[0].fileno()),
        }
        refused(raw, SingleRegion(FAR, PAGE, FAR, 0), stack.enter_context(OwnedFd(openers[kind]())))


@pytest.mark.parametrize("offset", [0, 1, 512, PAGE - 16, PAGE + 16])
def test_m07_an_added_region_that_begins_anywhere_shows_the_right_bytes(raw: ServedRawFrontend, offset: int) -> None:
    with sparse_file(MIB, seal=True) as rings, sparse_file(MIB) as file:
        raw.accepted(Q.ADD_MEM_REG, SingleRegion(0, MIB, 0, 0), fds=[rings])
        raw.accepted(Q.ADD_MEM_REG, SingleRegion(FAR, 2 * PAGE, FAR, offset), fds=[file])
        ring = MockDriver(raw, map_file(rings.fileno(), MIB, 0))
        for at in (0, 7, 2 * PAGE - 4):
            os.pwrite(file.fileno(), b"ping", offset + at)
            assert ring.exchange([(FAR + at, 4)], [(FAR + PAGE, 4)]) == 4
            assert os.pread(file.fileno(), 4, offset + PAGE) == b"ping"
