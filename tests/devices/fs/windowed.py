"""A window behind a connection: the device does what a test tells it to, the test is the guest."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from vhostuser import DescriptorChain, Device
from vhostuser.devices.fs.dax.copy import CopyWindow
from vhostuser.shared_region import SharedRegion
from vhostuser.testing import joined
from vhostuser.transport.fds import OwnedFd

PAGE = 4096


class HostFile:
    """A file of the host, as a share knows it."""

    def __init__(self, path: str, key: tuple[int, int]) -> None:
        self.path, self.key = path, key

    def open(self, flags: int) -> OwnedFd:
        return OwnedFd(os.open(self.path, flags | os.O_CLOEXEC))


class Windowed(Device):
    """Does with its window what it is told."""

    queue_sizes = (4,)
    act: Callable[[], object] | None = None
    error: OSError | None = None

    def __init__(self, pages: int, *, write: bool) -> None:
        self.shared_memory = {0: pages * PAGE}
        self.window = CopyWindow(pages * PAGE, lambda: self.shm[0], write=write)

    def process(self, queue: int, chain: DescriptorChain) -> None:
        self.error = None
        try:
            if self.act:
                self.act()
        except OSError as error:
            self.error = error

    def reset(self) -> None:
        self.window.reset()


class Guest:
    """The window as the guest sees it, and the device's side of it."""

    def __init__(self, device: Windowed, region: SharedRegion, ask: Callable[[], object]) -> None:
        self.device, self.region, self._ask = device, region, ask

    @property
    def window(self) -> CopyWindow:
        return self.device.window

    def do(self, act: Callable[[], object]) -> None:
        """Have the device do something while it serves a request. OSError as it raises it."""
        self.device.act = act
        self._ask()
        if self.device.error:
            raise self.device.error

    def show(self, file: HostFile, foffset: int, moffset: int, pages: int = 1, *, writable: bool = False) -> None:
        """SETUPMAPPING, in pages."""
        setup = self.window.setup
        size = pages * PAGE
        self.do(lambda: setup(file, foffset=foffset * PAGE, size=size, moffset=moffset * PAGE, writable=writable))

    def remove(self, moffset: int, pages: int = 1) -> None:
        """REMOVEMAPPING, in pages."""
        self.do(lambda: self.window.remove([(moffset * PAGE, pages * PAGE)]))

    def read(self, moffset: int, pages: int = 1) -> bytes:
        """What the guest sees."""
        return self.region.read(moffset * PAGE, pages * PAGE)

    def store(self, moffset: int, data: bytes, at: int = 0) -> None:
        """What the guest does by mmap."""
        self.region.write(moffset * PAGE + at, data)


@contextmanager
def window_of(pages: int = 16, *, write: bool = True) -> Iterator[Guest]:
    """A window that a session has begun with."""
    device = Windowed(pages, write=write)
    with joined(device) as pair:
        pair.frontend.share_memory(1 << 20)
        queue = pair.frontend.start_queue(0, size=4)
        guest = Guest(device, pair.frontend.shm[0], lambda: queue.exchange(b"!", 0))
        guest.do(device.window.begin)
        yield guest
    device.window.close()
