"""A block device and its front-end, joined by a socket; and in a process of its own, which may be short of room."""

from __future__ import annotations

import os
import resource
from pathlib import Path

import pytest

from vhostuser import Frontend
from vhostuser.devices.blk import BlockDevice
from vhostuser.devices.disk import Disk
from vhostuser.queue import Queue
from vhostuser.testing import BackendProcess, joined
from vhostuser.virtio.block import HEADER, BlockFeature

from .requests import FLUSH, SECTOR, T, pattern
from .served import DISK

SECTORS = 256
MEMORY = 1 << 20
OK, IOERR = b"\0", b"\1"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    made = tmp_path / "disk.img"
    made.write_bytes(bytes(SECTORS * SECTOR))
    return made


def ask(queue: Queue, kind: int, sector: int = 0, data: bytes = b"", room: int = 0) -> bytes:
    return queue.exchange(HEADER.pack(kind, 0, sector) + data, room + 1)


def test_patterns_written_are_read_back_and_are_in_the_file(path: Path) -> None:
    with BlockDevice(Disk(path), num_queues=2) as device, joined(device) as both:
        both.frontend.share_memory(MEMORY)
        queues = [both.frontend.start_queue(index, size=16) for index in range(2)]
        for sector in range(0, SECTORS, 32):
            assert ask(queues[0], T.OUT, sector, pattern(32 * SECTOR, seed=sector)) == OK
        assert ask(queues[1], T.FLUSH) == OK
        for sector in range(0, SECTORS, 32):
            assert ask(queues[1], T.IN, sector, room=32 * SECTOR) == pattern(32 * SECTOR, seed=sector) + OK
    assert path.read_bytes() == b"".join(pattern(32 * SECTOR, seed=sector) for sector in range(0, SECTORS, 32))


def test_what_a_front_end_sees_before_the_first_request(path: Path) -> None:
    with BlockDevice(Disk(path), num_queues=4) as device, joined(device) as both:
        assert both.frontend.queue_count == 4
        assert both.frontend.offered[0] & 0xFFFFFF == device.features
        assert both.frontend.config(0, 60) == device.config[:60]
        assert both.frontend.config(0, 96) == device.config


@pytest.mark.parametrize("flushes", [False, True])
def test_the_device_knows_whether_the_driver_flushes(path: Path, monkeypatch: pytest.MonkeyPatch, flushes: bool) -> None:
    calls: list[int] = []
    monkeypatch.setattr(os, "fdatasync", calls.append)
    features = FLUSH if flushes else 0
    with BlockDevice(Disk(path), native=False) as device, joined(device, features=features) as both:
        assert (f"BIT_{BlockFeature.FLUSH}" in both.frontend.features) == flushes
        both.frontend.share_memory(MEMORY)
        queue = both.frontend.start_queue(0, size=16)
        assert ask(queue, T.OUT, 0, bytes(512)) == OK
        assert len(calls) == (0 if flushes else 1)
        assert ask(queue, T.FLUSH) == OK
        assert len(calls) == (1 if flushes else 2)


def test_a_disk_that_is_truncated_while_it_is_served(path: Path) -> None:
    with BlockDevice(Disk(path)) as device, joined(device) as both:
        both.frontend.share_memory(MEMORY)
        queue = both.frontend.start_queue(0, size=16)
        os.truncate(path, 4096)
        assert len(ask(queue, T.IN, 8, room=512)) == 1
        assert ask(queue, T.IN, 7, room=512) == bytes(512) + OK


def test_p09_on_a_full_disk_requests_fail_and_the_process_lives(path: Path) -> None:
    os.truncate(path, 1 << 20)
    limit = 64 << 10
    process = BackendProcess(
        "tests.devices.served:small", environment={DISK: str(path)}, limits={resource.RLIMIT_FSIZE: limit}
    )
    with process:
        assert process.socket is not None
        with Frontend(process.socket) as front:
            process.socket = None
            front.share_memory(MEMORY)
            queue = front.start_queue(0, size=16)
            data = pattern(4096, seed=1)
            assert ask(queue, T.OUT, limit // SECTOR, data) == IOERR
            assert ask(queue, T.OUT, limit // SECTOR - 1, bytes(1024)) == IOERR
            assert ask(queue, T.OUT, 0, data) == OK
            assert ask(queue, T.IN, 0, room=4096) == data + OK
        status, said = process.wait()
    assert status == 0
    assert "a request failed: File too large (EFBIG)" in said
    assert path.read_bytes()[:4096] == data
