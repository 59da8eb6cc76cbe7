"""File descriptors with one owner."""

from __future__ import annotations

import errno
import os
import warnings
from collections.abc import Iterable
from types import TracebackType
from typing import Protocol, Self


class HasFileno(Protocol):
    """An open file, a socket, an OwnedFd: anything with a `fileno()`."""

    def fileno(self) -> int:
        """The number of its fd."""


class OwnedFd:
    """An fd that is closed exactly once: by `close`, at the end of a `with`, or by whoever `detach` hands it to.

    One that is dropped unclosed is closed with a ResourceWarning.
    """

    __slots__ = ("_fd",)

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def fileno(self) -> int:
        """The number of the fd; ValueError once it is closed or handed over."""
        if self._fd < 0:
            raise ValueError("this fd was closed or handed over")
        return self._fd

    @property
    def closed(self) -> bool:
        """It is closed or handed over."""
        return self._fd < 0

    def detach(self) -> int:
        """Hand the number over: the caller closes it."""
        fd, self._fd = self.fileno(), -1
        return fd

    def close(self) -> None:
        """Close it, unless it already is."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            close_fd(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"OwnedFd({self._fd})" if self._fd >= 0 else "OwnedFd(closed)"

    def __del__(self) -> None:
        fd = getattr(self, "_fd", -1)
        if fd >= 0:
            self.close()
            warnings.warn(f"fd {fd} was dropped unclosed", ResourceWarning, stacklevel=2, source=self)


def close_fd(fd: int) -> None:
    """Close an fd. Linux gives it back whatever the file says, and a peer's file may say anything: that is no error here."""
    try:
        os.close(fd)
    except OSError as error:
        if error.errno == errno.EBADF:
            raise


def close_all(fds: Iterable[OwnedFd]) -> None:
    """Close every fd of `fds`."""
    for fd in fds:
        fd.close()


def fileno_of(file: int | HasFileno) -> int:
    """The fd behind a number or a file object. TypeError for a path, and for a bool, which is meant as something else."""
    if isinstance(file, bool):
        raise TypeError(f"{file} is no fd")
    if isinstance(file, int):
        return file
    if not hasattr(file, "fileno"):
        raise TypeError(f"{file!r} is no file: an fd or what has fileno(), not a path")
    return file.fileno()


def duplicated(file: int | HasFileno) -> OwnedFd:
    """A new fd of a file."""
    return OwnedFd(os.dup(fileno_of(file)))
