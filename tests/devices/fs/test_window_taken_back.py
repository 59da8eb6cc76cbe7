"""Rings that go on where they began were reset meanwhile or not, nobody knows: then all that is mapped is taken back.

The guest may not have been reset, and go on with its window.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from vhostuser import Frontend
from vhostuser.devices.fs.dax.copy import CopyWindow
from vhostuser.errors import RemoteProtocolError
from vhostuser.testing import joined, wait_until
from vhostuser.transport.channel import OwnedMessage

from .failing import fails
from .windowed import PAGE, Guest, HostFile, Windowed, direct_window_of, served, window_of

WINDOWS = [lambda: window_of(4), lambda: direct_window_of(4, alignment=12)]


class Early(Windowed):
    """Has its window before it is asked for anything."""

    def __init__(self) -> None:
        super().__init__(lambda region: CopyWindow(4 * PAGE, region, write=True))
        self._readied = threading.Semaphore(0)

    def driver_ready(self) -> None:
        self.window.begin()
        self.window.ready()
        self._readied.release()

    def is_ready(self, frontend: Frontend) -> bool:
        """Whether it is, once its requests so far are answered."""
        frontend.serve(0.01)
        return self._readied.acquire(blocking=False)


@pytest.mark.parametrize("window", WINDOWS, ids=["copy", "direct"])
def test_what_was_taken_back_is_mapped_again(tmp_path: Path, window: Callable[[], AbstractContextManager[Guest]]) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"A" * PAGE + b"tail")
    file = HostFile(str(path), (1, 1))
    with window() as guest:
        region = guest.device.shm[0]
        guest.do(guest.window.ready)
        guest.show(file, 0, 0)
        guest.show(file, 1, 2, writable=True)
        guest.store(2, b"TAIL")
        guest.do(lambda: region.unmap_many([(row.shm_offset, row.len) for row in region.mappings]))
        for _ in range(2):
            guest.do(guest.window.ready)
            assert guest.read(0) == b"A" * PAGE
            assert guest.read(2) == b"TAIL".ljust(PAGE, b"\0")
        guest.sync()
    assert path.read_bytes() == b"A" * PAGE + b"TAIL"


class Moody(Frontend):
    """Maps nothing while it does not feel like it."""

    refuses = False

    def on_shmem_map(self, message: OwnedMessage) -> None:
        if self.refuses:
            raise RemoteProtocolError("no")
        super().on_shmem_map(message)


def test_f27_nothing_is_read_into_a_window_that_was_taken_back_and_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The guest would take what it sees in its place for the file. It is mapped again as soon as the front-end does so."""
    path = tmp_path / "file"
    path.write_bytes(b"A" * PAGE + b"B" * PAGE)
    file = HostFile(str(path), (1, 1))
    with served(Windowed(lambda region: CopyWindow(4 * PAGE, region, write=True)), PAGE, Moody) as guest:
        guest.do(guest.window.begin)
        guest.show(file, 0, 0, writable=True)
        guest.store(0, b"a")
        guest.do(lambda: guest.device.shm[0].unmap(shm_offset=0, len=4 * PAGE))
        monkeypatch.setattr(Moody, "refuses", True)
        for again in (guest.window.ready, guest.window.ready, lambda: guest.show(file, 1, 1)):
            with fails(errno.ENODEV):
                guest.do(again) if again == guest.window.ready else again()
        monkeypatch.setattr(Moody, "refuses", False)
        guest.show(file, 1, 1)
        assert guest.read(0, 2) == b"a" + b"A" * (PAGE - 1) + b"B" * PAGE
        guest.sync()
    assert path.read_bytes()[:2] == b"aA"


def test_rings_that_go_on_where_they_began_leave_the_window_where_it_is() -> None:
    device = Early()
    with joined(device) as (frontend, _):
        frontend.share_memory(1 << 20)
        for _ in range(2):
            frontend.start_queue(0, size=4)
            wait_until(lambda: device.is_ready(frontend), "the device is ready")
            assert frontend.shm[0].read(0, PAGE) == bytes(PAGE)
            assert frontend.stop_queue(0) == 0
    device.window.close()
    assert device.shm[0].maps == 2
