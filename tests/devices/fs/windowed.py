"""A window behind a connection: the device does what a test tells it to, the test is the guest."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Unpack

from vhostuser import DescriptorChain, Device, Frontend
from vhostuser.devices.fs.dax.copy import CopyWindow
from vhostuser.devices.fs.dax.direct import DirectWindow
from vhostuser.frontend import FrontendOptions
from vhostuser.shared_memory import SharedMemory
from vhostuser.shared_region import SharedRegion
from vhostuser.testing import Served
from vhostuser.transport.fds import OwnedFd

PAGE = 4096
AnyWindow = CopyWindow | DirectWindow


class HostFile:
    """A file of the host, as a share knows it."""

    def __init__(self, path: str, key: tuple[int, int]) -> None:
        self.path, self.key = path, key

    def open(self, flags: int) -> OwnedFd:
        return OwnedFd(os.open(self.path, flags | os.O_CLOEXEC))


class Windowed(Device):
    """Does with its window what it is told."""

    queue_sizes = (16,)
    act: Callable[[], object] | None = None
    error: BaseException | None = None

    def __init__(self, make: Callable[[Callable[[], SharedMemory]], AnyWindow]) -> None:
        self.window = make(lambda: self.shm[0])
        self.shared_memory = {0: self.window.size}

    def process(self, queue: int, chain: DescriptorChain) -> None:
        self.error = None
        try:
            if self.act:
                self.act()
        except BaseException as error:  # an assertion of the test's, too
            self.error = error

    def reset(self) -> None:
        self.window.reset()


class Guest:
    """The window as the guest sees it, and the device's side of it."""

    def __init__(self, device: Windowed, region: SharedRegion, ask: Callable[[], object], unit: int) -> None:
        self.device, self.region, self._ask = device, region, ask
        self.unit = unit
        """Bytes that are mapped at a time, at least."""
        self._told: dict[tuple[int, int] | None, int] = {}

    @property
    def window(self) -> AnyWindow:
        return self.device.window

    def do(self, act: Callable[[], object]) -> None:
        """Have the device do something while it serves a request. What it raises is raised here."""
        self.device.act = act
        self._ask()
        if self.device.error:
            raise self.device.error

    def show(self, file: HostFile, foffset: int, moffset: int, pages: int = 1, *, writable: bool = False) -> None:
        """SETUPMAPPING, in pages, or larger units."""
        setup, unit = self.window.setup, self.unit
        size = pages * unit
        self.do(lambda: setup(file, foffset=foffset * unit, size=size, moffset=moffset * unit, writable=writable))

    def remove(self, moffset: int, pages: int = 1) -> None:
        """REMOVEMAPPING, in the same."""
        self.do(lambda: self.window.remove([(moffset * self.unit, pages * self.unit)]))

    def truncate(self, file: HostFile, size: int) -> None:
        """SETATTR of a size."""

        def act() -> None:
            self.window.before(file.key, size, size)
            with self.window.shrinking(file.key, size):
                os.truncate(file.path, size)
            self.window.after(file.key, size, size)

        self.do(act)

    def read(self, moffset: int, pages: int = 1) -> bytes:
        """What the guest sees."""
        return self.region.read(moffset * self.unit, pages * self.unit)

    def store(self, moffset: int, data: bytes, at: int = 0) -> None:
        """What the guest does by mmap."""
        self.region.write(moffset * self.unit + at, data)

    def sync(self, key: tuple[int, int] | None = None) -> None:
        """What FSYNC of an open file does, which was opened first of all; or SYNCFS."""
        self.do(lambda: self.window.write_back(key))
        self._told[key], error = self.window.failures.after(key, self._told.get(key, 0))
        if error:
            raise OSError(error, os.strerror(error))


@contextmanager
def window_of(pages: int = 16, *, write: bool = True) -> Iterator[Guest]:
    """A window of copies that a session has begun with."""
    with served(Windowed(lambda region: CopyWindow(pages * PAGE, region, write=write)), PAGE) as guest:
        guest.do(guest.window.begin)
        yield guest


def direct(units: int, alignment: int, *, write: bool = True, unsafe: bool = False) -> Windowed:
    """A device with a window of files, in units of a power of two."""

    def make(region: Callable[[], SharedMemory]) -> DirectWindow:
        return DirectWindow(units << alignment, region, write=write, unsafe=unsafe, alignment=alignment)

    return Windowed(make)


@contextmanager
def direct_window_of(
    units: int, *, alignment: int, write: bool = True, kind: type[Frontend] = Frontend, **options: Unpack[FrontendOptions]
) -> Iterator[Guest]:
    """Such a window that a session has begun with, behind a front-end of some kind."""
    with served(direct(units, alignment, write=write), 1 << alignment, kind, **options) as guest:
        guest.do(guest.window.begin)
        yield guest


@contextmanager
def served(
    device: Windowed, unit: int, kind: type[Frontend] = Frontend, **options: Unpack[FrontendOptions]
) -> Iterator[Guest]:
    """The device behind a connection, and its window, which has not begun."""
    back = Served(device)
    try:
        with kind(back.connected(), **options) as frontend:
            frontend.share_memory(1 << 20)
            queue = frontend.start_queue(0, size=4)
            yield Guest(device, frontend.shm[0], lambda: queue.exchange(b"!", 0), unit)
    finally:
        back.stop()
        device.window.close()


class Meanwhile:
    """A lock before which something else is done first, once."""

    def __init__(self, act: Callable[[], object]) -> None:
        self._lock, self._act = threading.RLock(), act

    def __enter__(self) -> None:
        act, self._act = self._act, int
        act()
        self._lock.__enter__()

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self._lock.__exit__(kind, value, trace)
