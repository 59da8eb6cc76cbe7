"""The dirty log at its limits: which pages a range marks, where the log may lie in its file, and when it is gone."""

from __future__ import annotations

import os

import pytest

from vhostuser.errors import MemoryFault, RemoteProtocolError
from vhostuser.memory.dirty_log import DirtyLog, log_size
from vhostuser.protocol.payloads import Log
from vhostuser.testing import sparse_file

PAGE = 4096
PAGES = 24


def test_a_range_marks_the_pages_that_it_touches_and_no_others() -> None:
    for first in (0, 1, 7, 8, 9, 15, 16):
        for count in (1, 2, 3, 8):
            for start, end in ((0, 0), (1, 0), (PAGE - 1, 0), (0, -1), (PAGE - 1, 1 - PAGE)):
                size = count * PAGE + end - start
                if size <= 0:
                    continue
                with sparse_file(PAGE) as file:
                    DirtyLog(Log(3, 0), file.fileno(), PAGES * PAGE).mark(first * PAGE + start, size)
                    seen = int.from_bytes(os.pread(file.fileno(), 3, 0), "little")
                touched = range(first, min(first + count, PAGES))
                assert seen == sum(1 << page for page in touched), (first, count, start, end)


@pytest.mark.parametrize("offset", [0, 1, 2, 3, 4, 5, 7, PAGE - 2, PAGE - 1, PAGE, PAGE + 1, 2 * PAGE - 4])
def test_a_log_lies_at_any_byte_of_its_file(offset: int) -> None:
    """A bit is set in an aligned word: what lies beside the log in it stays as it is."""
    with sparse_file(3 * PAGE) as file:
        for page in range(PAGES):
            os.pwrite(file.fileno(), b"\xa5" * (3 * PAGE), 0)
            os.pwrite(file.fileno(), bytes(3), offset)
            DirtyLog(Log(3, offset), file.fileno(), PAGES * PAGE).mark(page * PAGE, 1)
            whole = bytearray(b"\xa5" * (3 * PAGE))
            whole[offset : offset + 3] = (1 << page).to_bytes(3, "little")
            assert os.pread(file.fileno(), 3 * PAGE, 0) == whole


def test_a_page_without_a_bit_is_a_fault_and_those_before_it_are_marked() -> None:
    with sparse_file(PAGE) as file:
        log = DirtyLog(Log(2, 0), file.fileno(), 16 * PAGE)
        assert log.size == 2
        for page in (16, 17, 23, 24, 1 << 40):
            with pytest.raises(
                MemoryFault, match=f"page {page:#x} of guest memory has no bit in the dirty log of 0x2 bytes"
            ):
                log.mark(page * PAGE, 1)
        with pytest.raises(MemoryFault, match="page 0x10 of"):
            log.mark(15 * PAGE, 2 * PAGE)
        assert os.pread(file.fileno(), 4, 0) == b"\x00\x80\x00\x00"


@pytest.mark.parametrize("pages", [1, 7, 8, 9, 16, 17])
def test_a_log_has_room_for_all_pages_or_is_refused(pages: int) -> None:
    needed = -(-pages // 8)
    assert log_size(pages * PAGE) == log_size(pages * PAGE - PAGE + 1) == needed
    with sparse_file(PAGE) as file:
        DirtyLog(Log(needed, 0), file.fileno(), pages * PAGE)
        with pytest.raises(RemoteProtocolError, match=f"needs, {needed:#x}") as caught:
            DirtyLog(Log(needed - 1, 0), file.fileno(), pages * PAGE)
    assert (caught.value.request, caught.value.field) == ("SET_LOG_BASE", "mmap_size")
    assert (caught.value.value, caught.value.limit) == (needed - 1, needed)


@pytest.mark.parametrize(("size", "offset"), [(1, 0), (PAGE, 0), (1, PAGE - 1), (PAGE - 5, 5)])
def test_a_log_may_end_with_its_file_and_no_later(size: int, offset: int) -> None:
    with sparse_file(PAGE) as file:
        DirtyLog(Log(size, offset), file.fileno(), 0).mark((8 * size - 1) * PAGE, 1)
        assert os.pread(file.fileno(), PAGE, 0)[offset + size - 1] == 0x80
        for body in (Log(size + PAGE - size - offset + 1, offset), Log(size, PAGE - size + 1), Log(size, 1 << 63)):
            with pytest.raises(RemoteProtocolError, match="passes the file's end 0x1000") as caught:
                DirtyLog(body, file.fileno(), 0)
            assert (caught.value.value, caught.value.limit) == (body.mmap_size, PAGE)


def test_an_empty_log_is_refused_wherever_it_lies() -> None:
    with sparse_file(PAGE) as file:
        for offset in (0, PAGE):
            with pytest.raises(RemoteProtocolError, match="is empty or passes"):
                DirtyLog(Log(0, offset), file.fileno(), 0)


def test_a_log_whose_pages_are_gone_is_a_fault_at_the_byte_that_was_wanted() -> None:
    with sparse_file(2 * PAGE) as file:
        log = DirtyLog(Log(2 * PAGE, 0), file.fileno(), 0)
        os.ftruncate(file.fileno(), PAGE)
        log.mark((8 * PAGE - 1) * PAGE, 1)
        with pytest.raises(MemoryFault, match="the dirty log at 0x1005 can't be written: Bad address"):
            log.mark((8 * PAGE + 47) * PAGE, 1)
        assert os.pread(file.fileno(), PAGE, 0) == bytes(PAGE - 1) + b"\x80"
