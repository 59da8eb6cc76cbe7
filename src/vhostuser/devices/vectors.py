"""Bytes between a file and the buffers of a request: straight from one to the other, none of them goes through Python."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from typing import Final

MOST_BUFFERS: Final = os.sysconf("SC_IOV_MAX")
"""The most buffers that one system call takes."""


def read_into(fd: int, views: Sequence[memoryview], size: int, offset: int) -> None:
    """Fill `views`, `size` bytes, with the file's from `offset` on. Raises OSError; EIO if the file ends before."""
    _move(os.preadv, fd, views, size, offset)


def write_from(fd: int, views: Sequence[memoryview], size: int, offset: int) -> None:
    """Write all of `views`, `size` bytes, to the file from `offset` on. Raises OSError."""
    _move(os.pwritev, fd, views, size, offset)


def _move(
    call: Callable[[int, Sequence[memoryview], int], int], fd: int, views: Sequence[memoryview], size: int, offset: int
) -> None:
    """Repeat `call`, which may do a part only, until all is done."""
    while (done := call(fd, views[:MOST_BUFFERS], offset)) != size:
        if not done:
            raise OSError(errno.EIO, f"the file ends at {offset:#x}")
        views, size, offset = _rest(views, done), size - done, offset + done


def _rest(views: Sequence[memoryview], done: int) -> list[memoryview]:
    """`views` without their first `done` bytes."""
    for at, view in enumerate(views):
        if done < view.nbytes:
            return [view[done:], *views[at + 1 :]]
        done -= view.nbytes
    return []
