"""Bytes between a file and many buffers."""

from __future__ import annotations

import errno

import pytest

from vhostuser.devices.vectors import MOST_BUFFERS, read_into, write_from
from vhostuser.testing import memory_file
from vhostuser.virtio.chain import cut

COUNT = 2 * MOST_BUFFERS + 3
DATA = bytes(at * 7 % 251 for at in range(3 * COUNT))


def pieces(data: bytearray | bytes, size: int) -> list[memoryview]:
    return [memoryview(data)[at : at + size] for at in range(0, len(data), size)]


def test_more_buffers_than_one_system_call_takes() -> None:
    filled = bytearray(len(DATA))
    with memory_file(4) as fd:
        write_from(fd.fileno(), pieces(DATA, 3), len(DATA), 100)
        read_into(fd.fileno(), pieces(filled, 3), len(DATA), 100)
    assert filled == DATA


def test_empty_buffers_are_passed_over() -> None:
    filled = bytearray(6)
    views = pieces(filled, 3)
    with memory_file(1, fill=b"abcdef") as fd:
        read_into(fd.fileno(), [views[0][:0], views[0], views[0][:0], views[1], views[1][:0]], 6, 0)
        read_into(fd.fileno(), [views[0][:0]], 0, 1 << 40)
    assert filled == b"abcdef"


def test_a_file_that_ends_is_an_error() -> None:
    with memory_file(1) as fd, pytest.raises(OSError, match="the file ends at 0x1000") as caught:
        read_into(fd.fileno(), pieces(bytearray(8), 4), 8, 4092)
    assert caught.value.errno == errno.EIO


@pytest.mark.parametrize(("start", "size"), [(0, 6), (0, 3), (2, 2), (3, 3), (5, 1), (6, 1), (0, 0), (1, 100)])
def test_a_cut_has_these_bytes_and_no_empty_piece(start: int, size: int) -> None:
    found = cut([memoryview(b"abc"), memoryview(b""), memoryview(b"def")], start, size)
    assert b"".join(found) == b"abcdef"[start : start + size]
    assert all(view.nbytes for view in found)
