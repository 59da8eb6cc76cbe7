"""A share works in guest memory that may shrink, and outlives its end."""

from __future__ import annotations

import os

import pytest

from vhostuser.devices.fs.device import FuseDevice
from vhostuser.devices.fs.options import ShareOptions
from vhostuser.fuse import structs as s
from vhostuser.fuse.numbers import Opcode
from vhostuser.memory.mapping import map_file
from vhostuser.protocol.numbers import FrontendRequest as Q
from vhostuser.protocol.payloads import MemoryRegion, MemoryTable, VringState
from vhostuser.testing import memory_file, raw_frontend
from vhostuser.testing.mock_driver import MockDriver
from vhostuser.testing.raw_frontend import RawFrontend
from vhostuser.transport.fds import OwnedFd

from .standin import BODIES, Answer, StandIn, answer, request

PAGE = 4096
PAGES = 64
ROOM = 32 * PAGE
"""Where answers go."""


def ring_in(raw: RawFrontend, file: OwnedFd) -> MockDriver:
    """Share the file, with a ring in its first page."""
    raw.accepted(Q.SET_MEM_TABLE, MemoryTable([MemoryRegion(0, PAGES * PAGE, 0, 0)]), fds=[file])
    return MockDriver(raw, map_file(file.fileno(), PAGE, 0), index=1)


def ask(ring: MockDriver, file: OwnedFd, opcode: Opcode, body: bytes, room: int) -> Answer:
    """A request cut within its arguments and its data; the answer is cut within its header and its data."""
    data = request(opcode, body)
    os.pwrite(file.fileno(), data, PAGE)
    parts = [(PAGE, 50), (PAGE + 50, len(data) - 50)]
    written = ring.exchange(parts, [(ROOM, 7), (ROOM + 7, 100), (ROOM + 107, room - 107)])
    return answer(os.pread(file.fileno(), written, ROOM), 2)


def test_bytes_are_moved_in_memory_that_may_shrink(share: StandIn, content: bytes) -> None:
    with FuseDevice(share, ShareOptions()) as device, raw_frontend(device) as raw:
        raw.negotiate()
        with memory_file(PAGES, seal=False) as file:
            ring = ring_in(raw, file)
            assert ask(ring, file, Opcode.INIT, BODIES[Opcode.INIT], 200).error == 0
            got = ask(ring, file, Opcode.READ, s.ReadIn(0, 100, 10000).pack(), 16 + 10000)
            assert got == Answer(0, content[100:10100])
            data = os.urandom(5000)
            got = ask(ring, file, Opcode.WRITE, s.WriteIn(0, 100, 5000).pack() + data, 200)
            assert got == Answer(0, s.WriteOut(5000).pack())
            assert os.pread(share.fd, 5200, 0) == content[:100] + data + content[5100:5200]
            raw.reply(Q.GET_VRING_BASE, VringState(1, 0))


@pytest.mark.parametrize("workers", [0, 1])
def test_memory_that_is_gone_ends_the_queue_and_neither_share_nor_worker(
    share: StandIn, content: bytes, workers: int
) -> None:
    with FuseDevice(share, ShareOptions(thread_pool_size=workers)) as device, raw_frontend(device) as raw:
        raw.negotiate()
        with memory_file(PAGES, seal=False) as file:
            ring = ring_in(raw, file)
            assert ask(ring, file, Opcode.INIT, BODIES[Opcode.INIT], 200).error == 0
            os.pwrite(file.fileno(), request(Opcode.READ, s.ReadIn(0, 0, PAGE).pack()), PAGE)
            ring.driver.add([(PAGE, 80)], [(ROOM, 16 + PAGE)])
            os.ftruncate(file.fileno(), 2 * PAGE)
            ring.kick()
            ring.broken()
            raw.reply(Q.GET_VRING_BASE, VringState(1, 0))
        with memory_file(PAGES, seal=False) as file:
            ring = ring_in(raw, file)
            assert ask(ring, file, Opcode.INIT, BODIES[Opcode.INIT], 200).error == 0
            got = ask(ring, file, Opcode.READ, s.ReadIn(0, 0, PAGE).pack(), 16 + PAGE)
            assert got == Answer(0, content[:PAGE])
            raw.reply(Q.GET_VRING_BASE, VringState(1, 0))
