"""The queue of a device, compiled: its thread stays here, without the GIL, as long as what comes is ordinary.

A handler does what is ordinary. A request that is unusual, wrong or fails is left in the ring, where Python finds it and does
it once more, with the texts and statuses.
"""

from libc.stdint cimport UINT32_MAX, int64_t, uint32_t

from .chain cimport Piece, Taken
from .guard cimport Guard, new_guard, vhu_enter, vhu_exit
from .handover cimport ABANDONED, EMPTY, LEFT, WOKEN, WORK, Handover, depart, idle, quiet, vhu_look
from .walk cimport DeviceRing


cdef class Handler:
    """Serves rings, each in a thread of its own: `perform` says how."""

    def serve(self, DeviceRing ring not None, Handover handover not None, int epoch, int kick, int waker, int64_t spin):
        """Serve a ring until something is wanted of Python: LEFT, WOKEN, UNREADABLE, ABANDONED or GONE.

        `epoch` and `spin` are as in `Handover.wait`.
        """
        return self.guarded(ring, handover, epoch, kick, waker, spin, True)

    def serve_waiting(self, DeviceRing ring not None, Handover handover not None, int epoch):
        """Serve what waits in a ring, and come back: WORK if all is done."""
        cdef int why = self.guarded(ring, handover, epoch, -1, -1, 0, False)
        return WORK if why == EMPTY else why

    cdef int guarded(
        self, DeviceRing ring, Handover handover, int epoch, int kick, int waker, int64_t spin, bint stays
    ) except -2:
        """Serve a ring whose memory may go meanwhile: what waits, or, if one stays, what comes as well."""
        cdef int why
        cdef Guard *guard = new_guard()
        with nogil:
            if vhu_enter(guard):
                why = handover.gone()
            else:
                if stays:
                    why = stay(ring, self, handover, epoch, kick, waker, spin)
                else:
                    why = batch(ring, self, handover, epoch)
                vhu_exit(guard)
        self.settle()
        return why

    cdef int64_t perform(self, Piece *pieces, Taken *taken) noexcept nogil:
        """Do a request; the bytes that the driver is told of, or -1 if that is Python's to do."""
        return -1

    cdef void seal(self, Piece *pieces, Taken *taken) noexcept nogil:
        """A request that was done is about to be given back: write what says so in it."""

    cdef bint settle(self) except False:
        """Do what is owed."""
        return True


cdef int stay(
    DeviceRing ring, Handler handler, Handover handover, int epoch, int kick, int waker, int64_t spin
) noexcept nogil:
    cdef int why = quiet(ring)
    while why == WORK:
        why = batch(ring, handler, handover, epoch)
        if why == EMPTY:
            why = idle(ring, handover, kick, waker, spin)
    return why if why == LEFT else depart(ring, handover, epoch, why)


cdef int batch(DeviceRing ring, Handler handler, Handover handover, int epoch) noexcept nogil:
    """Do what waits, and show it in one go: WORK or EMPTY, or why Python is wanted."""
    cdef int left = ring.waiting(), why = WORK if left > 0 else EMPTY if left == 0 else LEFT
    cdef Taken taken
    cdef int64_t written
    while left > 0 and why == WORK:
        if vhu_look(&handover.leaving):
            why = WOKEN
        elif not ring.take(&taken):
            why = LEFT
        else:
            written = handler.perform(ring.pieces, &taken)
            handover.hold()
            if handover.epoch != epoch:
                why = ABANDONED
            elif written < 0:
                why = LEFT
            else:
                handler.seal(ring.pieces, &taken)  # before anything is said of the request: the memory may be gone
                left = keep(ring, &taken, <uint32_t>min(written, <int64_t>UINT32_MAX))
            handover.let_go()
            if why == WORK and vhu_look(&handler.owed):
                why = LEFT
    if why != ABANDONED and why != EMPTY:
        why = publish(ring, handover, epoch, why)
    return why


cdef int keep(DeviceRing ring, Taken *taken, uint32_t written) noexcept nogil:
    """Say that a request is done; how many more wait."""
    cdef int left = ring.keep(taken)
    ring.finish(taken, written)
    return left


cdef int publish(DeviceRing ring, Handover handover, int epoch, int why) noexcept nogil:
    """Show the driver what is done, and call it if it wants that."""
    handover.hold()
    if handover.epoch != epoch:
        why = ABANDONED
    elif ring.show():
        handover.call_driver()
    handover.let_go()
    return why
