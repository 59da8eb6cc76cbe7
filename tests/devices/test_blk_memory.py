"""Guest memory that its front-end truncates while a request uses it: the request fails, the process lives (no SIGBUS)."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from vhostuser.devices.blk import BlockDevice
from vhostuser.devices.disk import Disk
from vhostuser.testing import sparse_file
from vhostuser.virtio.block import HEADER, BlockStatus
from vhostuser.virtio.chain import DescriptorChain

from .requests import T, pattern

PAGE = 4096


@pytest.fixture
def gone() -> Iterator[memoryview]:
    """Two pages of mapped memory, of which the second is no longer there."""
    with sparse_file(2 * PAGE) as fd, mmap.mmap(fd.fileno(), 2 * PAGE) as area:
        os.ftruncate(fd.fileno(), PAGE)
        with memoryview(area) as view:
            yield view


@pytest.mark.parametrize("start", [PAGE, 0], ids=["all", "half"])
@pytest.mark.parametrize("kind", [T.IN, T.OUT])
def test_a_buffer_that_is_gone_fails_the_request(tmp_path: Path, gone: memoryview, kind: int, start: int) -> None:
    content = pattern(4 * PAGE)
    (tmp_path / "disk.img").write_bytes(content)
    header, status = memoryview(HEADER.pack(kind, 0, 0)), memoryview(bytearray(b"\xaa"))
    with BlockDevice(Disk(tmp_path / "disk.img")) as device, gone[start:] as buffer:
        readable, writable = ([header, buffer], [status]) if kind == T.OUT else ([header], [buffer, status])
        chain = DescriptorChain(0, readable, writable)
        device.process(0, chain)
        assert (status[0], chain.written) == (BlockStatus.IOERR, 1)
    assert (tmp_path / "disk.img").read_bytes()[PAGE - start :] == content[PAGE - start :]
