"""Bytes between a file and the buffers of a request: straight from one to the other, none of them goes through Python.

That holds for memory that may shrink, too, until the device has asked for the request's views: they are copies there.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from typing import Final

from .. import _native
from ..virtio.chain import DescriptorChain, cut

MOST_BUFFERS: Final = os.sysconf("SC_IOV_MAX")
"""The most buffers that one system call takes."""

_fill = _native.transfer.fill if _native.accelerated else None
_drain = _native.transfer.drain if _native.accelerated else None


def read_into(chain: DescriptorChain, fd: int, offset: int, *, start: int, size: int) -> int:
    """Fill `size` of the request's writable bytes, from `start` on, with the file's from `offset` on.

    Returns how many it were: fewer where the file or the request ends, or after an error that the next call meets. `written`
    is the caller's to set. Raises OSError as preadv does.
    """
    if _fill and (done := _fill(chain, fd, offset, start, size)) >= 0:
        return done
    return move(os.preadv, fd, cut(chain.writable, start, size), offset)


def write_from(chain: DescriptorChain, fd: int, offset: int, *, start: int, size: int) -> int:
    """Write `size` of the request's readable bytes, from `start` on, to the file from `offset` on: as `read_into`."""
    if _drain and (done := _drain(chain, fd, offset, start, size)) >= 0:
        return done
    return move(os.pwritev, fd, cut(chain.readable, start, size), offset)


def append_from(chain: DescriptorChain, fd: int, *, start: int, size: int) -> int:
    """Write `size` of the request's readable bytes, from `start` on, to the end of the file, wherever others have put that.

    A part that is left goes to the end that there is then. Else as `write_from`.
    """
    return move(_append, fd, cut(chain.readable, start, size), 0)


def _append(fd: int, views: Sequence[memoryview], offset: int) -> int:
    """As os.pwritev, but for the offset."""
    return os.pwritev(fd, views, offset, os.RWF_APPEND)


def move(call: Callable[[int, Sequence[memoryview], int], int], fd: int, views: Sequence[memoryview], offset: int) -> int:
    """Repeat `call`, which may do a part only, until all is done, or no more can be: how many bytes it were."""
    done = 0
    while views:
        try:
            count = call(fd, views[:MOST_BUFFERS], offset + done)
        except OSError as error:
            if not done or error.errno == errno.EFAULT:
                raise
            break
        if not count:
            break
        views, done = _rest(views, count), done + count
    return done


def _rest(views: Sequence[memoryview], done: int) -> list[memoryview]:
    """`views` without their first `done` bytes."""
    for at, view in enumerate(views):
        if done < view.nbytes:
            return [view[done:], *views[at + 1 :]]
        done -= view.nbytes
    return []
