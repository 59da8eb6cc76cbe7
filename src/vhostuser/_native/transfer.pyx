"""Bytes between a file and the buffers of a request, straight from one to the other: the twin of `devices.vectors`.

The kernel says EFAULT where memory is gone, so that no guard is needed.
"""

import os

from libc.errno cimport EFAULT, errno
from libc.stdint cimport int64_t, uint32_t, uint64_t

from .chain cimport Piece, RingChain

cdef extern from *:
    """
    #ifndef _GNU_SOURCE
    #define _GNU_SOURCE
    #endif
    #include <errno.h>
    #include <limits.h>
    #include <sys/uio.h>
    #include <unistd.h>

    static inline ssize_t vhu_move(int writes, int fd, struct iovec *parts, int count, off_t offset)
    {
        ssize_t done;
        do
            if (count == 1)
                done = writes ? pwrite(fd, parts->iov_base, parts->iov_len, offset)
                              : pread(fd, parts->iov_base, parts->iov_len, offset);
            else
                done = writes ? pwritev(fd, parts, count, offset) : preadv(fd, parts, count, offset);
        while (done < 0 && errno == EINTR);
        return done;
    }
    """
    cdef struct iovec:
        void *iov_base
        size_t iov_len
    int IOV_MAX
    ssize_t vhu_move(bint writes, int fd, iovec *parts, int count, int64_t offset) noexcept nogil


def fill(chain, int fd, int64_t offset, uint64_t start, uint64_t size):
    """Fill `size` writable bytes of a request, from `start` on, with the file's from `offset` on: as `vectors.read_into`.

    -1 where a device has put its own views into the request, or copies stand for memory: its views are to be filled.
    """
    return carry(<RingChain>chain, fd, offset, start, size, False) if type(chain) is RingChain else -1


def drain(chain, int fd, int64_t offset, uint64_t start, uint64_t size):
    """Write `size` readable bytes of a request, from `start` on, to the file: as `vectors.write_from`. -1 as for `fill`."""
    return carry(<RingChain>chain, fd, offset, start, size, True) if type(chain) is RingChain else -1


cdef int64_t carry(RingChain chain, int fd, int64_t offset, uint64_t start, uint64_t size, bint writes) except -2:
    cdef uint32_t first = 0 if writes else chain.readable_count
    cdef uint32_t count = chain.readable_count if writes else chain.count - chain.readable_count
    cdef Cursor data
    cdef uint64_t there = 0
    cdef int64_t done
    cdef uint32_t at
    if not chain.plain(chain.readable_views if writes else chain.writable_views):
        return -1
    for at in range(count):
        there += chain.pieces[first + at].len
    if start >= there:
        return 0
    data.piece, data.skip = chain.pieces + first, 0
    forward(&data, start)
    with nogil:
        done = transfer(&data, min(size, there - start), fd, offset, writes)
    if done >= 0:
        return done
    chain.lost |= chain.guarded and done == -EFAULT
    raise OSError(-done, os.strerror(-done))


cdef int64_t transfer(Cursor *data, uint64_t size, int fd, int64_t offset, bint writes) noexcept nogil:
    """Move `size` bytes, which are there: how many it were, fewer if the file ends or fails; or minus the errno.

    Memory that is gone is always said: the file does not end there.
    """
    cdef iovec parts[1024]
    cdef uint64_t left = size
    cdef ssize_t done
    cdef int count
    while left:
        count = lay_out(data, left, parts, min(IOV_MAX, 1024))
        done = vhu_move(writes, fd, parts, count, offset)
        if done < 0 and (left == size or errno == EFAULT):
            return -errno
        if done <= 0:
            break
        left, offset = left - done, offset + done
        if left:
            forward(data, done)
    return <int64_t>(size - left)


cdef inline int lay_out(Cursor *data, uint64_t size, iovec *parts, int most) noexcept nogil:
    """The next `size` bytes of the buffers as parts, or as many of them as there may be."""
    cdef Piece *piece = data.piece
    cdef uint32_t skip = data.skip
    cdef int count = 0
    while size and count < most:
        if piece.len > skip:
            parts[count].iov_base = piece.at + skip
            parts[count].iov_len = min(size, <uint64_t>(piece.len - skip))
            size -= parts[count].iov_len
            count += 1
        piece, skip = piece + 1, 0
    return count
