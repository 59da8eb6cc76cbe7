"""Fds by kind: what a request wants, and what it does not."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from typing import Final

from ..conformance.fd_kinds import fully_sealed, on_disk, one_page_read_only, opened, pipe, reopened, unix_socket
from ..protocol.numbers import PAGE
from ..testing.files import memory_file, sparse_file
from ..transport.fds import OwnedFd

MEMORY: Final = 1 << 20
CHANNEL: Final = "channel"
"""The back-end channel: whoever sends it keeps the other end."""


def _eventfd(value: int) -> OwnedFd:
    return OwnedFd(os.eventfd(value, os.EFD_CLOEXEC | os.EFD_NONBLOCK))


def _pipe_to_write() -> OwnedFd:
    read, write = os.pipe2(os.O_CLOEXEC)
    os.close(read)
    return OwnedFd(write)


def _write_sealed() -> OwnedFd:
    fd = memory_file(1, seal=False)
    fcntl.fcntl(fd.fileno(), fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
    return fd


KINDS: Final[dict[str, Callable[[], OwnedFd]]] = {
    "memory": lambda: sparse_file(MEMORY, seal=True),
    "kick": lambda: _eventfd(1),
    "eventfd": lambda: _eventfd(0),
    "full eventfd": lambda: _eventfd(0xFFFFFFFF),
    "short": lambda: memory_file(1),
    "empty": lambda: sparse_file(0),
    "odd": lambda: sparse_file(PAGE + 1),
    "huge": lambda: sparse_file(1 << 40),
    "unsealed": lambda: sparse_file(MEMORY),
    "sealed": fully_sealed,
    "write sealed": _write_sealed,
    "read-only": one_page_read_only,
    "write-only": lambda: reopened(os.O_WRONLY),
    "path": lambda: reopened(os.O_PATH),
    "file": on_disk,
    "directory": lambda: opened("/"),
    "null": lambda: opened("/dev/null", os.O_RDWR),
    "pipe": pipe,
    "pipe to write": _pipe_to_write,
    "socket": unix_socket,
}
"""What makes each. The first three are what requests want."""


def made(kind: str) -> OwnedFd:
    """A new fd of a kind."""
    return KINDS[kind]()
