"""Memory that a front-end shares with its back-end: a sealed memfd, handed out from the bottom up."""

from __future__ import annotations

import fcntl
import os
from typing import Final

from ..protocol.payloads import MemoryRegion
from ..transport.fds import OwnedFd
from .mapping import map_file

F_ADD_SEALS: Final = 1033
SEALS: Final = 1 | 2 | 4  # F_SEAL_SEAL, F_SEAL_SHRINK, F_SEAL_GROW


class Arena:
    """`size` bytes of guest memory, at guest address 0 and at the same user address. Raises OSError if they can't be had."""

    def __init__(self, size: int) -> None:
        self.fd = OwnedFd(os.memfd_create("guest-memory", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING))
        try:
            os.ftruncate(self.fd.fileno(), size)
            fcntl.fcntl(self.fd.fileno(), F_ADD_SEALS, SEALS)
            self.view = map_file(self.fd.fileno(), size, 0)
        except BaseException:
            self.fd.close()
            raise
        self.region = MemoryRegion(0, size, 0, 0)
        self._used = 0

    @property
    def free(self) -> int:
        """Bytes that are left."""
        return self.view.nbytes - self._used

    def take(self, size: int, align: int = 16) -> int:
        """The guest address of `size` zeroed bytes; MemoryError if they are not left."""
        start = -(-self._used // align) * align
        if start + size > self.view.nbytes:
            raise MemoryError(f"{size} bytes of shared memory wanted, {max(0, self.view.nbytes - start)} are left")
        self._used = start + size
        self.view[start : start + size] = bytes(size)
        return start

    def mark(self) -> int:
        """Where the next bytes would come from, for `release`."""
        return self._used

    def release(self, mark: int) -> None:
        """Give back all that was taken since `mark`."""
        self._used = mark

    def close(self) -> None:
        """Let go of the memory; it stays mapped while anything else looks at it."""
        self.fd.close()
        self.view, self._used = memoryview(b""), 0
