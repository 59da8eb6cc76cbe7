"""The bytes of READ and WRITE: straight between the file and the guest's buffers, none of them goes through Python."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from ...fuse.rules import IN_HEADER_SIZE, OUT_HEADER_SIZE
from ...fuse.structs import WriteIn
from ...virtio.chain import DescriptorChain, cut
from ..vectors import MOST_BUFFERS

WRITE_DATA: Final = IN_HEADER_SIZE + WriteIn.STRUCT.size
"""Where the data of a WRITE begin."""
LARGEST_OFFSET: Final = (1 << 63) - 1
"""The last offset of a file."""


class Outgoing(Protocol):
    """Where the data of an answer go."""

    size: int
    """Bytes that fit."""

    def preadv(self, fd: int, size: int, offset: int) -> int:
        """Fill it with `size` bytes of the file from `offset` on, or those before its end; how many. Raises OSError."""


class Incoming(Protocol):
    """Where the data of a request are."""

    size: int
    """Bytes that are there."""

    def pwritev(self, fd: int, size: int, offset: int) -> int:
        """Write its first `size` bytes to the file at `offset`; how many were taken. Raises OSError."""


class ChainRoom:
    """The writable bytes of a request behind the answer's header."""

    __slots__ = ("_views", "size")

    def __init__(self, chain: DescriptorChain, room: int) -> None:
        self._views = chain.writable
        self.size = room - OUT_HEADER_SIZE

    def preadv(self, fd: int, size: int, offset: int) -> int:
        """As Outgoing."""
        if size > self.size or offset + size > LARGEST_OFFSET:
            raise OSError(errno.EINVAL, f"READ offset {offset:#x} size {size:#x}: {self.size:#x} bytes fit")
        views = _behind(self._views, OUT_HEADER_SIZE, size, whole=size == self.size)
        return _move(os.preadv, fd, views, size, offset)


class ChainSource:
    """The readable bytes of a WRITE behind its arguments."""

    __slots__ = ("_views", "size")

    def __init__(self, chain: DescriptorChain, present: int) -> None:
        self._views = chain.readable
        self.size = present - WRITE_DATA

    def pwritev(self, fd: int, size: int, offset: int) -> int:
        """As Incoming."""
        if size > self.size:
            raise OSError(errno.EINVAL, f"WRITE size {size:#x}: {self.size:#x} bytes are there")
        if offset + size > LARGEST_OFFSET:
            raise OSError(errno.EFBIG, f"WRITE offset {offset:#x} size {size:#x} passes the end of all files")
        views = _behind(self._views, WRITE_DATA, size, whole=size == self.size)
        return _move(os.pwritev, fd, views, size, offset)


def _behind(views: Sequence[memoryview], start: int, size: int, *, whole: bool) -> Sequence[memoryview]:
    """The pieces of `views` from `start` on, `size` bytes, which may be the whole; drivers mostly cut them just there."""
    if whole and views[0].nbytes == start:
        return views[1:]
    return cut(views, start, size)


def _move(
    call: Callable[[int, Sequence[memoryview], int], int], fd: int, views: Sequence[memoryview], size: int, offset: int
) -> int:
    """Repeat `call`, which may do a part only, until all is done or it does nothing; how much it did.

    What fails after a part was done fails as a whole: to the guest a short read is the end of the file.
    """
    done = 0
    while done < size and (more := call(fd, views[:MOST_BUFFERS], offset + done)):
        done += more
        if done < size:
            views = cut(views, more, size - done)
    return done
