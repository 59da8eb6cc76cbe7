"""Builders: messages that may be wrong, and files to map."""

from __future__ import annotations

import fcntl
import os
from typing import Final

from ..protocol.layout import Payload
from ..protocol.numbers import PAGE, VERSION
from ..protocol.payloads import HEADER
from ..transport.fds import OwnedFd

F_ADD_SEALS: Final = 1033
F_SEAL_SHRINK: Final = 2


def body_bytes(body: Payload | bytes | None) -> bytes:
    """A payload as bytes, whichever way it is given."""
    return b"" if body is None else body if isinstance(body, bytes) else body.pack()


def message(request: int, body: Payload | bytes | None = None, *, flags: int = VERSION, size: int | None = None) -> bytes:
    """A message as it goes on the wire, right or wrong: `size` is what the header says instead of the body's size."""
    payload = body_bytes(body)
    return HEADER.pack(int(request), flags, len(payload) if size is None else size) + payload


def memory_file(pages: int = 1, *, fill: bytes | None = None, seal: bool = True) -> OwnedFd:
    """A memfd of `pages` pages, sealed against shrinking unless `seal` is false.

    Page n is full of the byte n, or the file begins with `fill`.
    """
    fd = OwnedFd(os.memfd_create("vhostuser-testing", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING))
    os.ftruncate(fd.fileno(), pages * PAGE)
    os.pwrite(fd.fileno(), b"".join(bytes([page % 256]) * PAGE for page in range(pages)) if fill is None else fill, 0)
    if seal:
        fcntl.fcntl(fd.fileno(), F_ADD_SEALS, F_SEAL_SHRINK)
    return fd


def sparse_file(size: int, *, seal: bool = False) -> OwnedFd:
    """A memfd of `size` bytes that takes no memory until it is touched, sealed against shrinking if `seal`."""
    fd = OwnedFd(os.memfd_create("vhostuser-testing", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING))
    os.ftruncate(fd.fileno(), size)
    if seal:
        fcntl.fcntl(fd.fileno(), F_ADD_SEALS, F_SEAL_SHRINK)
    return fd


def read_only(fd: OwnedFd) -> OwnedFd:
    """The same file opened read-only."""
    return OwnedFd(os.open(f"/proc/self/fd/{fd.fileno()}", os.O_RDONLY | os.O_CLOEXEC))
