from cpython.pythread cimport PyThread_type_lock
from libc.stdint cimport int64_t

from .walk cimport DeviceRing

cpdef enum:
    # Why a queue's thread comes back to Python.
    WORK = 0  # something waits
    LEFT = 1  # the request that waits next is for Python
    WOKEN = 2  # the waker was set, or `leave` called
    UNREADABLE = 3  # the kick can't be read
    ABANDONED = 4  # a stop did not wait: the ring is not this thread's any more
    GONE = 5  # memory of the driver's is not there any more

cdef enum:
    EMPTY = -1  # nothing waits

cdef extern from *:
    """
    #ifndef VHU_LOOK
    #define VHU_LOOK
    static inline int vhu_look(const int *at) { return __atomic_load_n(at, __ATOMIC_ACQUIRE); }
    static inline void vhu_say(int *at, int value) { __atomic_store_n(at, value, __ATOMIC_RELEASE); }
    #endif
    """
    int vhu_look(const int *at) noexcept nogil
    void vhu_say(int *at, int value) noexcept nogil

cdef class Handover:
    cdef PyThread_type_lock lock
    cdef int call, leaving, epoch
    cdef void hold(self) noexcept nogil
    cdef void let_go(self) noexcept nogil
    cdef int gone(self) noexcept nogil
    cdef void call_driver(self) noexcept nogil

cdef int idle(DeviceRing ring, Handover handover, int kick, int waker, int64_t spin) noexcept nogil
cdef int quiet(DeviceRing ring) noexcept nogil
cdef int depart(DeviceRing ring, Handover handover, int epoch, int why) noexcept nogil
