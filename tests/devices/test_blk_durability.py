"""A write is durable when the driver is told so ("Device Operation")."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from vhostuser.virtio.block import BlockStatus

from .requests import Answer, BlkRig, T, failed, pattern, rig_of, segments

OK, IOERR = BlockStatus.OK, BlockStatus.IOERR


class Synced:
    """Counts the calls of fdatasync, with what was in the file at each."""

    def __init__(self, image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seen: list[bytes] = []
        self.fail = 0
        self._image, self._call = image, os.fdatasync
        monkeypatch.setattr(os, "fdatasync", self)

    def __call__(self, fd: int) -> None:
        assert os.path.samestat(os.fstat(fd), self._image.stat())
        if self.fail:
            raise OSError(self.fail, os.strerror(self.fail))
        self._call(fd)
        self.seen.append(self._image.read_bytes()[:512])


@pytest.fixture
def synced(image: Path, monkeypatch: pytest.MonkeyPatch) -> Synced:
    return Synced(image, monkeypatch)


def test_a_flush_is_a_sync_of_what_was_written(rig: BlkRig, synced: Synced) -> None:
    data = pattern(512, seed=5)
    assert rig.ask(T.OUT, 0, data).status == OK
    assert synced.seen == []
    assert rig.ask(T.FLUSH) == Answer(OK, 1, b"")
    assert synced.seen == [data]


def test_a_driver_without_flush_gets_durable_writes(image: Path, synced: Synced) -> None:
    data = pattern(512, seed=5)
    with rig_of(image, acknowledged=0) as rig:
        assert rig.ask(T.OUT, 0, data).status == OK
        assert rig.ask(T.WRITE_ZEROES, 0, segments((0, 1, 0))).status == OK
        rig.read(0)
        assert synced.seen == [data, bytes(512)]
        synced.fail = errno.EIO
        failed(rig.ask(T.OUT, 0, data), IOERR)


def test_once_a_flush_has_failed_all_fail(rig: BlkRig, synced: Synced, caplog: pytest.LogCaptureFixture) -> None:
    synced.fail = errno.EIO
    failed(rig.ask(T.FLUSH), IOERR)
    synced.fail = 0
    failed(rig.ask(T.FLUSH), IOERR)
    assert synced.seen == []
    assert "an earlier flush failed" in caplog.text
    rig.read(0)
