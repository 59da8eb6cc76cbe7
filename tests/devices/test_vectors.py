"""Bytes between a file and the buffers of a request, whichever ring it came from."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence

import pytest

from tests.virtio_rig import BUFFERS, RIGS, Rig
from vhostuser.devices import vectors
from vhostuser.devices.vectors import MOST_BUFFERS, append_from, read_into, write_from
from vhostuser.testing import memory_file
from vhostuser.virtio.chain import DescriptorChain, cut

PAGE = 4096
COUNT = 2 * MOST_BUFFERS + 3
DATA = bytes(at * 7 % 251 for at in range(3 * COUNT))
SIZES = (3, 1, 5, 7)
SPANS = [(0, 16), (0, 3), (2, 2), (3, 13), (5, 1), (16, 1), (17, 4), (0, 0), (1, 100), (1 << 40, 1)]


@pytest.fixture(params=RIGS)
def rig(request: pytest.FixtureRequest) -> Rig:
    return RIGS[request.param](16)


def taken(rig: Rig, readable: Sequence[int], writable: Sequence[int]) -> DescriptorChain:
    """A request with buffers of these sizes, one after another; each offset has a byte of its own."""
    rig.buffers[: len(DATA)] = DATA
    starts = [BUFFERS + sum((*readable, *writable)[:at]) for at in range(len(readable) + len(writable))]
    buffers = list(zip(starts, (*readable, *writable), strict=True))
    rig.driver.add(buffers[: len(readable)], buffers[len(readable) :])
    chain = rig.device.pop()
    assert chain is not None
    return chain


@pytest.mark.parametrize("looked_at", [False, True])
@pytest.mark.parametrize(("start", "size"), SPANS)
def test_a_part_of_the_writable_bytes_is_filled(rig: Rig, start: int, size: int, looked_at: bool) -> None:
    chain, there = taken(rig, [2], SIZES), max(0, min(size, 16 - start))
    expected = bytearray(DATA[2:18])
    expected[start : start + there] = b"ABCDEFGHIJKLMNOP"[:there]
    if looked_at:
        assert chain.writable
    with memory_file(1, fill=b"....ABCDEFGHIJKLMNOP") as fd:
        assert read_into(chain, fd.fileno(), 4, start=start, size=size) == there
    assert b"".join(chain.writable) == expected
    assert (chain.written, chain.read()) == (0, DATA[:2])


@pytest.mark.parametrize("looked_at", [False, True])
@pytest.mark.parametrize(("start", "size"), SPANS)
def test_a_part_of_the_readable_bytes_is_written(rig: Rig, start: int, size: int, looked_at: bool) -> None:
    chain, there = taken(rig, SIZES, [2]), max(0, min(size, 16 - start))
    if looked_at:
        assert chain.readable
    with memory_file(1, fill=b"") as fd:
        assert write_from(chain, fd.fileno(), 4, start=start, size=size) == there
        assert os.pread(fd.fileno(), 22, 0) == (bytes(4) + DATA[start : start + there]).ljust(22, b"\0")


@pytest.mark.parametrize(("start", "size"), SPANS)
def test_a_part_of_the_readable_bytes_is_appended(rig: Rig, start: int, size: int) -> None:
    chain, there = taken(rig, SIZES, [2]), max(0, min(size, 16 - start))
    with memory_file(1, fill=b"") as fd:
        assert append_from(chain, fd.fileno(), start=start, size=size) == there
        assert os.pread(fd.fileno(), PAGE + 22, PAGE) == DATA[start : start + there]
        assert os.lseek(fd.fileno(), 0, os.SEEK_CUR) == 0


def test_a_file_that_ends_gives_fewer_bytes(rig: Rig) -> None:
    chain = taken(rig, [], SIZES)
    with memory_file(1, fill=b"") as fd:
        assert read_into(chain, fd.fileno(), PAGE - 10, start=2, size=14) == 10
        assert read_into(chain, fd.fileno(), PAGE, start=2, size=14) == 0


@pytest.mark.parametrize(("call", "number"), [(read_into, errno.EBADF), (write_from, errno.EBADF)])
def test_an_error_is_the_system_calls(rig: Rig, call: Callable[..., int], number: int) -> None:
    chain = taken(rig, [4], [4])
    with pytest.raises(OSError, match=os.strerror(number)) as caught:
        call(chain, -1, 0, start=0, size=4)
    assert caught.value.errno == number


def views(data: bytearray | bytes, size: int) -> list[memoryview]:
    return [memoryview(data)[at : at + size] for at in range(0, len(data), size)]


def test_more_buffers_than_one_system_call_takes() -> None:
    filled = bytearray(len(DATA))
    with memory_file(4) as fd:
        assert write_from(DescriptorChain(0, views(DATA, 3), []), fd.fileno(), 100, start=0, size=len(DATA)) == len(DATA)
        chain = DescriptorChain(0, [], views(filled, 3))
        assert read_into(chain, fd.fileno(), 100, start=0, size=len(DATA)) == len(DATA)
    assert filled == DATA


def test_more_buffers_than_one_system_call_takes_are_appended() -> None:
    with memory_file(1, fill=b"") as fd:
        assert append_from(DescriptorChain(0, views(DATA, 3), []), fd.fileno(), start=0, size=len(DATA)) == len(DATA)
        assert os.pread(fd.fileno(), 2 * len(DATA), PAGE) == DATA


@pytest.mark.parametrize(("number", "fails"), [(errno.ENOSPC, False), (errno.EFAULT, True)])
def test_an_error_after_a_part_is_for_the_next_call_unless_memory_is_gone(number: int, fails: bool) -> None:
    """Else who reads a file would take missing memory for its end."""
    calls: list[int] = []

    def call(fd: int, views: Sequence[memoryview], offset: int) -> int:
        calls.append(offset)
        if len(calls) == 1:
            return 4
        raise OSError(number, os.strerror(number))

    if fails:
        with pytest.raises(OSError, match=os.strerror(number)):
            vectors.move(call, 0, views(DATA[:9], 3), 100)
    else:
        assert vectors.move(call, 0, views(DATA[:9], 3), 100) == 4
    assert calls == [100, 104]


@pytest.mark.parametrize(("start", "size"), [(0, 6), (0, 3), (2, 2), (3, 3), (5, 1), (6, 1), (0, 0), (1, 100)])
def test_a_cut_has_these_bytes_and_no_empty_piece(start: int, size: int) -> None:
    found = cut([memoryview(b"abc"), memoryview(b""), memoryview(b"def")], start, size)
    assert b"".join(found) == b"abcdef"[start : start + size]
    assert all(view.nbytes for view in found)
