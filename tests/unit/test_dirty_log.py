"""The bits of the dirty log: one a page, at any byte, set beside others that set theirs."""

from __future__ import annotations

import os
import threading

import pytest

from vhostuser.errors import MemoryFault, RemoteProtocolError
from vhostuser.memory.dirty_log import DirtyLog, log_size
from vhostuser.memory.guest import GuestMemory
from vhostuser.protocol.payloads import Log, MemoryRegion
from vhostuser.testing import memory_file, read_only, sparse_file

PAGE = 4096


def test_a_log_that_is_read_only_is_refused() -> None:
    with sparse_file(PAGE) as log, read_only(log) as read, pytest.raises(RemoteProtocolError, match="can't be mapped"):
        DirtyLog(Log(PAGE, 0), read.fileno(), 0)


@pytest.mark.parametrize(("end", "size"), [(0, 0), (1, 1), (8 * PAGE, 1), (8 * PAGE + 1, 2), (1 << 64, 1 << 49)])
def test_a_log_has_a_bit_for_each_page(end: int, size: int) -> None:
    assert log_size(end) == size


def test_bits_are_set_at_any_byte_and_past_the_end_is_a_fault() -> None:
    with sparse_file(2 * PAGE) as file:
        log = DirtyLog(Log(11, 3), file.fileno(), 88 * PAGE)
        for page in (0, 7, 8, 39, 87):
            log.mark(page * PAGE + 5, 1)
        assert os.pread(file.fileno(), 16, 0) == bytes.fromhex("000000 81 01 00 00 80 00 00 00 00 00 80 0000")
        with pytest.raises(MemoryFault, match="page 0x58 of guest memory has no bit"):
            log.mark(88 * PAGE - 1, 2)


def test_no_bit_is_lost_to_others_that_set_theirs() -> None:
    """Two back-ends share a log: bits of one word, set by both at once."""
    with sparse_file(PAGE) as file:
        logs = [DirtyLog(Log(PAGE, 0), file.fileno(), 8 * 512 * PAGE) for _ in range(2)]
        ready = threading.Barrier(2)

        def work(which: int) -> None:
            ready.wait()
            for page in range(which, 8 * 512, 2):
                logs[which].mark(page * PAGE, 1)

        threads = [threading.Thread(target=work, args=(which,)) for which in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert os.pread(file.fileno(), 512, 0) == b"\xff" * 512


@pytest.mark.parametrize("seal", [True, False])
def test_views_are_marked_where_the_guest_sees_them(seal: bool) -> None:
    """Of a mapping or of a copy, in a table of several regions, which the kernel mapped in any order."""
    with memory_file(8, seal=seal) as first, memory_file(8) as second, sparse_file(PAGE) as file:
        rows = [MemoryRegion(64 * PAGE, 8 * PAGE, 0, 0), MemoryRegion(8 * PAGE, 4 * PAGE, 1 << 20, 4 * PAGE - 1)]
        memory = GuestMemory.of(rows, [first.fileno(), second.fileno()])
        log = DirtyLog(Log(9, 0), file.fileno(), memory.end)
        log.mark_views(memory, [*memory.slices(72 * PAGE - 1, 1), *memory.slices(10 * PAGE - 1, 2)])
        assert os.pread(file.fileno(), 10, 0) == bytes.fromhex("00 06 000000000000 80 00")


def test_a_log_that_is_too_small_or_passes_its_file_is_refused() -> None:
    with sparse_file(PAGE) as file:
        for body, end, why in ((Log(8, 0), 65 * PAGE, "needs, 0x9"), (Log(8, PAGE - 7), 0, "passes the file's end 0x1000")):
            with pytest.raises(RemoteProtocolError, match=why):
                DirtyLog(body, file.fileno(), end)
