"""A native loop over our compiled ring, as a device has one that moves data without Python."""

from libc.stdint cimport uint16_t

from vhostuser._native.ring cimport SplitRing, Taken


def serve(SplitRing ring, uint16_t[:] available, int batches, uint16_t chains):
    """Offer batches of chains and give each chain back; how many the driver heard of."""
    cdef Taken taken
    cdef long heard = 0
    cdef int left
    with nogil:
        while batches:
            batches -= 1
            available[1] = ring.base + chains
            left = ring.waiting()
            while left > 0 and ring.take(&taken):
                left -= 1
                ring.base += 1
                ring.give(taken.head, ring.pieces[taken.count - 1].len)
            if ring.show():
                heard += chains
    return heard
