from libc.stdint cimport uint8_t, uint16_t, uint32_t

from .chain cimport Taken
from .walk cimport DeviceRing

cdef class PackedRing(DeviceRing):
    cdef uint8_t *descriptors
    cdef uint8_t *driver_event
    cdef uint8_t *device_event
    cdef uint32_t *hidden
    cdef uint32_t hidden_count
    cdef uint32_t last
    cdef uint32_t position, used, shown
    cdef bint offered(self) noexcept nogil
    cdef bint take_table(self, const uint8_t *entry, uint16_t flags, Taken *taken) noexcept nogil
    cdef void mark(self, uint32_t row) noexcept nogil
    cdef bint wants(self, uint32_t before) noexcept nogil
    cdef uint32_t behind(self, uint32_t position, uint32_t entries) noexcept nogil
    cdef uint32_t distance(self, uint32_t start, uint32_t end) noexcept nogil
    cdef uint16_t half(self, uint32_t position) noexcept nogil
