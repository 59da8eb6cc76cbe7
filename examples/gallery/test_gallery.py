"""How to test a device without a VM: as its driver, and as a driver or a front-end that does something wrong."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import gallery
import pytest
from gallery import DONE, PICTURE, REFUSED, Gallery

from vhostuser import Frontend, Queue
from vhostuser.protocol.numbers import FrontendRequest, ProtocolFeature
from vhostuser.protocol.payloads import ShmemConfig, VringState
from vhostuser.testing import DEADLINE, RawBackend, RawFrontend

pytestmark = pytest.mark.usefixtures("nothing_left")


@pytest.fixture
def device(tmp_path: Path) -> Gallery:
    (tmp_path / "picture.raw").write_bytes(b"a picture".ljust(PICTURE, b"."))
    return Gallery(tmp_path / "picture.raw")


def ask(queue: Queue, offset: int) -> bytes:
    return queue.exchange(offset.to_bytes(8, "little"), 1)


def start(frontend: Frontend) -> Queue:
    frontend.share_memory(1 << 20)
    return frontend.start_queue(0, size=16)


def test_the_driver_sees_the_picture_where_it_wants_it(device: Gallery, drive: Callable[..., Frontend]) -> None:
    frontend = drive(device)
    assert ask(start(frontend), PICTURE) == DONE
    assert frontend.shm[0].read(PICTURE, 9) == b"a picture"


@pytest.mark.parametrize("offset", [PICTURE, PICTURE + 4096, 64 << 20, 7], ids=["twice", "overlap", "outside", "unaligned"])
def test_a_place_that_is_none_is_refused(device: Gallery, drive: Callable[..., Frontend], offset: int) -> None:
    frontend = drive(device)
    queue = start(frontend)
    assert ask(queue, PICTURE) == DONE
    assert ask(queue, offset) == REFUSED
    assert len(frontend.shm[0].mappings) == 1


def test_a_ring_that_it_does_not_have_is_refused(device: Gallery, provoke: Callable[..., RawFrontend]) -> None:
    raw = provoke(device)
    raw.negotiate()
    raw.refused(FrontendRequest.SET_VRING_NUM, VringState(1, 256))
    raw.accepted(FrontendRequest.SET_VRING_NUM, VringState(0, 256))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it(device: Gallery, tmp_path: Path, number: signal.Signals) -> None:
    program, path = Path(gallery.__file__), tmp_path / "s"
    with subprocess.Popen([sys.executable, program, path, device.picture]) as process:
        try:
            with Frontend.connect(path, wait=DEADLINE) as frontend:
                assert ask(start(frontend), PICTURE) == DONE
                process.send_signal(number)
                assert process.wait(DEADLINE) == 0
        finally:
            process.kill()
    assert not path.exists()


def test_a_front_end_does_not_take_a_back_ends_word_for_it(raw_backend: RawBackend) -> None:
    """The other direction: our front-end, or yours, against a back-end that misbehaves."""
    raw_backend.answers[FrontendRequest.GET_SHMEM_CONFIG] = ShmemConfig({0: 1 << 20})
    with raw_backend.frontend() as frontend:
        assert ProtocolFeature.SHMEM.name in frontend.protocol_features
        assert frontend.shm[0].size == 1 << 20
