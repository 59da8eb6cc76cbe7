from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from .chain cimport Taken
from .walk cimport DeviceRing

cdef class SplitRing(DeviceRing):
    cdef public uint16_t base
    cdef uint8_t *descriptors
    cdef uint8_t *available
    cdef uint8_t *used
    cdef uint16_t next, shown, mask
    cdef object area
    cdef uint8_t *entries
    cdef uint64_t counter
    cdef list left_over
    cdef Py_ssize_t behind
    cdef void enter(self, uint16_t head) noexcept nogil
    cdef void settle(self, uint16_t count) noexcept nogil
    cdef void give(self, uint32_t head, uint32_t written) noexcept nogil
    cdef bint wants(self, uint16_t before) noexcept nogil
