"""What each request of a block device does to its file, to guest memory and to the status ("Device Operation")."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

import pytest

from tests.devices.conftest import SECTORS
from vhostuser.devices.blk import MAX_DISCARD, MAX_SEGMENTS, MAX_ZEROES
from vhostuser.devices.disk import Disk
from vhostuser.testing import memory_file
from vhostuser.virtio import chain
from vhostuser.virtio.block import HEADER, BlockStatus

from .requests import SECTOR, UNTOUCHED, Answer, BlkRig, T, failed, pattern, rig_of, segments

OK, IOERR, UNSUPP = BlockStatus.OK, BlockStatus.IOERR, BlockStatus.UNSUPP
TOP = 1 << 64
F_ADD_SEALS, F_SEAL_WRITE = 1033, 8


@pytest.mark.parametrize(("sector", "count"), [(0, 1), (5, 8), (0, SECTORS), (SECTORS - 1, 1)])
def test_in_gives_the_sectors_of_the_file(rig: BlkRig, content: bytes, sector: int, count: int) -> None:
    assert rig.read(sector, count) == content[sector * SECTOR : (sector + count) * SECTOR]


@pytest.mark.parametrize(("sector", "count"), [(0, 1), (5, 8), (0, SECTORS), (SECTORS - 1, 1)])
def test_out_changes_these_sectors_and_no_others(rig: BlkRig, image: Path, content: bytes, sector: int, count: int) -> None:
    data = pattern(count * SECTOR, seed=7)
    assert rig.ask(T.OUT, sector, data) == Answer(OK, 1, b"")
    start, end = sector * SECTOR, (sector + count) * SECTOR
    assert image.read_bytes() == content[:start] + data + content[end:]


@pytest.mark.parametrize("kind", [T.IN, T.OUT])
@pytest.mark.parametrize("sector", [0, SECTORS])
def test_no_sectors_at_all_are_fine(rig: BlkRig, kind: int, sector: int) -> None:
    assert rig.ask(kind, sector) == Answer(OK, 1, b"")


@pytest.mark.parametrize("kind", [T.IN, T.OUT])
@pytest.mark.parametrize(
    ("sector", "size"),
    [
        (SECTORS, 512),
        (SECTORS - 1, 1024),
        (TOP - 1, 512),
        (TOP - 1, 1024),
        (1 << 55, 512),
        (SECTORS + 1, 0),
        (0, 511),
        (0, 513),
    ],
)
def test_what_is_outside_the_disk_or_no_whole_sector_fails(
    rig: BlkRig, image: Path, content: bytes, kind: int, sector: int, size: int
) -> None:
    answer = rig.ask(kind, sector, bytes(size) if kind == T.OUT else b"", size if kind == T.IN else 0)
    failed(answer, IOERR)
    assert set(answer.data) <= {UNTOUCHED}
    assert image.read_bytes() == content


@pytest.mark.parametrize("kind", [2, 3, 5, 10, 14, 15, 16, 26, 0x80000000, 0xFFFFFFFF])
def test_an_unknown_type_is_unsupported(rig: BlkRig, image: Path, content: bytes, kind: int) -> None:
    failed(rig.ask(kind, 0, bytes(512)), UNSUPP)
    failed(rig.ask(kind, 0, room=512), UNSUPP)
    assert image.read_bytes() == content


@pytest.mark.parametrize("room", [0, 7, 19, 20, 64])
def test_get_id_gives_the_name_of_the_file(image: Path, room: int) -> None:
    with rig_of(image) as rig:
        answer = rig.ask(T.GET_ID, room=room)
    name = image.name.encode()[:20].ljust(20, b"\0")[:room]
    assert answer == Answer(OK, len(name) + 1, name + bytes([UNTOUCHED]) * (room - len(name)))


@pytest.mark.parametrize(
    ("name", "shown"), [("a-name-that-has-more-than-20-bytes", b"a-name-that-has-more"), ("größe", b"gr??e")]
)
def test_an_id_is_20_bytes_of_ascii(tmp_path: Path, name: str, shown: bytes) -> None:
    (tmp_path / name).write_bytes(bytes(512))
    with rig_of(tmp_path / name) as rig:
        assert rig.ask(T.GET_ID, room=20).data == shown.ljust(20, b"\0")


# The form of a request


@pytest.mark.parametrize("size", [1, 15])
def test_q19_a_short_header_fails(rig: BlkRig, size: int) -> None:
    failed(rig.send(HEADER.pack(T.FLUSH, 0, 0)[:size], 1), IOERR)
    failed(rig.send(b"", 1), IOERR)


def test_q19_without_room_for_the_status_nothing_is_done_and_nothing_written(
    rig: BlkRig, image: Path, content: bytes
) -> None:
    assert rig.send(HEADER.pack(T.OUT, 0, 0) + bytes(512), 0) == Answer(-1, 0, b"")
    assert image.read_bytes() == content


@pytest.mark.parametrize("at", [0, (1 << 17) - 9, (1 << 17) - 300, (1 << 17) - 16 - 512])
@pytest.mark.parametrize(
    "cuts",
    [(16,), range(17), range(0, 16 + 1024, 7), (1, 2, 3, 18, 19, 500), ()],
    ids=["whole", "bytes", "sevens", "odd", "one"],
)
def test_q21_how_a_write_is_cut_makes_no_difference(
    rig: BlkRig, image: Path, content: bytes, cuts: range | tuple[int, ...], at: int
) -> None:
    data = pattern(1024, seed=3)
    answer = rig.send(HEADER.pack(T.OUT, 0, 4) + data, 1, cuts=tuple(cuts), at=at)
    assert answer == Answer(OK, 1, b"")
    assert image.read_bytes() == content[:2048] + data + content[3072:]


@pytest.mark.parametrize("at", [0, (1 << 17) - 9, (1 << 17) - 16 - 1024])
@pytest.mark.parametrize(
    "cuts",
    [(1024,), (1023,), range(0, 1025, 5), (1, 2, 3, 511, 1022, 1023, 1024), ()],
    ids=["whole", "tail", "fives", "odd", "one"],
)
def test_q21_how_a_read_is_cut_makes_no_difference(
    rig: BlkRig, content: bytes, cuts: range | tuple[int, ...], at: int
) -> None:
    answer = rig.send(HEADER.pack(T.IN, 0, 4), 1025, cuts=range(17), writable_cuts=tuple(cuts), at=at)
    assert answer == Answer(OK, 1025, content[2048:3072])


@pytest.mark.parametrize("step", [1, 100, 511, 512, 700])
def test_a_system_call_that_does_a_part_is_continued(
    rig: BlkRig, image: Path, content: bytes, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    preadv, pwritev = os.preadv, os.pwritev
    monkeypatch.setattr(os, "preadv", lambda fd, views, offset: preadv(fd, chain.cut(views, 0, step), offset))
    monkeypatch.setattr(os, "pwritev", lambda fd, views, offset: pwritev(fd, chain.cut(views, 0, step), offset))
    answer = rig.send(HEADER.pack(T.IN, 0, 2), 1025, writable_cuts=(10, 600))
    assert answer == Answer(OK, 1025, content[1024:2048])
    data = pattern(1024, seed=9)
    assert rig.send(HEADER.pack(T.OUT, 0, 2) + data, 1, cuts=(16, 30, 700)).status == OK
    assert image.read_bytes() == content[:1024] + data + content[2048:]


# Discard and write zeroes


def test_discard_frees_the_space_and_keeps_the_size(tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(pattern(1 << 20))
    before = path.stat()
    with rig_of(path) as rig:
        assert rig.ask(T.DISCARD, 0, segments((0, 1024, 0), (1536, 512, 0))) == Answer(OK, 1, b"")
        assert rig.read(1024, 128) == pattern(1 << 20)[1 << 19 :][: 128 * SECTOR]
    after = path.stat()
    assert (after.st_size, after.st_blocks) == (before.st_size, before.st_blocks - 1536)


@pytest.mark.parametrize("unmap", [0, 1])
@pytest.mark.parametrize(("sector", "count"), [(0, SECTORS), (3, 9), (8, 8), (SECTORS - 1, 1), (5, 0)])
def test_write_zeroes_makes_these_sectors_zero_and_no_others(
    rig: BlkRig, image: Path, content: bytes, sector: int, count: int, unmap: int
) -> None:
    assert rig.ask(T.WRITE_ZEROES, 0, segments((sector, count, unmap))) == Answer(OK, 1, b"")
    start, end = sector * SECTOR, (sector + count) * SECTOR
    assert image.read_bytes() == content[:start] + bytes(end - start) + content[end:]


@pytest.mark.parametrize(("unmap", "allocated"), [(0, True), (1, False)])
def test_write_zeroes_deallocates_only_if_it_may(tmp_path: Path, unmap: int, allocated: bool) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(pattern(1 << 20))
    with rig_of(path) as rig:
        assert rig.ask(T.WRITE_ZEROES, 0, segments((0, 2048, unmap))).status == OK
    assert path.read_bytes() == bytes(1 << 20)
    assert (path.stat().st_blocks >= 2048) == allocated


def test_where_nothing_can_be_deallocated_zeroes_are_written_and_a_discard_does_nothing(
    rig: BlkRig, image: Path, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Disk, "_allocate", lambda *_: False)
    assert rig.ask(T.DISCARD, 0, segments((0, 8, 0))).status == OK
    assert image.read_bytes() == content
    assert rig.ask(T.WRITE_ZEROES, 0, segments((1, 9, 1))).status == OK
    assert image.read_bytes() == content[:512] + bytes(9 * 512) + content[5120:]


@pytest.mark.parametrize("kind", [T.DISCARD, T.WRITE_ZEROES])
@pytest.mark.parametrize(
    "row",
    [
        (SECTORS, 1, 0),
        (SECTORS - 1, 2, 0),
        (TOP - 1, 1, 0),
        (TOP - 1, (1 << 32) - 1, 0),
        (0, (1 << 32) - 1, 0),
        (TOP - 8, 8, 0),
    ],
)
def test_a_range_outside_the_disk_fails_before_anything_is_done(
    rig: BlkRig, image: Path, content: bytes, kind: int, row: tuple[int, int, int]
) -> None:
    rows = ((0, 8, 0), row) if kind == T.DISCARD else (row,)
    failed(rig.ask(kind, 0, segments(*rows)), IOERR)
    assert image.read_bytes() == content


@pytest.mark.parametrize(
    ("kind", "flags"), [(T.DISCARD, 1), (T.DISCARD, 2), (T.WRITE_ZEROES, 2), (T.WRITE_ZEROES, 1 << 31 | 1)]
)
def test_flags_that_are_not_for_it_are_unsupported(rig: BlkRig, image: Path, content: bytes, kind: int, flags: int) -> None:
    failed(rig.ask(kind, 0, segments((0, 8, flags))), UNSUPP)
    if kind == T.DISCARD:
        failed(rig.ask(kind, 0, segments((0, 8, 0), (8, 8, flags))), UNSUPP)
    assert image.read_bytes() == content


@pytest.mark.parametrize("kind", [T.DISCARD, T.WRITE_ZEROES])
@pytest.mark.parametrize("size", [0, 1, 15, 17])
def test_ranges_that_are_not_whole_fail(rig: BlkRig, kind: int, size: int) -> None:
    failed(rig.ask(kind, 0, bytes(size)), IOERR)


def test_as_many_and_as_long_ranges_as_the_configuration_says(tmp_path: Path) -> None:
    path = tmp_path / "large.img"
    with path.open("wb") as file:
        file.truncate((MAX_DISCARD + 1) * SECTOR)
    with rig_of(path) as rig:
        assert rig.ask(T.DISCARD, 0, segments(*[(0, 1, 0)] * MAX_SEGMENTS)).status == OK
        failed(rig.ask(T.DISCARD, 0, segments(*[(0, 1, 0)] * (MAX_SEGMENTS + 1))), IOERR)
        assert rig.ask(T.DISCARD, 0, segments((0, MAX_DISCARD, 0))).status == OK
        failed(rig.ask(T.DISCARD, 0, segments((0, MAX_DISCARD + 1, 0))), IOERR)
        assert rig.ask(T.WRITE_ZEROES, 0, segments((0, MAX_ZEROES, 1))).status == OK
        failed(rig.ask(T.WRITE_ZEROES, 0, segments((0, MAX_ZEROES + 1, 1))), IOERR)
        failed(rig.ask(T.WRITE_ZEROES, 0, segments((0, 1, 0), (1, 1, 0))), IOERR)


# A disk that is read-only, truncated, broken


@pytest.mark.parametrize("kind", [T.OUT, T.DISCARD, T.WRITE_ZEROES])
def test_nothing_changes_a_read_only_disk(image: Path, content: bytes, kind: int, caplog: pytest.LogCaptureFixture) -> None:
    with rig_of(image, read_only=True) as rig:
        failed(rig.ask(kind, 0, bytes(512) if kind == T.OUT else segments((0, 8, 0))), IOERR)
        assert f"{T(kind).name} to a read-only disk" in caplog.text
        assert rig.read(0, SECTORS) == content
        assert rig.ask(T.FLUSH) == Answer(OK, 1, b"")
    assert image.read_bytes() == content


def test_a_file_that_the_host_truncates_fails_reads_and_lives(rig: BlkRig, image: Path, content: bytes) -> None:
    os.truncate(image, 8 * SECTOR + 100)
    failed(rig.ask(T.IN, 8, room=512), IOERR)
    failed(rig.ask(T.IN, 20, room=512), IOERR)
    assert rig.read(0, 8) == content[: 8 * SECTOR]
    assert rig.ask(T.OUT, 8, content[8 * SECTOR : 9 * SECTOR]).status == OK
    assert rig.read(8) == content[8 * SECTOR : 9 * SECTOR]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EFAULT])
def test_p09_an_error_of_the_host_is_an_error_of_that_request(
    rig: BlkRig, number: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwritev", broken)
        failed(rig.ask(T.OUT, 0, bytes(512)), IOERR)
    assert f"{os.strerror(number)} ({errno.errorcode[number]})" in caplog.text
    assert rig.ask(T.OUT, 0, bytes(512)).status == OK


def test_p09_no_partial_success_is_told(rig: BlkRig, monkeypatch: pytest.MonkeyPatch) -> None:
    pwritev = os.pwritev

    def full(fd: int, views: list[memoryview], offset: int) -> int:
        if offset >= 512:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return pwritev(fd, chain.cut(views, 0, 512), offset)

    monkeypatch.setattr(os, "pwritev", full)
    failed(rig.ask(T.OUT, 0, bytes(1024)), IOERR)


def test_p19_a_fault_in_the_device_is_no_success(rig: BlkRig, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> int:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(os, "preadv", broken)
    memory = rig.rig.buffers
    with pytest.raises(ZeroDivisionError):
        rig.ask(T.IN, 0, room=512)
    assert memory[16 + 512] == IOERR


@pytest.mark.parametrize("kind", [T.DISCARD, T.WRITE_ZEROES])
def test_a_range_that_may_not_be_changed_fails(content: bytes, kind: int) -> None:
    with memory_file(8, fill=content, seal=False) as fd, rig_of(f"/proc/self/fd/{fd.fileno()}") as rig:
        fcntl.fcntl(fd.fileno(), F_ADD_SEALS, F_SEAL_WRITE)
        failed(rig.ask(kind, 0, segments((0, 8, 0))), IOERR)
        assert rig.read(0, 8) == content[: 8 * SECTOR]
