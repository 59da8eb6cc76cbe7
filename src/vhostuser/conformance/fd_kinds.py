"""Files to map, and what is none."""

from __future__ import annotations

import fcntl
import os
import socket
import tempfile
from collections.abc import Callable
from typing import Final

from ..protocol.numbers import PAGE
from ..testing.files import F_ADD_SEALS, memory_file, read_only
from ..transport.fds import OwnedFd

ALL_SEALS: Final = 0x1 | 0x2 | 0x4
"""F_SEAL_SEAL, F_SEAL_SHRINK, F_SEAL_GROW."""
Make = Callable[[], OwnedFd]


def fully_sealed() -> OwnedFd:
    """A memfd that neither shrinks nor grows, ever."""
    fd = memory_file(1, seal=False)
    fcntl.fcntl(fd.fileno(), F_ADD_SEALS, ALL_SEALS)
    return fd


def on_disk(pages: int = 1) -> OwnedFd:
    """A file without a name, of zeros."""
    with tempfile.TemporaryFile() as file:
        file.truncate(pages * PAGE)
        return OwnedFd(fcntl.fcntl(file.fileno(), fcntl.F_DUPFD_CLOEXEC, 3))


def reopened(flags: int) -> OwnedFd:
    """A memfd of a page, opened once more with these flags."""
    with memory_file(1) as fd:
        return OwnedFd(os.open(f"/proc/self/fd/{fd.fileno()}", flags | os.O_CLOEXEC))


def opened(path: str, flags: int = os.O_RDONLY) -> OwnedFd:
    """What is at a path."""
    return OwnedFd(os.open(path, flags | os.O_CLOEXEC))


def pipe() -> OwnedFd:
    """The end of a pipe that is read."""
    read, write = os.pipe2(os.O_CLOEXEC)
    os.close(write)
    return OwnedFd(read)


def unix_socket() -> OwnedFd:
    """A socket without a peer."""
    return OwnedFd(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM).detach())


def one_page_read_only() -> OwnedFd:
    """A memfd of a page that is open for reading."""
    with memory_file(1) as fd:
        return read_only(fd)


MAPPABLE: Final[dict[str, tuple[str, Make]]] = {
    "an_unsealed_memfd": ("A memfd need not be sealed.", lambda: memory_file(1, seal=False)),
    "a_memfd_that_can_not_shrink": ("A memfd may be sealed against shrinking.", lambda: memory_file(1)),
    "a_memfd_with_all_seals": ("A memfd may be sealed against all changes of its size.", fully_sealed),
    "a_file_on_disk": ("A regular file is a file.", on_disk),
}
"""What can be mapped."""
UNMAPPABLE: Final[dict[str, tuple[str, Make]]] = {
    "a_directory": ("A directory has no pages.", lambda: opened("/")),
    "a_pipe": ("A pipe has no pages.", pipe),
    "a_socket": ("A socket has no pages.", unix_socket),
    "an_eventfd": ("An eventfd has no pages.", lambda: OwnedFd(os.eventfd(0, os.EFD_CLOEXEC))),
    "dev_null": ("This device has no pages.", lambda: opened("/dev/null", os.O_RDWR)),
    "a_path": ("An fd that is open for its path only (O_PATH) can't be mapped.", lambda: reopened(os.O_PATH)),
    "a_file_open_for_writing_only": ("mmap() wants an fd that is open for reading.", lambda: reopened(os.O_WRONLY)),
}
"""What can't."""
