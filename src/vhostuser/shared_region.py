"""A shared memory region as its driver sees it."""

from __future__ import annotations

from .memory.window import Window
from .protocol.regions import Mapping


class SharedRegion:
    """One region of the back-end's device: what it has mapped there, to read, write and look at.

    Nothing here can be killed by the back-end: what is not there is a MemoryFault.
    """

    def __init__(self, window: Window) -> None:
        self._window = window

    def __repr__(self) -> str:
        return f"<SharedRegion {self._window.shmid}: {self.size:#x} bytes, {len(self.mappings)} mappings>"

    @property
    def size(self) -> int:
        """Bytes of the region."""
        return self._window.size

    @property
    def mappings(self) -> tuple[Mapping, ...]:
        """What is mapped: (shm_offset, len, fd_offset, writable), in order of the offset."""
        return tuple(self._window.table)

    @property
    def address(self) -> int:
        """Where the region lies in this process."""
        return self._window.base

    def read(self, offset: int, len: int) -> bytes:
        """Copy bytes out. MemoryFault if any of them is not mapped, or its file was truncated."""
        return self._window.read(offset, len)

    def write(self, offset: int, data: bytes) -> None:
        """Copy bytes in. MemoryFault if any of them is not mapped or read-only, or its file was truncated."""
        self._window.write(offset, data)

    def view(self, offset: int, len: int, *, unsafe: bool = False) -> memoryview:
        """A view without a copy of bytes within one mapping, whole until you drop it, also past an unmap.

        Only of a file that is sealed against shrinking; `unsafe=True` takes the risk that the back-end truncates the file
        and the next look kills this process (SIGBUS). Else MemoryFault.
        """
        return self._window.view(offset, len, unsafe=unsafe)
