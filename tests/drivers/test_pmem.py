"""The driver of persistent memory, also against devices that are wrong."""

from __future__ import annotations

import os
from pathlib import Path
from types import MappingProxyType

import pytest

from vhostuser import DeadlineExpired, DescriptorChain, LocalProtocolError, MemoryFault, RemoteProtocolError, RequestFailed
from vhostuser.devices.image import SMALLEST, Image
from vhostuser.devices.pmem import PersistentMemory
from vhostuser.drivers.pmem import FEATURES, PmemDriver
from vhostuser.testing import DEADLINE, joined, memory_file

from .devices import Answering


class Odd(Answering):
    """Answers as told, and maps one page, or nothing."""

    features = FEATURES
    shared_memory = MappingProxyType({0: SMALLEST})
    pages = 1

    def driver_ready(self) -> None:
        if self.pages:
            with memory_file(self.pages) as file:
                self.shm[0].map(file, shm_offset=0, len=self.pages * 4096, writable=True)


def test_what_is_written_is_read_and_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(b"begin")
    os.truncate(path, SMALLEST)
    with PersistentMemory(Image(path)) as device, joined(device, features=FEATURES) as both:
        both.frontend.share_memory(1 << 20)
        driver = PmemDriver(both.frontend, timeout=DEADLINE)
        assert (driver.size, driver.read(0, 5)) == (SMALLEST, b"begin")
        driver.write(1 << 20, b"written")
        driver.flush()
        assert driver.read(1 << 20, 7) == b"written"
        with pytest.raises(MemoryFault, match="passes its end"):
            driver.read(SMALLEST - 1, 2)
    assert path.read_bytes()[1 << 20 :].startswith(b"written")


def test_without_the_feature_there_is_no_such_memory(tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.touch()
    os.truncate(path, SMALLEST)
    with PersistentMemory(Image(path)) as device, joined(device) as both:
        both.frontend.share_memory(1 << 20)
        with pytest.raises(LocalProtocolError, match=r"SHMEM_REGION \(bit 0\) was not negotiated"):
            PmemDriver(both.frontend)


def test_a_device_that_maps_nothing_is_waited_for_in_vain() -> None:
    device = Odd(lambda chain: None)
    device.pages = 0
    with joined(device, features=FEATURES) as both:
        both.frontend.share_memory(1 << 20)
        with pytest.raises(DeadlineExpired, match=r"the device has mapped nothing within 0\.05 s"):
            PmemDriver(both.frontend, timeout=0.05)


@pytest.mark.parametrize("status", [1, 5, 0xFFFF_FFFF])
def test_any_status_but_0_is_a_no(status: int) -> None:
    def answer(chain: DescriptorChain) -> None:
        assert chain.read() == bytes(4)
        chain.write(status.to_bytes(4, "little"))

    with joined(Odd(answer), features=FEATURES) as both:
        both.frontend.share_memory(1 << 20)
        driver = PmemDriver(both.frontend, timeout=DEADLINE)
        with pytest.raises(RequestFailed, match=f"FLUSH was answered with {status:#x}") as failed:
            driver.flush()
        assert failed.value.status == status
        with pytest.raises(MemoryFault):
            driver.read(4096, 1)


@pytest.mark.parametrize("size", [0, 3])
def test_half_an_answer_breaks_the_protocol(size: int) -> None:
    with joined(Odd(lambda chain: chain.write(bytes(size)) and None), features=FEATURES) as both:
        both.frontend.share_memory(1 << 20)
        driver = PmemDriver(both.frontend, timeout=DEADLINE)
        with pytest.raises(RemoteProtocolError, match=f"FLUSH was answered with {size} bytes, not 4"):
            driver.flush()
