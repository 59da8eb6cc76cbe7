"""What is behind an fd, in a few system calls and never by opening or waiting."""

from __future__ import annotations

import fcntl
import os
import stat
from typing import Final

from .event import FdNote

_SEALS: Final = {
    "seal": fcntl.F_SEAL_SEAL,
    "shrink": fcntl.F_SEAL_SHRINK,
    "grow": fcntl.F_SEAL_GROW,
    "write": fcntl.F_SEAL_WRITE,
    "future_write": 0x10,
    "exec": 0x20,
}
_ACCESS: Final = {os.O_RDONLY: "r", os.O_WRONLY: "w", os.O_RDWR: "rw"}
_MODES: Final = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "directory",
    stat.S_IFSOCK: "socket",
    stat.S_IFIFO: "pipe",
    stat.S_IFBLK: "device",
    stat.S_IFCHR: "device",
}
_NAMES: Final = (("/memfd:", "memfd"), ("anon_inode:[eventfd]", "eventfd"), ("/dmabuf:", "dma-buf"))


def described(fd: int) -> FdNote:
    """What `fd` of this process is. Never raises: of an fd that can't be looked at only the number is known."""
    try:
        found = os.fstat(fd)
        path = os.readlink(f"/proc/self/fd/{fd}")
        access = _ACCESS.get(fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE, "")
    except OSError:
        return FdNote(fd, "other", access="")
    kind = next((name for start, name in _NAMES if path.startswith(start)), "")
    kind = kind or _MODES.get(stat.S_IFMT(found.st_mode), "other")
    seals = _seals(fd) if kind in ("memfd", "file") else ()
    return FdNote(fd, kind, path, found.st_dev, found.st_ino, found.st_size, access, seals)


def _seals(fd: int) -> tuple[str, ...]:
    """The seals of a file in memory; none of any other."""
    try:
        mask = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
    except OSError:
        return ()
    return tuple(name for name, bit in _SEALS.items() if mask & bit)
