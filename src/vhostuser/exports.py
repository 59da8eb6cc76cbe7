"""What the front-end has told of as memory: QEMU does so with each mapping of a device, after it has answered for it.

So that is when a mapping is there for all who look ("SHMEM_MAP" is answered before).
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import NamedTuple

from .memory.guest import GuestMemory


class FileRange(NamedTuple):
    """Bytes of a file, by st_dev and st_ino."""

    device: int
    inode: int
    offset: int
    len: int


class Exports:
    """The files of the memory table. The thread that serves the front-end changes it, any other may wait for it."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._files: frozenset[FileRange] = frozenset()

    def update(self, memory: GuestMemory) -> None:
        """The front-end's memory is this from now on."""
        with self._changed:
            self._files = frozenset(
                FileRange(region.file[0], region.file[1], region.offset, region.view.nbytes) for region in memory.regions
            )
            self._changed.notify_all()

    def wait(self, ranges: Iterable[FileRange], timeout: float) -> bool:
        """Whether all of these are memory of the front-end, once they are or `timeout` seconds have passed."""
        wanted = frozenset(ranges)
        with self._changed:
            return self._changed.wait_for(lambda: wanted <= self._files, timeout)
