"""The buffers of a request as a file's reads and writes take them."""

from libc.stdint cimport int64_t, uint32_t, uint64_t

from .chain cimport Piece

cdef struct Cursor:
    # Where in the buffers of a request it goes on.
    Piece *piece
    uint32_t skip


cdef inline void forward(Cursor *at, uint64_t size) noexcept nogil:
    """Go on behind `size` bytes, which are there."""
    while size and size >= at.piece.len - at.skip:
        size -= at.piece.len - at.skip
        at.piece, at.skip = at.piece + 1, 0
    at.skip += <uint32_t>size

cdef int64_t transfer(Cursor *data, uint64_t size, int fd, int64_t offset, bint writes) noexcept nogil
