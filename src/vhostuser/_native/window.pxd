from libc.stdint cimport uint8_t, uint32_t, uint64_t

ctypedef struct Entry:
    uint64_t start
    uint64_t len
    uint64_t fd_offset
    uint8_t writable
    uint8_t sealed

ctypedef struct Count:
    long used
    long limit
    Count *parent

cdef class Quota:
    cdef Count count
    cdef readonly str name
    cdef readonly Quota parent

cdef bint take(Count *count) noexcept nogil
cdef void give(Count *count) noexcept nogil

cdef class MappingTable:
    cdef Entry *pool
    cdef uint32_t *order
    cdef uint32_t used
    cdef uint32_t capacity
    cdef int busy
    cdef bint fits(self, uint64_t start, uint64_t len) noexcept nogil
    cdef bint add(self, uint64_t start, uint64_t len, uint64_t fd_offset, bint writable, bint sealed) noexcept nogil
    cdef bint has(self, uint64_t start, uint64_t len) noexcept nogil
    cdef bint drop(self, uint64_t start, uint64_t len) noexcept nogil
    cdef bint grow(self) noexcept nogil
    cdef uint32_t locate(self, uint64_t offset) noexcept nogil
    cdef Entry *at(self, uint32_t place) noexcept nogil
    cdef void acquire(self) noexcept nogil
    cdef void release(self) noexcept nogil

cdef bint plain_range(uint64_t size, uint64_t shm_offset, uint64_t len) noexcept nogil
cdef bint plain_file(uint64_t fd_offset, uint64_t len) noexcept nogil

cdef class WindowCore:
    cdef uint64_t base
    cdef uint64_t size
    cdef MappingTable table
    cdef Quota quota
    cdef int flags
    cdef bint place(self, int fd, uint64_t shm_offset, uint64_t len, uint64_t fd_offset, uint64_t flags) noexcept nogil
    cdef bint lift(self, uint64_t shm_offset, uint64_t len) noexcept nogil
    cdef bint forget(self, uint64_t shm_offset, uint64_t len, Entry *gone) noexcept nogil
    cdef void remember(self, Entry *gone) noexcept nogil
    cdef bint restore(self, uint64_t shm_offset, uint64_t len) noexcept nogil
