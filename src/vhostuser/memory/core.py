"""Mapping and unmapping in a window when all is right, in few steps: the twin of `_native.window.WindowCore`.

Nothing here says no in words. What is not entirely right changes nothing and gives false; `memory.window` then goes the long
way, where the same checks have their texts.
"""

from __future__ import annotations

import fcntl
import mmap
import os
from stat import S_IFMT, S_IFREG
from typing import Final

from ..protocol.numbers import END_OF_FILE_OFFSETS, MAP_RW, PAGE
from ..protocol.regions import Mapping, MappingTable, Quota
from .mapping import (
    FAILED,
    MAP_FIXED,
    MREMAP_FIXED,
    MREMAP_MAYMOVE,
    RESERVED,
    has_huge_pages,
    sys_mmap,
    sys_mremap,
    sys_munmap,
)

F_GET_SEALS: Final = 1034
F_SEAL_SHRINK: Final = 2
_PAGE_MASK: Final = PAGE - 1
_MOVE: Final = MREMAP_MAYMOVE | MREMAP_FIXED
_PROT: Final = (mmap.PROT_READ, mmap.PROT_READ | mmap.PROT_WRITE)


def is_sealed(fd: int) -> bool:
    """The file of `fd` can't become shorter."""
    try:
        return bool(fcntl.fcntl(fd, F_GET_SEALS) & F_SEAL_SHRINK)
    except OSError:
        return False


def _has(fd: int, end: int) -> bool:
    """The file of `fd` has that many bytes."""
    try:
        return end <= os.fstat(fd).st_size
    except OSError:
        return False


class WindowCore:
    """The map and unmap of one window."""

    def __init__(self, base: int, size: int, table: MappingTable, quota: Quota, populate: bool) -> None:
        self._base, self._size, self._table, self._quota = base, size, table, quota
        self._flags = mmap.MAP_SHARED | (mmap.MAP_POPULATE if populate else 0)

    def map(self, fd: int, shm_offset: int, len: int, fd_offset: int, flags: int) -> bool:  # noqa: PLR0911  # one a check
        """SHMEM_MAP: false if it is not done, and nothing has changed."""
        end = fd_offset + len
        if not len or (shm_offset | len | fd_offset) & _PAGE_MASK or shm_offset + len > self._size or flags > MAP_RW:
            return False
        if end >= END_OF_FILE_OFFSETS or not self._table.fits(shm_offset, len) or self._quota.exhausted():
            return False
        try:
            status = os.fstat(fd)
        except OSError:
            return False
        if S_IFMT(status.st_mode) != S_IFREG or end > status.st_size:
            return False
        if status.st_blksize > PAGE and has_huge_pages(fd):
            return False
        scratch = sys_mmap(None, len, _PROT[flags], self._flags, fd, fd_offset)
        if scratch == FAILED:
            return False
        if sys_mremap(scratch, len, len, _MOVE, self._base + shm_offset) == FAILED:
            sys_munmap(scratch, len)
            self._restore(shm_offset, len)
            return False
        mapping = Mapping(shm_offset, len, fd_offset, flags == MAP_RW)
        sealed = not status.st_nlink and is_sealed(fd) and _has(fd, end)  # it may have shrunk before the seal
        self._table.insert(mapping, sealed=sealed)
        self._quota.add(1)
        return True

    def unmap(self, shm_offset: int, len: int) -> bool:
        """SHMEM_UNMAP: false if it is not done, and nothing has changed."""
        mapping = self._table.exact(shm_offset, len)
        if mapping is None or not self._restore(shm_offset, len):
            return False
        self._table.remove(mapping)
        self._quota.add(-1)
        return True

    def _restore(self, shm_offset: int, len: int) -> bool:
        return bool(sys_mmap(self._base + shm_offset, len, 0, RESERVED | MAP_FIXED, -1, 0) != FAILED)
