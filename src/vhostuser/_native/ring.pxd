from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

ctypedef struct Region:
    uint64_t start
    uint64_t len
    uint8_t *at
    void *view
    bint readonly

ctypedef struct Piece:
    uint8_t *at
    uint32_t len
    void *view

ctypedef struct Taken:
    uint16_t head
    uint32_t readable
    uint32_t count

cdef class RegionTable:
    cdef Region *regions
    cdef uint32_t count
    cdef Region *last
    cdef list views
    cdef Region *find(self, uint64_t addr) noexcept nogil

cdef class SplitRing:
    cdef readonly uint32_t size
    cdef public uint16_t base
    cdef readonly bint indirect, event_idx
    cdef readonly object memory
    cdef RegionTable table
    cdef tuple parts
    cdef object pure
    cdef uint8_t *descriptors
    cdef uint8_t *available
    cdef uint8_t *used
    cdef uint8_t *copy
    cdef Piece *pieces
    cdef uint32_t room
    cdef uint16_t next, shown, mask
    cdef int left
    cdef bint fresh, resting
    cdef int waiting(self) noexcept nogil
    cdef uint16_t ask(self) noexcept nogil
    cdef void rest(self) noexcept nogil
    cdef bint take(self, Taken *taken) noexcept nogil
    cdef int keep(self, Taken *taken) noexcept nogil
    cdef void finish(self, Taken *taken, uint32_t written) noexcept nogil
    cdef void give(self, uint32_t head, uint32_t written) noexcept nogil
    cdef bint show(self) noexcept nogil
    cdef bint wants(self, uint16_t before) noexcept nogil
    cdef bint enter(self, uint64_t addr, uint32_t len, uint16_t flags) noexcept nogil
    cdef bint lay(self, uint64_t addr, uint64_t len, bint writable, Taken *taken) noexcept nogil
    cdef object explain(self)
    cdef object next_chain(self)
