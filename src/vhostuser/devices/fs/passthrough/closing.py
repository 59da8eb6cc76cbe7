"""Files whose close(2) has nothing to say: the guest need not send FLUSH for each, which it would wait for.

A file system of the network writes out what it kept when a file is closed, and says then what failed. One of a local disk
does not, so FLUSH is for the locks of the guest and for what it changed in the window.
"""

from __future__ import annotations

from typing import Final

from ....fuse.numbers import FopenFlag, InitFlag
from . import calls
from .inodes import Fd, Inode
from .state import State

SILENT: Final = frozenset(
    {
        0xEF53,  # ext2, ext3, ext4
        0x58465342,  # XFS
        0x9123683E,  # Btrfs
        0x01021994,  # tmpfs
        0xF2F52010,  # F2FS
        0xCA451A4E,  # bcachefs
    }
)
"""The kinds of file systems that do nothing when a file is closed."""


class Closing:
    """Knows of each of the host's file systems whether it is one of these."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._flags: dict[int, int] = {}

    def flags(self, inode: Inode, fd: Fd) -> int:
        """FOPEN_NOFLUSH, if closing this open file is nothing to tell of."""
        if self._state.settles or self._state.agreed & InitFlag.POSIX_LOCKS:
            return 0
        device = inode.key[0]
        known = self._flags.get(device)
        if known is None:
            silent = calls.file_system(fd.number) in SILENT
            known = self._flags[device] = FopenFlag.NOFLUSH if silent else 0
        return known
