"""What both formats of a ring ask of a chain, compiled: its buffers, and where in guest memory they lie.

The short functions are inline, so that each format has them in its own module.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

from .chain cimport Piece, Taken

cdef enum:
    ENTRY = 16  # bytes of a descriptor
    SPARE = 16  # pieces beyond one a descriptor, for buffers that cross regions

cdef enum:
    # As in `virtio.numbers`.
    NEXT = 1
    WRITE = 2
    INDIRECT = 4

ctypedef struct Region:
    uint64_t start
    uint64_t len
    uint64_t plain  # bytes that may be written as well as read: all of them, or none
    uint8_t *at
    void *view
    bint readonly

cdef enum:
    # What a ring does, by number: `DeviceRing.step`.
    LOOK
    TAKE
    KEEP
    FINISH
    SHOW
    ASK
    REST

cdef class RegionTable:
    cdef Region *regions
    cdef uint32_t count
    cdef Region *last
    cdef list views
    cdef bint fragile

cdef class DeviceRing:
    cdef readonly uint32_t size
    cdef readonly bint indirect, event_idx
    cdef readonly object memory
    cdef object pure
    cdef RegionTable table
    cdef tuple parts
    cdef Piece *pieces
    cdef uint32_t room
    cdef uint8_t *copy
    cdef int left
    cdef bint fresh, resting, guarded
    cdef int waiting(self) noexcept nogil
    cdef bint take(self, Taken *taken) noexcept nogil
    cdef int keep(self, Taken *taken) noexcept nogil
    cdef void finish(self, Taken *taken, uint32_t written) noexcept nogil
    cdef bint show(self) noexcept nogil
    cdef bint ask(self) noexcept nogil
    cdef void rest(self) noexcept nogil
    cdef object explain(self)
    cdef object next_chain(self)
    cdef int step(self, int what, Taken *taken, uint32_t written) noexcept nogil
    cdef int safely(self, int what, Taken *taken, uint32_t written) except -2
    cdef bint prepare(
        self, uint32_t size, tuple parts, memory, RegionTable table, bint indirect, bint event_idx, pure
    ) except False

cdef object own(given)
cdef uint8_t *start_of(view, Py_ssize_t needed) except NULL
cdef int lay_pieces(DeviceRing ring, uint64_t addr, uint64_t len, bint writable, int count) noexcept nogil


cdef inline Region *find(RegionTable table, uint64_t addr) noexcept nogil:
    """The region that has a byte at `addr`, if one has. Most buffers are where the one before them was."""
    cdef uint32_t low = 0, high = table.count, middle
    if addr - table.last.start < table.last.len:
        return table.last
    while low < high:
        middle = (low + high) >> 1
        if table.regions[middle].start <= addr:
            low = middle + 1
        else:
            high = middle
    if low == 0 or addr - table.regions[low - 1].start >= table.regions[low - 1].len:
        return NULL
    table.last = &table.regions[low - 1]
    return table.last


cdef inline int lay(
    DeviceRing ring, Region *here, uint64_t addr, uint64_t len, bint writable, int readable, int count
) noexcept nogil:
    """Add a buffer to the `count` pieces, one a region that it crosses: how many there are now.

    -1 where no memory is, or not of its kind. Most buffers lie `here`, where the one before the chain was, and nowhere else:
    there is room for one of those a descriptor, whatever `lay_pieces` has laid.
    """
    cdef Piece *piece = &ring.pieces[count]
    cdef uint64_t skip = addr - here.start
    if not writable and count > readable:
        return -1
    if skip >= here.plain or len - 1 >= here.plain - skip:  # or it is empty
        return lay_pieces(ring, addr, len, writable, count)
    piece.at, piece.len, piece.view = here.at + skip, <uint32_t>len, here.view
    return count + 1


cdef inline bint enter(DeviceRing ring, uint64_t addr, uint32_t len, uint16_t flags) noexcept nogil:
    """Copy an indirect table into `copy` ("Indirect Descriptors"); false if it is not one that may be entered."""
    cdef uint32_t done = 0, part
    cdef Region *region
    if not ring.indirect or flags & NEXT or len == 0 or len % ENTRY or len > ring.size * ENTRY:
        return False
    while done < len:
        region = find(ring.table, addr)
        if region == NULL:
            return False
        part = <uint32_t>min(<uint64_t>(len - done), region.len - (addr - region.start))
        memcpy(ring.copy + done, region.at + (addr - region.start), part)
        done, addr = done + part, addr + part
        if addr == 0 and done < len:
            return False
    return True
