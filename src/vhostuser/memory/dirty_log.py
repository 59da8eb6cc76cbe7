"""The dirty log: one bit a page of guest memory, set after the device wrote there ("Migration").

Others change it at the same time: the front-end, which fetches and clears bits, and back-ends of other devices, which set
them. So a bit must be set atomically, which Python can't; the kernel can, by a futex operation (FUTEX_WAKE_OP), and it says
EFAULT where the front-end took the log's pages away. It is a system call a page: the price of pure Python while a migration
runs. Little-endian hosts only.
"""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Iterable
from typing import Final

from ..errors import MemoryFault, RemoteProtocolError
from ..protocol.payloads import Log
from .guest import GuestMemory, span
from .mapping import block_size, map_file, start_of

LOG_PAGE: Final = 0x1000
"""Bytes of memory that one bit stands for (VHOST_LOG_PAGE)."""
FUTEX_WAKE_OP: Final = 5
SET_ONE_BIT: Final = (2 | 8) << 28  # FUTEX_OP_OR, of 1 << operand
_SYS_FUTEX: Final = {"x86_64": 202, "ppc64le": 221}.get(platform.machine(), 98)

_syscall = ctypes.CDLL(None, use_errno=True).syscall
_syscall.restype = ctypes.c_long
_syscall.argtypes = (
    ctypes.c_long, ctypes.c_void_p, ctypes.c_int, ctypes.c_int, ctypes.c_long, ctypes.c_void_p, ctypes.c_uint
)  # fmt: skip


def log_size(end: int) -> int:
    """Bytes of a log that covers guest addresses up to `end`."""
    return -(-end // (8 * LOG_PAGE))


class DirtyLog:
    """The log area of SET_LOG_BASE, mapped, for memory up to `end`. RemoteProtocolError if it is too small or can't be."""

    def __init__(self, body: Log, fd: int, end: int) -> None:
        self.size = body.mmap_size
        if (needed := log_size(end)) > self.size:
            text = f"SET_LOG_BASE mmap_size {self.size:#x} is less than guest memory up to {end:#x} needs, {needed:#x}"
            raise _refusal(text, self.size, needed)
        there = os.fstat(fd).st_size
        if not body.mmap_size or body.mmap_offset + body.mmap_size > there:
            text = f"SET_LOG_BASE mmap_offset {body.mmap_offset:#x} + mmap_size {body.mmap_size:#x} is empty or passes"
            raise _refusal(f"{text} the file's end {there:#x}", body.mmap_size, there)
        try:
            start, length, skip = span(body.mmap_offset, body.mmap_size, block_size(fd))
            self._mapped = map_file(fd, length, start)
        except OSError as error:
            raise _refusal(f"SET_LOG_BASE: the log can't be mapped: {error}", body.mmap_size, there) from None
        self._base = start_of(self._mapped) + skip

    def mark_views(self, memory: GuestMemory, views: Iterable[memoryview]) -> None:
        """Mark all that a device may have written in a chain: it may have written anywhere in its buffers."""
        for guest_addr, size in memory.homes(views):
            self.mark(guest_addr, size)

    def mark(self, guest_addr: int, size: int) -> None:
        """Mark the pages of `size` bytes at a guest address. MemoryFault if the log has no bit for one, or is gone."""
        for page in range(guest_addr // LOG_PAGE, (guest_addr + size - 1) // LOG_PAGE + 1):
            if page // 8 >= self.size:
                raise MemoryFault(f"page {page:#x} of guest memory has no bit in the dirty log of {self.size:#x} bytes")
            self._set(self._base + page // 8, page % 8)

    def _set(self, address: int, bit: int) -> None:
        word, shift = address & ~3, (address & 3) * 8 + bit
        if _syscall(_SYS_FUTEX, word, FUTEX_WAKE_OP, 0, 0, word, SET_ONE_BIT | shift << 12) < 0:
            reason = os.strerror(ctypes.get_errno())
            raise MemoryFault(f"the dirty log at {address - self._base:#x} can't be written: {reason}")


def _refusal(text: str, value: int, limit: int) -> RemoteProtocolError:
    return RemoteProtocolError(text, request="SET_LOG_BASE", field="mmap_size", value=value, limit=limit)
