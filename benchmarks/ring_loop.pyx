"""A native loop over our compiled rings, as a device has one that moves data without Python; and the drivers it serves."""

from libc.stdint cimport uint8_t, uint16_t
from libc.string cimport memcpy
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec

from vhostuser._native.chain cimport Taken
from vhostuser._native.live cimport vhu_fence
from vhostuser._native.walk cimport DeviceRing


cdef bint once(DeviceRing ring) noexcept nogil:
    """Give back all that waits; whether to tell the driver."""
    cdef Taken taken
    cdef int left = ring.waiting()
    while left > 0 and ring.take(&taken):
        left = ring.keep(&taken)
        ring.finish(&taken, ring.pieces[taken.count - 1].len)
    return ring.show()


cdef long now() noexcept nogil:
    cdef timespec time
    clock_gettime(CLOCK_MONOTONIC, &time)
    return time.tv_sec * 1000000000 + time.tv_nsec


def serve(DeviceRing ring, uint16_t[:] available, int batches, uint16_t chains):
    """Offer batches of chains in a split ring and give each back: the nanoseconds, and of how many the driver heard."""
    cdef long heard = 0, start = now()
    with nogil:
        while batches:
            batches -= 1
            available[1] = available[1] + chains
            heard += once(ring)
    return now() - start, heard


def serve_packed(DeviceRing ring, uint8_t[::1] descriptors, const uint8_t[:, ::1] rounds, int batches):
    """The same in a packed ring that a batch fills; what the driver does is not counted."""
    cdef long heard = 0, spent = 0, start
    cdef int at
    with nogil:
        for at in range(batches):
            memcpy(&descriptors[0], &rounds[at & 1, 0], descriptors.shape[0])
            vhu_fence()
            start = now()
            heard += once(ring)
            spent += now() - start
    return spent, heard
