"""The window of files themselves, behind a connection: what is mapped, what the guest sees meanwhile, and what it stores."""

from __future__ import annotations

import errno
import fcntl
import os
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from vhostuser import Frontend, MemoryFault, RemoteProtocolError
from vhostuser.devices.fs.dax import direct as module
from vhostuser.devices.fs.dax.copied_file import CopiedFile
from vhostuser.protocol.numbers import FrontendRequest, ProtocolFeature
from vhostuser.protocol.payloads import MemoryRegion, MemoryTable
from vhostuser.shared_memory import MapRequest, SharedMemory
from vhostuser.testing import DEADLINE, raw_frontend, sparse_file
from vhostuser.testing.raw_frontend import PROTOCOL_FEATURES
from vhostuser.transport.channel import OwnedMessage

from .windowed import PAGE, Guest, HostFile, Meanwhile, direct, direct_window_of, served

UNIT = 4 * PAGE
SOON = 0.2
"""Seconds in which another thread does something, unless it has to wait."""
ALIGNMENT = 14
KEY = (1, 1)


class LikeQemu(Frontend):
    """Wants all fds open for writing, as QEMU 11.1 does."""

    def on_shmem_map(self, message: OwnedMessage) -> None:
        if fcntl.fcntl(message.fds[0].fileno(), fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDWR:
            raise RemoteProtocolError("unable to map backing store: Permission denied")
        super().on_shmem_map(message)


class Deaf(Frontend):
    """Maps nothing."""

    def on_shmem_map(self, message: OwnedMessage) -> None:
        raise RemoteProtocolError("no")


def content(units: int, first: int = 1) -> bytes:
    """Units that are all different."""
    return b"".join(bytes([first + at]) * UNIT for at in range(units))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file of two units, a page and a bit."""
    made = tmp_path / "file"
    made.write_bytes(content(2) + b"p" * PAGE + b"tail")
    return made


@pytest.fixture
def file(path: Path) -> HostFile:
    return HostFile(str(path), KEY)


@pytest.fixture
def other(tmp_path: Path) -> HostFile:
    """A file of twelve units."""
    made = tmp_path / "other"
    made.write_bytes(content(12, 101))
    return HostFile(str(made), (1, 2))


@pytest.fixture
def guest() -> Iterator[Guest]:
    with direct_window_of(16, alignment=ALIGNMENT) as made:
        yield made


@pytest.fixture
def reader() -> Iterator[Guest]:
    """A window of a read-only share."""
    with direct_window_of(16, alignment=ALIGNMENT, write=False) as made:
        yield made


def rows(guest: Guest) -> list[tuple[int, int, bool]]:
    """What is mapped where, in pages, and whether for writing."""
    return [(row.shm_offset // PAGE, row.len // PAGE, row.writable) for row in guest.region.mappings]


def test_each_granule_is_a_mapping_and_the_last_one_is_two(guest: Guest, file: HostFile) -> None:
    guest.show(file, 0, 1, pages=4)
    assert rows(guest) == [(4, 4, True), (8, 4, True), (12, 1, True), (13, 3, True), (16, 4, True)]
    assert guest.read(1, 4) == (content(2) + b"p" * PAGE + b"tail").ljust(4 * UNIT, b"\0")


def test_stores_are_in_the_file_at_once_and_those_into_the_tail_by_write_back(
    guest: Guest, file: HostFile, path: Path
) -> None:
    guest.show(file, 0, 0, pages=3, writable=True)
    guest.store(1, b"stored", at=10)
    assert path.read_bytes()[UNIT + 10 :][:6] == b"stored"
    guest.store(2, b"TAIL and more", at=PAGE)
    assert path.read_bytes()[-4:] == b"tail"
    guest.sync(KEY)
    assert path.read_bytes()[-4:] == b"TAIL"
    assert path.stat().st_size == 2 * UNIT + PAGE + 4


@pytest.mark.parametrize("how", ["remove", "end", "replace", "reset", "before", "all"])
def test_stores_into_a_tail_are_not_lost_however_a_mapping_ends(
    guest: Guest, file: HostFile, other: HostFile, path: Path, how: str
) -> None:
    guest.show(file, 2, 3, writable=True)
    guest.store(3, b"kept", at=PAGE)
    window = guest.window
    acts = {
        "remove": lambda: window.remove([(3 * UNIT, UNIT)]),
        "end": window.end,
        "replace": lambda: window.setup(other, foffset=0, size=UNIT, moffset=3 * UNIT, writable=False),
        "reset": window.reset,
        "before": lambda: window.before(KEY),
        "all": window.write_back,
    }
    guest.do(acts[how])
    assert path.read_bytes()[-4:] == b"kept"


RELATIONS = [
    ("before", 1, 2),
    ("meets", 2, 2),
    ("overlaps", 3, 3),
    ("starts", 4, 2),
    ("during", 5, 2),
    ("finishes", 6, 2),
    ("equals", 4, 4),
    ("finished by", 3, 5),
    ("contains", 3, 6),
    ("started by", 4, 6),
    ("overlapped by", 6, 4),
    ("met by", 8, 2),
    ("after", 9, 2),
]


@contextmanager
def watching(guest: Guest, places: dict[int, bytes]) -> Iterator[None]:
    """In the block another thread reads places of the window, which must never be anything else."""
    over, faults = threading.Event(), list[str]()

    def watch() -> None:
        while not faults:
            for at, wanted in places.items():
                try:
                    if guest.read(at) != wanted:
                        faults.append(f"{at} is something else")
                except MemoryFault as error:
                    faults.append(str(error))
            if over.is_set():
                return

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(DEADLINE)
    assert not faults


@pytest.mark.parametrize("setup", [True, False], ids=["setup", "remove"])
@pytest.mark.parametrize(("start", "count"), [row[1:] for row in RELATIONS], ids=[row[0] for row in RELATIONS])
def test_f25_f26_only_the_granules_that_change_are_touched(
    guest: Guest, other: HostFile, start: int, count: int, setup: bool
) -> None:
    """An existing mapping of granules 4 to 8, and one in each of the 13 relations to it that takes its place, or its end."""
    guest.show(other, 0, 4, pages=4)
    shm = guest.device.shm[0]
    changed = range(start, start + count)
    kept = {at: content(1, 101 + at - 4) for at in range(4, 8) if at not in changed}
    gone = 4 - len(kept)
    maps, unmaps = shm.maps, shm.unmaps
    with watching(guest, kept):
        if setup:
            guest.show(other, 6, start, pages=count)
        else:
            guest.remove(start, count)
    assert (shm.maps - maps, shm.unmaps - unmaps) == (count * setup, gone)
    assert all(guest.read(at) == wanted for at, wanted in kept.items())
    if setup:
        assert guest.read(start, count) == content(count, 107)
    assert len(guest.region.mappings) == 4 - gone + count * setup


def test_what_is_there_already_is_not_touched(guest: Guest, other: HostFile) -> None:
    guest.show(other, 0, 4, pages=2)
    maps = guest.device.shm[0].maps
    guest.show(other, 0, 4, pages=3, writable=True)
    guest.store(4, b"now")
    assert guest.device.shm[0].maps == maps + 1
    assert guest.read(4)[:3] == b"now"


def test_f27_what_the_front_end_refuses_leaves_what_was_there(file: HostFile, other: HostFile, path: Path) -> None:
    with direct_window_of(16, alignment=ALIGNMENT, max_maps=3) as guest:
        guest.show(file, 1, 1, pages=2, writable=True)
        guest.store(2, b"tail", at=PAGE)
        before = rows(guest)
        with pytest.raises(OSError, match="refused by the front-end") as caught:
            guest.show(other, 0, 0, pages=4)
        assert caught.value.errno == errno.EIO
        assert rows(guest) == before
        assert guest.read(1) == content(1, 2)
        guest.store(2, b"TAIL", at=PAGE)
        guest.remove(1)
        guest.show(other, 0, 0)
        guest.do(guest.window.end)
        assert (rows(guest), path.read_bytes()[-4:]) == ([], b"TAIL")


def test_more_mappings_than_qemu_takes_are_enospc_until_some_are_gone(
    guest: Guest, file: HostFile, other: HostFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST_MAPPINGS", 4)
    guest.show(other, 0, 0, pages=3)
    with pytest.raises(OSError, match="room once some are removed") as caught:
        guest.show(file, 2, 4)
    assert caught.value.errno == errno.ENOSPC
    assert len(rows(guest)) == 3
    guest.show(file, 2, 0)  # in place of one
    guest.remove(1)
    guest.show(other, 5, 8)
    assert guest.read(8) == content(1, 106)


def test_k5_no_front_end_has_a_page_that_a_truncate_takes(guest: Guest, file: HostFile, path: Path) -> None:
    guest.show(file, 0, 0, pages=3, writable=True)
    size = UNIT + PAGE + 1

    def truncate() -> None:
        with guest.window.shrinking(KEY, size):
            held = [row.fd_offset + row.len for row in guest.device.shm[0].mappings if row.fd_offset != row.shm_offset]
            mapped = [row for row in guest.device.shm[0].mappings if row.shm_offset >= UNIT + PAGE]
            assert not held
            assert [row.shm_offset // PAGE for row in mapped] == [5, 8]
            os.truncate(path, size)
        guest.window.after(KEY, size, size)

    guest.do(truncate)
    assert guest.read(0, 3) == (content(1) + b"\2" * (PAGE + 1)).ljust(3 * UNIT, b"\0")
    guest.store(1, b"end", at=PAGE)
    guest.sync(KEY)
    assert path.read_bytes()[-1:] == b"e"
    guest.truncate(file, 0)
    assert guest.read(0, 3) == bytes(3 * UNIT)


@pytest.mark.parametrize("mapped", [True, False])
def test_k5_a_file_that_is_mapped_or_removed_meanwhile_is_truncated_safely(
    guest: Guest, file: HostFile, path: Path, monkeypatch: pytest.MonkeyPatch, mapped: bool
) -> None:
    """What is mapped between a look whether it is, and the truncate, must not lose pages under the front-end."""
    window, rows = guest.window, guest.device.shm[0]
    if mapped:
        guest.show(file, 0, 0, pages=2)

    def other() -> None:
        if mapped:
            window.remove([(0, 2 * UNIT)])
        else:
            window.setup(file, foffset=0, size=2 * UNIT, moffset=0, writable=False)

    def truncate() -> None:
        monkeypatch.setattr(window, "_lock", Meanwhile(other))
        with window.shrinking(KEY, 0):
            assert sorted(row.shm_offset for row in rows.mappings) == ([] if mapped else [0, UNIT])
            assert all(row.fd_offset == row.shm_offset for row in rows.mappings)
            os.truncate(path, 0)

    guest.do(truncate)


def test_a_write_back_does_not_make_a_file_long_again_that_is_truncated_meanwhile(
    guest: Guest, file: HostFile, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it has found to be written lies behind the end by then; so a truncate waits for it."""
    write, window, cut, size = CopiedFile.write, guest.window, threading.Event(), 2 * UNIT + PAGE + 1

    def truncate() -> None:
        with window.shrinking(KEY, size):
            os.truncate(path, size)
            cut.set()

    thread = threading.Thread(target=truncate)

    def write_late(copied: CopiedFile, data: bytes, offset: int) -> None:
        thread.start()
        cut.wait(SOON)
        write(copied, data, offset)

    guest.show(file, 2, 0, writable=True)
    guest.store(0, b"TAIL", at=PAGE)
    monkeypatch.setattr(CopiedFile, "write", write_late)
    guest.do(lambda: window.write_back(KEY))
    thread.join()
    assert path.stat().st_size == size


def test_a_truncate_that_fails_changes_nothing_that_is_seen(guest: Guest, file: HostFile) -> None:
    guest.show(file, 0, 0, pages=2)

    def fail() -> None:
        with guest.window.shrinking(KEY, 5):
            raise PermissionError(errno.EPERM, "no")

    with pytest.raises(PermissionError):
        guest.do(fail)
    assert guest.read(0, 2) == content(2)
    guest.show(file, 0, 0, pages=2)
    guest.truncate(file, 5)
    assert guest.read(0, 2) == (b"\1" * 5).ljust(2 * UNIT, b"\0")


def test_what_a_file_grows_by_is_seen(guest: Guest, file: HostFile, path: Path) -> None:
    guest.show(file, 2, 0, pages=2, writable=True)
    end = path.stat().st_size

    def append() -> None:
        guest.window.before(KEY)
        with open(path, "ab") as host:
            host.write(b"x" * 2 * UNIT)
        guest.window.after(KEY, end, end + 2 * UNIT)

    guest.do(append)
    assert guest.read(0, 2) == path.read_bytes()[2 * UNIT : 4 * UNIT]
    guest.store(1, b"stored", at=5)
    guest.remove(0, 2)
    assert path.read_bytes()[3 * UNIT + 5 :][:6] == b"stored"
    guest.show(file, 2, 0, pages=2)
    assert rows(guest) == [(0, 4, True), (4, 4, True)]


def test_a_file_that_the_host_truncated_is_unmapped_when_it_is_seen(guest: Guest, file: HostFile, path: Path) -> None:
    guest.show(file, 0, 0, pages=2)
    os.truncate(path, 3)
    with pytest.raises(MemoryFault):
        guest.read(1)
    found = path.stat()
    guest.do(lambda: guest.window.refresh(KEY, found.st_size, found.st_mtime_ns))
    assert guest.read(0, 2) == b"\1\1\1".ljust(2 * UNIT, b"\0")


def test_a_read_only_share_is_mapped_read_only(reader: Guest, file: HostFile) -> None:
    assert [reader.window.serves(writable_file=each) for each in (False, True)] == [True, False]
    reader.show(file, 1, 0, pages=2)
    assert rows(reader) == [(0, 4, False), (4, 1, False), (5, 3, False)]
    with pytest.raises(MemoryFault, match="read-only"):
        reader.store(0, b"x")
    with pytest.raises(OSError, match="read-only share") as caught:
        reader.show(file, 1, 0, writable=True)
    assert caught.value.errno == errno.EROFS


def test_a_front_end_that_wants_fds_open_for_writing_gets_them_or_there_is_no_window(file: HostFile) -> None:
    with direct_window_of(16, alignment=ALIGNMENT, kind=LikeQemu) as guest:
        guest.show(file, 0, 0, pages=3)
        assert guest.read(0, 2) == content(2)
    with served(direct(16, ALIGNMENT, write=False), UNIT, LikeQemu) as guest:
        with pytest.raises(OSError, match="--dax=copy") as caught:
            guest.do(guest.window.begin)
        assert caught.value.errno == errno.EROFS
        assert not guest.window.serves(writable_file=False)
        assert rows(guest) == []


@pytest.mark.parametrize("kind", [Frontend, LikeQemu])
def test_a_file_that_may_not_be_written_is_mapped_read_only_or_copied(
    kind: type[Frontend], other: HostFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = HostFile.open

    def open_for_reading(self: HostFile, flags: int) -> object:
        if flags & os.O_ACCMODE != os.O_RDONLY:
            raise OSError(errno.ETXTBSY, "it runs")
        return plain(self, flags)

    monkeypatch.setattr(HostFile, "open", open_for_reading)
    with direct_window_of(16, alignment=ALIGNMENT, kind=kind) as guest:
        guest.show(other, 3, 0)
        (row,) = guest.region.mappings
        assert (row.len, row.fd_offset, row.writable) == (UNIT, 3 * UNIT if kind is Frontend else 0, False)
        assert guest.read(0) == content(1, 104)
        with pytest.raises(OSError, match="it runs"):
            guest.show(other, 3, 0, writable=True)
        assert guest.read(0) == content(1, 104)


def test_f27_where_the_front_end_maps_nothing_there_is_no_window() -> None:
    with served(direct(16, ALIGNMENT), UNIT, Deaf) as guest:
        with pytest.raises(OSError, match="refused by the front-end") as caught:
            guest.do(guest.window.begin)
        assert caught.value.errno == errno.EIO


def test_a_front_end_that_looks_like_qemu_is_not_mapped_into_unless_that_is_wanted() -> None:
    inband = PROTOCOL_FEATURES | 1 << ProtocolFeature.INBAND_NOTIFICATIONS
    for unsafe in (False, True):
        device = direct(16, ALIGNMENT, unsafe=unsafe)
        with raw_frontend(device) as raw:
            raw.start(protocol=inband).close()
            wanted = "Errno 5" if unsafe else r"looks like QEMU 11\.1, .*--dax-unsafe-peer"
            with pytest.raises(OSError, match=wanted) as caught:
                device.window.begin()
            assert caught.value.errno == (errno.EIO if unsafe else errno.ENODEV)
        device.window.close()


def test_f30_a_file_that_was_unlinked_is_mapped_still_and_closed_with_its_last_mapping(
    guest: Guest, file: HostFile, path: Path
) -> None:
    before = len(os.listdir("/proc/self/fd"))
    guest.show(file, 0, 0, pages=3)
    path.unlink()
    assert guest.read(0, 2) == content(2)
    guest.remove(0)
    guest.remove(1)
    assert len(os.listdir("/proc/self/fd")) == before + 2
    guest.remove(0, pages=16)
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_session_that_ends_leaves_nothing_mapped(guest: Guest, file: HostFile) -> None:
    before = len(os.listdir("/proc/self/fd"))
    guest.show(file, 0, 0, pages=3)
    guest.do(guest.window.end)
    guest.do(guest.window.begin)
    assert rows(guest) == []
    assert len(os.listdir("/proc/self/fd")) == before
    guest.show(file, 0, 0)


def test_a_mapping_that_the_front_end_tells_of_as_memory_is_waited_for() -> None:
    """QEMU does so after its answer, when the mapping is there for all of the guest's processors."""
    device = direct(16, ALIGNMENT)
    with raw_frontend(device) as raw, sparse_file(4 * PAGE) as file:
        raw.start()
        shm, row = device.shm[0], MapRequest(file, UNIT, 2 * PAGE, PAGE)
        assert not shm.await_export([row], 0)
        found = list[bool]()
        waiting = threading.Thread(target=lambda: found.append(shm.await_export([row], DEADLINE)))
        waiting.start()
        table = MemoryTable([MemoryRegion(0, 1 << 20, 0, 0), MemoryRegion(1 << 30, 2 * PAGE, 1 << 30, PAGE)])
        with sparse_file(1 << 20) as ram:
            raw.accepted(FrontendRequest.SET_MEM_TABLE, table, fds=[ram, file])
        waiting.join(DEADLINE)
        assert found == [True]
        assert not shm.await_export([row._replace(fd_offset=0)], 0)
        raw.share_memory()
        assert not shm.await_export([row], 0)
    device.window.close()


def test_a_front_end_that_tells_no_more_is_not_waited_for_again(other: HostFile, monkeypatch: pytest.MonkeyPatch) -> None:
    """QEMU's table is full with eight regions."""
    tells, asked = [True, True, False], list[list[int]]()

    def await_export(shm: SharedMemory, requests: Iterable[MapRequest], timeout: float) -> bool:
        asked.append([row.shm_offset // UNIT for row in requests])
        assert 0 < timeout < DEADLINE
        return tells.pop(0)

    monkeypatch.setattr(SharedMemory, "await_export", await_export)
    with direct_window_of(16, alignment=ALIGNMENT) as guest:
        for at in range(1, 5):
            guest.show(other, at, at)
        assert asked == [[0], [1], [2]]
        assert guest.read(1, 4) == content(4, 102)
