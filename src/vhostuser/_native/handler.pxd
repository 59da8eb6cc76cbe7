"""What serves a queue without Python, and the bytes of a request as it reads and writes them."""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

from .chain cimport Piece, Taken
from .handover cimport Handover
from .transfer cimport Cursor, forward
from .walk cimport DeviceRing

cdef class Handler:
    cdef int owed  # Python has something to do for it, soon
    cdef int guarded(
        self, DeviceRing ring, Handover handover, int epoch, int kick, int waker, int64_t spin, bint stays
    ) except -2
    cdef int64_t perform(self, Piece *pieces, Taken *taken) noexcept nogil
    cdef void seal(self, Piece *pieces, Taken *taken) noexcept nogil
    cdef bint settle(self) except False


cdef int keep(DeviceRing ring, Taken *taken, uint32_t written) noexcept nogil
cdef int publish(DeviceRing ring, Handover handover, int epoch, int why) noexcept nogil


cdef inline void copy(Cursor *at, uint8_t *bytes, uint32_t size, bint writes) noexcept nogil:
    """Bytes out of the buffers, or into them."""
    cdef uint32_t part
    while size:
        part = min(size, at.piece.len - at.skip)
        if writes:
            memcpy(at.piece.at + at.skip, bytes, part)
        else:
            memcpy(bytes, at.piece.at + at.skip, part)
        size, bytes = size - part, bytes + part
        forward(at, part)


cdef inline uint64_t total(Piece *pieces, uint32_t count) noexcept nogil:
    cdef uint64_t size = 0
    cdef uint32_t at
    for at in range(count):
        size += pieces[at].len
    return size
