"""The bytes of READ and WRITE: straight between the file and the guest's buffers, none of them goes through Python.

That holds for memory that may shrink, too.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Callable
from typing import Final, Protocol

from ...fuse.rules import IN_HEADER_SIZE, OUT_HEADER_SIZE
from ...fuse.structs import WriteIn
from ...virtio.chain import DescriptorChain
from ..vectors import append_from, read_into, write_from

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

    def append(self, fd: int, size: int) -> int:
        """Write them to the end of the file, over nothing that others append meanwhile. OSError if none was."""


class ChainRoom:
    """The writable bytes of a request behind the answer's header."""

    __slots__ = ("_chain", "size")

    def __init__(self, chain: DescriptorChain, room: int) -> None:
        self._chain = chain
        self.size = room - OUT_HEADER_SIZE

    def preadv(self, fd: int, size: int, offset: int) -> int:
        """As Outgoing."""
        if size > self.size or offset + size > LARGEST_OFFSET:
            raise OSError(errno.EINVAL, f"READ offset {offset:#x} size {size:#x}: {self.size:#x} bytes fit")
        if (done := read_into(self._chain, fd, offset, start=OUT_HEADER_SIZE, size=size)) == size:
            return done
        return _rest(
            lambda at: read_into(self._chain, fd, offset + at, start=OUT_HEADER_SIZE + at, size=size - at), done, size
        )


class ChainSource:
    """The readable bytes of a WRITE behind its arguments."""

    __slots__ = ("_chain", "size")

    def __init__(self, chain: DescriptorChain, present: int) -> None:
        self._chain = chain
        self.size = present - WRITE_DATA

    def pwritev(self, fd: int, size: int, offset: int) -> int:
        """As Incoming."""
        self._check(size)
        if offset + size > LARGEST_OFFSET:
            raise OSError(errno.EFBIG, f"WRITE offset {offset:#x} size {size:#x} passes the end of all files")
        if (done := write_from(self._chain, fd, offset, start=WRITE_DATA, size=size)) == size:
            return done
        return _rest(lambda at: write_from(self._chain, fd, offset + at, start=WRITE_DATA + at, size=size - at), done, size)

    def append(self, fd: int, size: int) -> int:
        """As Incoming."""
        self._check(size)
        done = more = append_from(self._chain, fd, start=WRITE_DATA, size=size)
        with contextlib.suppress(OSError):  # what is there is there: done again it would be there twice
            while more and done < size:
                done += (more := append_from(self._chain, fd, start=WRITE_DATA + done, size=size - done))
        return done

    def _check(self, size: int) -> None:
        if size > self.size:
            raise OSError(errno.EINVAL, f"WRITE size {size:#x}: {self.size:#x} bytes are there")


def _rest(move: Callable[[int], int], done: int, size: int) -> int:
    """After a part, call `move`, with how much is done, until all is done or it does nothing: how much that is.

    What fails after a part was done fails as a whole: to the guest a short read is the end of the file.
    """
    while 0 < done < size and (more := move(done)):
        done += more
    return done
