from libc.stdint cimport uint8_t, uint16_t, uint32_t

from .walk cimport DeviceRing, Taken

cdef class SplitRing(DeviceRing):
    cdef public uint16_t base
    cdef uint8_t *descriptors
    cdef uint8_t *available
    cdef uint8_t *used
    cdef uint16_t next, shown, mask
    cdef void give(self, uint32_t head, uint32_t written) noexcept nogil
    cdef bint wants(self, uint16_t before) noexcept nogil
