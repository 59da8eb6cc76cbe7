"""Persistent memory over sockets ("PMEM Device")."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from vhostuser.device import Device
from vhostuser.devices.image import SMALLEST, Image
from vhostuser.devices.pmem import FLUSH_TIMEOUT, PersistentMemory
from vhostuser.drivers.pmem import FEATURES, PmemDriver
from vhostuser.testing import DEADLINE, Joined, answer_of, chain_of, joined
from vhostuser.virtio.numbers import DeviceId
from vhostuser.virtio.pmem import CONFIG_SIZE, PmemConfig, PmemStatus

from .requests import pattern

FLUSH = struct.pack("<I", 0)
OK, FAILED = struct.pack("<I", PmemStatus.OK), struct.pack("<i", -1)
CONTENT = pattern(8192)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image"
    path.write_bytes(CONTENT)
    os.truncate(path, SMALLEST)
    return path


@contextmanager
def serving(image: Path, *, read_only: bool = False, packed: bool = False) -> Iterator[tuple[Joined, PmemDriver]]:
    """The device behind a socket, and its driver once the image is mapped."""
    with (
        PersistentMemory(Image(image, read_only=read_only)) as device,
        joined(device, features=FEATURES, packed=packed) as both,
    ):
        both.frontend.share_memory(1 << 20)
        yield both, PmemDriver(both.frontend, timeout=DEADLINE)


def ask(driver: PmemDriver, request: bytes = FLUSH, room: int = 4) -> bytes:
    return driver.queue.exchange(request, room, timeout=DEADLINE)


def test_the_region_says_all_and_the_configuration_space_nothing(image: Path) -> None:
    """With SHMEM_REGION start and size are zeros ("Device configuration layout")."""
    with serving(image) as (both, driver):
        assert PmemConfig.unpack(both.frontend.config(0, CONFIG_SIZE)) == PmemConfig(0, 0)
        assert {shmid: region.size for shmid, region in both.frontend.shm.items()} == {0: SMALLEST} == {0: driver.size}
    assert PersistentMemory.virtio_id == DeviceId.PMEM
    assert PmemConfig.unpack(PmemConfig(1, 2).pack()) == (1, 2)


@pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
def test_the_image_is_one_mapping_and_a_write_is_in_the_file(image: Path, packed: bool) -> None:
    with serving(image, packed=packed) as (both, driver):
        assert both.frontend.shm[0].mappings == ((0, SMALLEST, 0, True),)
        assert driver.read(0, 8192) == CONTENT
        driver.write(SMALLEST - 5, b"guest")
        driver.flush()
        assert both.frontend.counters.maps == 1
    assert image.read_bytes() == CONTENT.ljust(SMALLEST - 5, b"\0") + b"guest"


def test_a_flush_syncs_the_image_before_it_says_so(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bytes] = []

    def sync(fd: int) -> None:
        assert os.path.samestat(os.fstat(fd), image.stat())
        seen.append(os.pread(fd, 4, 0))

    monkeypatch.setattr(os, "fdatasync", sync)
    with serving(image) as (_, driver):
        for word in (b"one.", b"two."):
            driver.write(0, word)
            assert ask(driver) == OK
            assert seen.pop() == word
    assert seen == []


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EDQUOT])
def test_a_sync_that_fails_is_the_drivers_to_know(image: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def fail(fd: int) -> None:
        raise OSError(number, os.strerror(number))

    with serving(image) as (_, driver):
        assert ask(driver) == OK
        with monkeypatch.context() as patched:
            patched.setattr(os, "fdatasync", fail)
            assert ask(driver) == FAILED
        assert ask(driver) == FAILED  # what was lost stays lost
        assert driver.read(0, 8) == CONTENT[:8]


@pytest.mark.parametrize(
    ("request_", "room", "answer"),
    [
        (FLUSH + b"more", 4, OK),
        (FLUSH, 64, OK),
        (struct.pack("<I", 1), 4, FAILED),
        (b"\xff" * 4, 4, FAILED),
        (b"\0\0\0", 4, FAILED),
        (b"", 4, FAILED),
        (FLUSH, 3, b""),
        (FLUSH, 0, b""),
    ],
)
def test_a_request_that_is_none_fails_alone(image: Path, request_: bytes, room: int, answer: bytes) -> None:
    with serving(image) as (_, driver):
        assert ask(driver, request_, room) == answer
        assert ask(driver) == OK


def test_request_and_response_may_lie_in_pieces(image: Path) -> None:
    """No device may count on where one buffer ends ("Message Framing")."""
    with serving(image) as (both, driver):
        driver.flush()
        both.served.backend.device.process(0, chain := chain_of(b"\0", b"\0\0", b"\0", room=[1, 2, 1]))
        assert answer_of(chain) == OK


def test_every_reset_maps_it_once_more(image: Path) -> None:
    with serving(image) as (both, first):
        first.write(0, b"kept")
        for turn in range(2, 5):
            both.frontend.reset()
            assert both.frontend.shm[0].mappings == ()
            driver = PmemDriver(both.frontend, timeout=DEADLINE)
            assert driver.read(0, 4) == b"kept"
            assert ask(driver) == OK
            assert both.frontend.counters.maps == turn


def test_nothing_is_mapped_before_a_driver_is_ready(image: Path) -> None:
    """K1: QEMU 11.1 dies of a SHMEM_MAP while no driver runs the device."""
    with PersistentMemory(Image(image)) as device, joined(device, features=FEATURES) as both:
        both.frontend.share_memory(1 << 20)
        both.frontend.serve(0.05)
        assert both.frontend.counters.maps == 0
        PmemDriver(both.frontend, timeout=DEADLINE)
        both.frontend.stop_queue(0)
        both.frontend.serve(0.05)
        assert both.frontend.counters.maps == 1


def test_the_memory_slots_of_k3_are_not_offered(image: Path) -> None:
    with serving(image) as (both, _):
        assert "CONFIGURE_MEM_SLOTS" not in both.frontend.protocol_features


def test_a_flush_without_the_image_mapped_fails(image: Path) -> None:
    """The front-end refuses a file that has shrunk; what the driver writes then goes nowhere."""
    with PersistentMemory(Image(image)) as device, joined(device, features=FEATURES) as both:
        os.truncate(image, 4096)
        both.frontend.share_memory(1 << 20)
        queue = both.frontend.start_queue(0, size=16)
        assert queue.exchange(FLUSH, 4, timeout=DEADLINE) == FAILED
        assert both.frontend.shm[0].mappings == ()


def test_k2_a_stop_waits_long_for_a_flush_and_not_for_the_mapping(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """QEMU answers no SHMEM_MAP while it waits for the stop."""
    waits: list[float] = []
    sync = os.fdatasync

    def note(fd: int) -> None:
        waits.append(device.drain_timeout)
        sync(fd)

    with PersistentMemory(Image(image)) as device, joined(device, features=FEATURES) as both:
        with monkeypatch.context() as patched:
            region = device.shm[0]
            patched.setattr(type(region), "map", lambda *_, **__: waits.append(device.drain_timeout))
            device.driver_ready()
        both.frontend.share_memory(1 << 20)
        monkeypatch.setattr(os, "fdatasync", note)
        assert ask(PmemDriver(both.frontend, timeout=DEADLINE)) == OK
    assert waits == [Device.drain_timeout, FLUSH_TIMEOUT]


@pytest.mark.parametrize("size", [5000, SMALLEST, 3 << 20])
def test_a_read_only_image_never_changes_and_no_flush_says_otherwise(image: Path, size: int) -> None:
    os.truncate(image, size)
    before = image.read_bytes()
    with serving(image, read_only=True) as (_, driver):
        assert driver.read(0, driver.size) == before.ljust(driver.size, b"\0")
        driver.write(0, b"into the copy")
        assert ask(driver) == FAILED
    assert image.read_bytes() == before
