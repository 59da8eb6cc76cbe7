"""Compiled code serves a disk as Python does: the same bytes everywhere, and what is unusual it leaves to Python."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.virtio_rig import BUFFERS, CompiledRig
from vhostuser import _native
from vhostuser.devices.blk import BlockDevice
from vhostuser.devices.disk import Disk
from vhostuser.testing import memory_file
from vhostuser.transport.fds import OwnedFd
from vhostuser.virtio.block import HEADER, BlockStatus

from .requests import FLUSH, SECTOR, Answer, BlkRig, T, failed, pattern, segments

pytestmark = pytest.mark.skipif(not _native.accelerated, reason="nothing is compiled here")

SECTORS = 64
OK, IOERR = BlockStatus.OK, BlockStatus.IOERR
ID = b"disk".ljust(20, b"\0")


class NativeRig(BlkRig):
    """A block device behind a compiled ring, served by compiled code unless `python`; `left` counts what it leaves."""

    def __init__(self, device: BlockDevice, *, python: bool = False, size: int = 512) -> None:
        super().__init__(device)
        self.rig = CompiledRig(size, buffers=1 << 18)
        self.left = 0
        self._python = python
        self._handover = _native.handover.Handover()

    def _serve(self) -> None:
        ring, file = self.rig.device, self.device.compiled()
        assert isinstance(ring, _native.ring.SplitRing)
        assert isinstance(file, _native.block.BlockFile)
        if self._python or file.serve_waiting(ring, self._handover, 0) == _native.handover.LEFT:
            self.left += 1
            super()._serve()


def native_rig(path: str | os.PathLike[str], *, read_only: bool = False, flushes: bool = True) -> NativeRig:
    """A rig over the disk at `path`, which belongs to the caller."""
    device = BlockDevice(Disk(path, read_only=read_only))
    device.acknowledged = FLUSH if flushes else 0
    return NativeRig(device)


@pytest.fixture
def native(image: Path) -> AbstractContextManager[NativeRig]:
    return _closing(native_rig(image))


class _closing(AbstractContextManager[NativeRig]):  # noqa: N801  # as in contextlib
    """A rig, whose disk is closed in the end."""

    def __init__(self, rig: NativeRig) -> None:
        self.rig = rig

    def __enter__(self) -> NativeRig:
        return self.rig

    def __exit__(self, *_: object) -> None:
        self.rig.device.close()


@pytest.mark.parametrize(
    ("kind", "sector", "data", "room"),
    [
        (T.IN, 0, b"", 512),
        (T.IN, 5, b"", 8 * 512),
        (T.IN, SECTORS, b"", 0),
        (T.OUT, 3, pattern(1024), 0),
        (T.OUT, SECTORS, b"", 0),
        (T.FLUSH, 0, b"", 0),
        (T.FLUSH, 0, b"", 7),
        (T.GET_ID, 0, b"", 20),
        (T.GET_ID, 0, b"", 7),
        (T.GET_ID, 0, b"", 64),
    ],
)
def test_the_ordinary_is_not_left(
    native: AbstractContextManager[NativeRig], kind: int, sector: int, data: bytes, room: int
) -> None:
    with native as rig:
        assert rig.ask(kind, sector, data, room).status == OK
        assert rig.left == 0


@pytest.mark.parametrize(
    ("readable", "room"),
    [
        (HEADER.pack(T.IN, 0, SECTORS), 513),
        (HEADER.pack(T.IN, 0, SECTORS - 1), 1025),
        (HEADER.pack(T.IN, 0, SECTORS + 1), 1),
        (HEADER.pack(T.IN, 0, (1 << 64) - 1), 513),
        (HEADER.pack(T.IN, 0, 1 << 55), 513),
        (HEADER.pack(T.IN, 0, 0), 512),
        (HEADER.pack(T.OUT, 0, SECTORS) + bytes(512), 1),
        (HEADER.pack(T.OUT, 0, 0) + bytes(511), 1),
        (HEADER.pack(T.OUT, 0, 0) + bytes(512), 0),
        (HEADER.pack(T.FLUSH, 0, 0)[:15], 1),
        (HEADER.pack(99, 0, 0), 1),
        (HEADER.pack(T.DISCARD, 0, 0) + segments((0, 8, 0)), 1),
        (HEADER.pack(T.WRITE_ZEROES, 0, 0) + segments((0, 8, 0)), 1),
    ],
)
def test_the_unusual_is_left_and_python_says_what_it_says(
    native: AbstractContextManager[NativeRig], content: bytes, readable: bytes, room: int
) -> None:
    with native as rig:
        answer = rig.send(readable, room)
        assert rig.left == 1
        assert rig.send(HEADER.pack(T.IN, 0, 16), 513).data == content[16 * SECTOR : 17 * SECTOR], "the ring goes on"
        assert rig.left == 1
    with _closing(native_rig_in_python(rig)) as other:
        assert other.send(readable, room) == answer


def native_rig_in_python(rig: NativeRig) -> NativeRig:
    """The same disk, served by Python alone."""
    made = native_rig(rig.device._disk.path)
    made._python = True
    return made


_sectors = st.one_of(st.integers(0, SECTORS + 2), st.sampled_from([1 << 55, (1 << 64) - 1]))
_requests = st.tuples(
    st.sampled_from([*T, T.IN, T.OUT, T.OUT, 99]), _sectors, st.integers(0, SECTORS + 2), st.integers(0, 3)
)
_cuts = st.lists(st.integers(1, SECTORS * SECTOR), max_size=20)
_odd = st.sampled_from([0, 0, 0, 1, 511])


@settings(max_examples=80)
@given(
    st.lists(st.tuples(_requests, _odd, _cuts, _cuts, st.sampled_from([0, (1 << 17) - 5000])), max_size=12),
    st.booleans(),
    st.booleans(),
)
def test_both_handlers_do_the_same(
    steps: list[tuple[tuple[int, int, int, int], int, list[int], list[int], int]], read_only: bool, flushes: bool
) -> None:
    content = pattern(SECTORS * SECTOR)
    with memory_file(8, fill=content, seal=False) as one, memory_file(8, fill=content, seal=False) as other:
        rigs = [_rig_of(one, read_only, flushes, python=False), _rig_of(other, read_only, flushes, python=True)]
        try:
            for number, (request, odd, cuts, writable_cuts, at) in enumerate(steps):
                answers = [_step(rig, request, odd, cuts, writable_cuts, at, number) for rig in rigs]
                assert answers[0] == answers[1], request
                assert bytes(rigs[0].rig.buffers) == bytes(rigs[1].rig.buffers)
                assert bytes(rigs[0].rig.used) == bytes(rigs[1].rig.used)
                assert os.pread(one.fileno(), 1 << 20, 0) == os.pread(other.fileno(), 1 << 20, 0)
        finally:
            for rig in rigs:
                rig.device.close()


def _rig_of(fd: OwnedFd, read_only: bool, flushes: bool, *, python: bool) -> NativeRig:
    device = BlockDevice(Disk(f"/proc/self/fd/{fd.fileno()}", read_only=read_only))
    device._id = ID
    device._disk.compile(ID)
    device.acknowledged = FLUSH if flushes else 0
    return NativeRig(device, python=python)


def _step(
    rig: NativeRig,
    request: tuple[int, int, int, int],
    odd: int,
    cuts: Sequence[int],
    room_cuts: Sequence[int],
    at: int,
    seed: int,
) -> Answer:
    kind, sector, count, flags = request
    data, room = b"", 0
    if kind == T.OUT:
        data = pattern(count * SECTOR + 8, seed=seed)[: count * SECTOR + odd]
    elif kind in (T.IN, T.GET_ID):
        room = count * SECTOR + odd
    elif kind in (T.DISCARD, T.WRITE_ZEROES):
        data = segments((sector, count, flags))
    return rig.send(HEADER.pack(kind, 0, sector) + data, room + 1, cuts=cuts, writable_cuts=room_cuts, at=at)


@pytest.mark.parametrize("kind", [T.IN, T.OUT])
def test_q21_more_buffers_than_a_system_call_takes(tmp_path: Path, kind: int) -> None:
    path, content = tmp_path / "disk.img", pattern(4 * SECTOR)
    path.write_bytes(content)
    with BlockDevice(Disk(path)) as device:
        device.acknowledged = FLUSH
        rig = NativeRig(device, size=4096)
        cuts = range(2048)
        if kind == T.IN:
            assert rig.send(HEADER.pack(T.IN, 0, 0), 2049, writable_cuts=cuts) == Answer(OK, 2049, content)
        else:
            data = pattern(2048, seed=5)
            assert rig.send(HEADER.pack(T.OUT, 0, 0) + data, 1, cuts=range(2064)) == Answer(OK, 1, b"")
            assert path.read_bytes() == data
        assert rig.left == 0


def test_a_batch_is_done_as_far_as_it_is_ordinary(native: AbstractContextManager[NativeRig], content: bytes) -> None:
    """What comes behind a request for Python waits for it."""
    with native as rig:
        memory, ring, file = rig.rig.buffers, rig.rig.device, rig.device.compiled()
        assert isinstance(ring, _native.ring.SplitRing)
        assert isinstance(file, _native.block.BlockFile)
        for at, kind in enumerate((T.IN, 99, T.IN)):
            memory[4096 * at : 4096 * at + 16] = HEADER.pack(kind, 0, at)
            rig.rig.driver.add([(BUFFERS + 4096 * at, 16)], [(BUFFERS + 4096 * at + 16, 513)])
        handover = _native.handover.Handover()
        assert file.serve_waiting(ring, handover, 0) == _native.handover.LEFT
        assert rig.rig.driver.collect() is not None
        assert rig.rig.driver.collect() is None
        BlkRig._serve(rig)
        assert file.serve_waiting(ring, handover, 0) == _native.handover.WORK
        assert [rig.rig.driver.collect() is not None for _ in range(3)] == [True, True, False]
        assert memory[8192 + 16 : 8192 + 528] == content[1024:1536]


def test_what_was_abandoned_is_not_given_back(native: AbstractContextManager[NativeRig]) -> None:
    with native as rig:
        ring, file = rig.rig.device, rig.device.compiled()
        assert isinstance(ring, _native.ring.SplitRing)
        assert isinstance(file, _native.block.BlockFile)
        rig.rig.buffers[:16] = HEADER.pack(T.FLUSH, 0, 0)
        rig.rig.driver.add([(BUFFERS, 16)], [(BUFFERS + 16, 1)])
        handover = _native.handover.Handover()
        handover.abandon()
        assert file.serve_waiting(ring, handover, 0) == _native.handover.ABANDONED
        assert rig.rig.driver.collect() is None
        assert file.serve_waiting(ring, handover, 1) == _native.handover.WORK
        assert rig.rig.driver.collect() is not None


# A host that fails


def over(path: str) -> tuple[_native.block.BlockFile, CompiledRig]:
    """A device file of the host's as a disk of 8 sectors, and a ring for it."""
    with OwnedFd(os.open(path, os.O_RDWR | os.O_CLOEXEC)) as fd:
        return _native.block.BlockFile(fd.fileno(), 8, False, ID), CompiledRig(64, buffers=1 << 16)


def served(file: _native.block.BlockFile, rig: CompiledRig, kind: int) -> int:
    """How a request of one sector ends."""
    rig.buffers[:16] = HEADER.pack(kind, 0, 0)
    out = kind == T.OUT
    rig.driver.add([(BUFFERS, 16 + 512 * out)], [(BUFFERS + 1024, 1 if out or kind == T.FLUSH else 513)])
    assert isinstance(rig.device, _native.ring.SplitRing)
    return file.serve_waiting(rig.device, _native.handover.Handover(), 0)


def test_p09_a_full_disk_is_python_s_to_explain() -> None:
    file, rig = over("/dev/full")
    assert served(file, rig, T.OUT) == _native.handover.LEFT


def test_a_failed_sync_is_remembered_for_the_kernel_says_it_once() -> None:
    file, rig = over("/dev/zero")  # which can't be synced
    assert served(file, rig, T.OUT) == _native.handover.WORK
    assert file.lost == 0
    assert served(file, rig, T.FLUSH) == _native.handover.LEFT
    assert file.lost == errno.EINVAL


def test_for_a_driver_without_flush_a_write_is_synced() -> None:
    file, rig = over("/dev/zero")
    file.durable = True
    assert served(file, rig, T.OUT) == _native.handover.LEFT
    assert file.lost == errno.EINVAL


def test_once_a_flush_has_failed_all_fail(native: AbstractContextManager[NativeRig]) -> None:
    with native as rig:
        file = rig.device.compiled()
        assert isinstance(file, _native.block.BlockFile)
        file.lost = errno.EIO
        failed(rig.ask(T.FLUSH), IOERR)
        failed(rig.ask(T.FLUSH), IOERR)
        assert rig.left == 2
        assert rig.ask(T.IN, 0, room=512).status == OK


def test_a_flush_that_fails_in_python_fails_in_compiled_code(
    native: AbstractContextManager[NativeRig], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(fd: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with native as rig:
        with monkeypatch.context() as patch:
            patch.setattr(os, "fdatasync", broken)
            with pytest.raises(OSError, match="Input/output"):
                rig.device._disk.flush()
        failed(rig.ask(T.FLUSH), IOERR)


def test_a_file_that_the_host_truncates_fails_reads(
    native: AbstractContextManager[NativeRig], image: Path, content: bytes
) -> None:
    with native as rig:
        os.truncate(image, 8 * SECTOR + 100)
        failed(rig.ask(T.IN, 8, room=512), IOERR)
        assert rig.read(0, 8) == content[: 8 * SECTOR]


def test_a_disk_is_let_go_of(tmp_path: Path) -> None:
    """The lock goes with the last fd of the file."""
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(4096))
    with BlockDevice(Disk(path)):
        pass
    with BlockDevice(Disk(path)):
        pass


def test_an_id_has_20_bytes() -> None:
    with OwnedFd(os.open("/dev/zero", os.O_RDWR | os.O_CLOEXEC)) as fd, pytest.raises(ValueError, match="20 bytes, not 3"):
        _native.block.BlockFile(fd.fileno(), 8, False, b"abc")
