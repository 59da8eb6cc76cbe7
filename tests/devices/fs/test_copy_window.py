"""The window of copies, behind a connection: what the guest sees, and what becomes of what it stores."""

from __future__ import annotations

import errno
import os
import resource
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from vhostuser.devices.fs.dax.copy import CopyWindow
from vhostuser.testing import DEADLINE

from .windowed import PAGE, Guest, HostFile, window_of


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file of four pages and a bit."""
    made = tmp_path / "file"
    made.write_bytes(b"".join(bytes([65 + at]) * PAGE for at in range(4)) + b"tail")
    return made


@pytest.fixture
def file(path: Path) -> HostFile:
    return HostFile(str(path), (1, 1))


@pytest.fixture
def guest() -> Iterator[Guest]:
    with window_of() as made:
        yield made


@pytest.fixture
def reader() -> Iterator[Guest]:
    """A window that nobody may store into."""
    with window_of(write=False) as made:
        yield made


def test_the_window_is_mapped_once(guest: Guest, file: HostFile) -> None:
    guest.show(file, 0, 0)
    guest.do(guest.window.begin)
    guest.do(guest.window.end)
    guest.do(guest.window.begin)
    assert [(row.shm_offset, row.len, row.writable) for row in guest.region.mappings] == [(0, 16 * PAGE, True)]
    assert guest.device.shm[0].maps == 1


def test_a_file_is_shown_with_zeroes_behind_its_end(guest: Guest, file: HostFile) -> None:
    guest.show(file, 3, 2, pages=4)
    assert guest.read(2, 4) == b"D" * PAGE + b"tail".ljust(PAGE, b"\0") + bytes(2 * PAGE)


def test_nothing_of_what_was_there_before_is_left_behind_the_end(guest: Guest, file: HostFile) -> None:
    guest.show(file, 0, 2, pages=4)
    guest.show(file, 4, 2, pages=3)
    assert guest.read(2, 4) == b"tail".ljust(3 * PAGE, b"\0") + b"D" * PAGE


def test_stores_get_to_the_file_by_write_back(guest: Guest, file: HostFile, path: Path) -> None:
    guest.show(file, 0, 1, pages=5, writable=True)
    guest.store(2, b"stored", at=10)
    guest.store(5, b"Tail", at=0)
    before = path.read_bytes()
    assert before.count(b"stored") == 0
    guest.sync((1, 1))
    wanted = bytearray(before)
    wanted[PAGE + 10 : PAGE + 16] = b"stored"
    wanted[4 * PAGE :] = b"Tail"
    assert path.read_bytes() == bytes(wanted)


@pytest.mark.parametrize("how", ["remove", "end", "replace", "reset", "before", "all"])
def test_stores_are_not_lost_however_a_mapping_ends(guest: Guest, file: HostFile, path: Path, how: str) -> None:
    guest.show(file, 0, 1, pages=4, writable=True)
    guest.store(3, b"kept")
    window = guest.window
    acts = {
        "remove": lambda: window.remove([(3 * PAGE, PAGE)]),
        "end": window.end,
        "replace": lambda: window.setup(file, foffset=0, size=PAGE, moffset=3 * PAGE, writable=False),
        "reset": window.reset,
        "before": lambda: window.before((1, 1)),
        "all": window.write_back,
    }
    guest.do(acts[how])
    assert path.read_bytes()[2 * PAGE : 2 * PAGE + 4] == b"kept"


def test_what_others_wrote_to_pages_that_the_guest_left_alone_stays(guest: Guest, file: HostFile, path: Path) -> None:
    guest.show(file, 0, 0, pages=4, writable=True)
    guest.store(1, b"guest")
    with open(path, "r+b") as host:
        host.seek(2 * PAGE)
        host.write(b"host")
    guest.sync((1, 1))
    found = path.read_bytes()
    assert (found[PAGE : PAGE + 5], found[2 * PAGE : 2 * PAGE + 4]) == (b"guest", b"host")


def test_a_file_never_grows_by_stores(guest: Guest, file: HostFile, path: Path) -> None:
    guest.show(file, 4, 0, pages=2, writable=True)
    guest.store(0, b"x" * PAGE)
    guest.store(1, b"y" * PAGE)
    guest.sync()
    assert path.stat().st_size == 4 * PAGE + 4
    assert path.read_bytes()[4 * PAGE :] == b"xxxx"


def test_growth_shows_zeroes_whatever_was_stored_behind_the_end(guest: Guest, file: HostFile, path: Path) -> None:
    guest.show(file, 4, 0, pages=2, writable=True)
    guest.store(0, b"x" * PAGE)
    guest.do(lambda: guest.window.before((1, 1)))
    with open(path, "r+b") as host:
        host.seek(4 * PAGE + 100)
        host.write(b"end")
    guest.do(lambda: guest.window.after((1, 1), 4 * PAGE + 100, 4 * PAGE + 103))
    wanted = (b"xxxx" + bytes(96) + b"end").ljust(PAGE, b"\0")
    assert guest.read(0) == wanted
    guest.sync()
    assert path.read_bytes()[4 * PAGE :] == wanted[:103]


def test_a_truncate_shows_zeroes_behind_the_new_end(guest: Guest, file: HostFile, path: Path) -> None:
    guest.show(file, 0, 0, pages=4, writable=True)
    guest.truncate(file, PAGE + 1)
    assert guest.read(0, 4) == b"A" * PAGE + b"B" + bytes(3 * PAGE - 1)


def test_a_file_that_was_changed_on_the_host_is_read_again(guest: Guest, file: HostFile, path: Path) -> None:
    guest.show(file, 0, 0, pages=2, writable=True)
    guest.show(file, 2, 4, pages=2)
    guest.store(1, b"guest")
    with open(path, "r+b") as host:
        host.write(b"first")
        host.seek(2 * PAGE)
        host.write(b"third")
    os.utime(path, (1, 1))
    found = path.stat()
    guest.do(lambda: guest.window.refresh((1, 1), found.st_size, found.st_mtime_ns))
    assert [guest.read(at)[:5] for at in (0, 1, 4)] == [b"first", b"guest", b"third"]
    guest.do(lambda: guest.window.refresh((1, 1), found.st_size, found.st_mtime_ns))
    guest.do(lambda: guest.window.refresh((9, 9), 0, 0))


def test_what_the_host_changed_is_seen_also_after_stores_were_written_back(guest: Guest, file: HostFile, path: Path) -> None:
    guest.show(file, 0, 0, pages=3, writable=True)
    with open(path, "r+b") as host:
        host.write(b"host")
    os.utime(path, (1, 1))
    guest.store(1, b"guest")
    guest.sync((1, 1))
    found = path.stat()
    guest.do(lambda: guest.window.refresh((1, 1), found.st_size, found.st_mtime_ns))
    assert [guest.read(at)[:5] for at in (0, 1)] == [b"hostA", b"guest"]


def test_what_the_host_changed_is_seen_also_after_a_write_of_the_guest(guest: Guest, file: HostFile, path: Path) -> None:
    guest.show(file, 0, 0, pages=3)
    with open(path, "r+b") as host:
        host.write(b"host")
        os.utime(path, (1, 1))
        guest.do(lambda: guest.window.before((1, 1)))
        host.seek(PAGE)
        host.write(b"guest")
    guest.do(lambda: guest.window.after((1, 1), PAGE, PAGE + 5))
    assert [guest.read(at)[:5] for at in (0, 1)] == [b"AAAAA", b"guest"]
    found = path.stat()
    guest.do(lambda: guest.window.refresh((1, 1), found.st_size, found.st_mtime_ns))
    assert [guest.read(at)[:5] for at in (0, 1)] == [b"hostA", b"guest"]


def test_our_own_changes_are_no_reason_to_read_a_file_again(
    guest: Guest, file: HostFile, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unwanted(*arguments: object) -> bytes:
        raise OSError("read again")

    guest.show(file, 0, 0, pages=3, writable=True)
    guest.store(1, b"guest")
    guest.sync((1, 1))
    guest.do(lambda: guest.window.before((1, 1)))
    with open(path, "r+b") as host:
        host.write(b"written")
    guest.do(lambda: guest.window.after((1, 1), 0, 7))
    found = path.stat()
    monkeypatch.setattr("vhostuser.devices.fs.dax.copied_file.CopiedFile.read", unwanted)
    guest.do(lambda: guest.window.refresh((1, 1), found.st_size, found.st_mtime_ns))
    assert guest.read(0)[:7] == b"written"


def test_nothing_is_written_back_while_a_file_is_made_shorter(guest: Guest, file: HostFile, path: Path) -> None:
    """Else a write that was begun before it would make the file long again."""
    guest.show(file, 0, 0, pages=4, writable=True)
    guest.store(3, b"stored")
    written = threading.Event()

    def write_back() -> None:
        guest.window.write_back((1, 1))
        written.set()

    writer = threading.Thread(target=write_back)
    with guest.window.shrinking((1, 1), PAGE):
        writer.start()
        assert not written.wait(0.05)
        os.truncate(path, PAGE)
    writer.join(DEADLINE)
    assert written.is_set()
    assert path.stat().st_size == PAGE
    with guest.window.shrinking((9, 9), 0):
        pass


def test_what_is_stored_elsewhere_is_not_written_before_a_read(guest: Guest, file: HostFile, path: Path) -> None:
    """To look for it takes long where much is mapped."""
    guest.show(file, 0, 0, pages=4, writable=True)
    for at in range(4):
        guest.store(at, b"stored")
    guest.do(lambda: guest.window.before((1, 1), PAGE + 3, 2 * PAGE + 1))
    assert [path.read_bytes()[at * PAGE :][:6] for at in range(4)] == [b"AAAAAA", b"stored", b"stored", b"DDDDDD"]
    guest.sync()
    assert [path.read_bytes()[at * PAGE :][:6] for at in range(4)] == [b"stored"] * 4


def test_stores_elsewhere_outlive_a_write_that_makes_the_file_longer(guest: Guest, file: HostFile, path: Path) -> None:
    """Also if somebody else has made it longer before."""
    guest.show(file, 0, 0, pages=2)
    with open(path, "ab") as host:
        host.write(bytes(PAGE))
    found = path.stat()
    guest.show(file, 0, 4, pages=6, writable=True)
    guest.do(lambda: guest.window.refresh((1, 1), found.st_size, found.st_mtime_ns))
    guest.store(8, b"stored", at=100)
    write(guest, path, 6 * PAGE, b"end")
    assert guest.read(8)[100:106] == b"stored"
    guest.sync()
    assert path.read_bytes()[4 * PAGE + 100 :][:6] == b"stored"


def test_what_the_guest_stores_where_it_made_a_file_longer_is_kept(guest: Guest, file: HostFile, path: Path) -> None:
    """Also if somebody else has changed the file before, and nobody has looked at it since."""
    guest.show(file, 0, 0, pages=8, writable=True)
    os.utime(path, (1, 1))
    write(guest, path, 6 * PAGE, b"end")
    guest.store(5, b"stored")
    guest.sync()
    assert path.read_bytes()[5 * PAGE :][:6] == b"stored"
    guest.store(5, b"again!")
    found = path.stat()
    guest.do(lambda: guest.window.refresh((1, 1), found.st_size, found.st_mtime_ns))
    assert guest.read(5)[:6] == b"again!"
    assert path.read_bytes()[5 * PAGE :][:6] == b"again!"


def test_what_others_append_is_the_guests_once_it_looks(guest: Guest, file: HostFile, path: Path) -> None:
    """Also if its own change hid from us that the file was changed."""
    guest.show(file, 0, 0, pages=8, writable=True)
    guest.do(lambda: guest.window.before((1, 1), 0, 0))
    with open(path, "r+b") as host:
        host.write(b"guest")
        host.seek(6 * PAGE)
        host.write(b"host")
    guest.do(lambda: guest.window.after((1, 1), 0, 5))
    found = path.stat()
    guest.do(lambda: guest.window.refresh((1, 1), found.st_size, found.st_mtime_ns))
    guest.store(5, b"stored")
    guest.sync()
    assert path.read_bytes()[5 * PAGE :][:6] == b"stored"


def test_what_others_append_is_not_the_guests_before_it_looks(guest: Guest, file: HostFile, path: Path) -> None:
    """Not even after a change of its own: what it stored there before is nothing."""
    guest.show(file, 0, 0, pages=8, writable=True)
    guest.store(5, b"nothing")
    with open(path, "r+b") as host:
        host.seek(5 * PAGE)
        host.write(b"host...")
    write(guest, path, 0, b"guest")
    guest.sync()
    assert path.read_bytes()[5 * PAGE :] == b"host..."
    assert path.read_bytes()[:5] == b"guest"


def test_memory_is_given_back_with_the_session(guest: Guest, file: HostFile) -> None:
    guest.show(file, 0, 0, pages=4, writable=True)
    assert isinstance(guest.window, CopyWindow)
    memory = guest.window.memory.fileno()
    assert os.fstat(memory).st_blocks * 512 >= 4 * PAGE
    guest.do(guest.window.end)
    assert os.fstat(memory).st_blocks == 0
    assert guest.read(0, 4) == bytes(4 * PAGE)


def test_two_mappings_of_the_same_bytes_agree_once_they_are_written_back(guest: Guest, file: HostFile, path: Path) -> None:
    guest.show(file, 1, 0, writable=True)
    guest.show(file, 1, 5, writable=True)
    guest.store(0, b"one")
    guest.store(5, b"two", at=10)
    guest.sync()
    wanted = b"one" + b"B" * 7 + b"two"
    assert [guest.read(at)[:13] for at in (0, 5)] == [wanted, wanted]
    assert path.read_bytes()[PAGE : PAGE + 13] == wanted


def test_f27_where_the_front_end_says_no_there_is_no_window(path: Path) -> None:
    with window_of(write=False) as guest:
        guest.do(guest.window.reset)
        with pytest.raises(OSError, match="SHMEM_MAP") as caught:
            guest.do(guest.window.begin)  # it overlaps the mapping that is there
        assert caught.value.errno == errno.ENODEV


def test_a_window_without_write_takes_no_stores(reader: Guest, file: HostFile) -> None:
    assert [reader.window.serves(writable_file=each) for each in (False, True)] == [True, False]
    reader.show(file, 0, 0)
    with pytest.raises(OSError, match="--dax-write") as caught:
        reader.show(file, 0, 0, writable=True)
    assert caught.value.errno == errno.EROFS
    assert reader.read(0) == b"A" * PAGE


def test_a_mapping_becomes_writable_where_it_is(guest: Guest, file: HostFile, path: Path) -> None:
    guest.show(file, 0, 0, pages=2)
    guest.show(file, 0, 0, pages=2, writable=True)
    guest.store(1, b"now")
    guest.show(file, 0, 0, pages=2, writable=True)
    assert guest.read(1)[:3] == b"now"
    guest.sync()
    assert path.read_bytes()[PAGE : PAGE + 3] == b"now"


def test_f35_a_write_back_that_fails_is_told_once_and_the_page_stays(guest: Guest, file: HostFile, path: Path) -> None:
    guest.show(file, 0, 0, writable=True)
    guest.store(0, b"stored")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        guest.do(lambda: guest.window.before((1, 1)))
        with pytest.raises(OSError, match=os.strerror(errno.EFBIG)):
            guest.sync((1, 1))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    guest.sync((1, 1))
    assert path.read_bytes()[:6] == b"stored"


def test_a_file_that_can_not_be_opened_leaves_no_trace(guest: Guest, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        guest.show(HostFile(str(tmp_path / "none"), (2, 2)), 0, 0)
    assert guest.read(0) == bytes(PAGE)


def test_f30_a_file_that_was_unlinked_is_mapped_still(guest: Guest, file: HostFile, path: Path) -> None:
    guest.show(file, 0, 0)
    path.unlink()
    assert guest.read(0) == b"A" * PAGE
    guest.remove(0)


def test_a_file_is_closed_with_its_last_mapping(guest: Guest, file: HostFile) -> None:
    before = len(os.listdir("/proc/self/fd"))
    guest.show(file, 0, 0, pages=4, writable=True)
    guest.show(file, 0, 8, pages=2)
    guest.remove(1, pages=2)
    assert len(os.listdir("/proc/self/fd")) == before + 1
    guest.remove(0, pages=16)
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_front_end_that_goes_on_with_the_window_after_a_reset_keeps_what_was_there(guest: Guest, file: HostFile) -> None:
    """As QEMU does once its back-end is gone; and what another guest is shown is not for its eyes."""
    guest.show(file, 0, 1)
    guest.do(guest.window.reset)
    assert guest.read(1) == b"A" * PAGE
    guest.do(lambda: guest.device.shm[0].unmap(shm_offset=0, len=16 * PAGE))
    guest.do(guest.window.begin)
    guest.show(file, 1, 2)
    assert guest.read(1, 2) == bytes(PAGE) + b"B" * PAGE


def write(guest: Guest, path: Path, offset: int, data: bytes) -> None:
    """A WRITE of the guest."""
    guest.do(lambda: guest.window.before((1, 1), offset, offset))
    with open(path, "r+b") as host:
        host.seek(offset)
        host.write(data)
    guest.do(lambda: guest.window.after((1, 1), offset, offset + len(data)))
