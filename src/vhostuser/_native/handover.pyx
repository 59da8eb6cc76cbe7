"""A ring's thread and the one that serves the front-end: what they share, and how the former waits in compiled code."""

cimport cython
from cpython.pythread cimport PyThread_acquire_lock, PyThread_allocate_lock, PyThread_free_lock, PyThread_release_lock
from cpython.pythread cimport PyThread_type_lock, WAIT_LOCK
from libc.stdint cimport int64_t

from .guard cimport Guard, new_guard, own_guard, vhu_enter, vhu_exit
from .walk cimport DeviceRing

cdef extern from *:
    """
    #ifndef _GNU_SOURCE
    #define _GNU_SOURCE
    #endif
    #include <errno.h>
    #include <poll.h>
    #include <stdint.h>
    #include <sys/uio.h>
    #include <time.h>
    #include <unistd.h>

    static inline void vhu_pause(void)
    {
    #if defined(__x86_64__) || defined(__i386__)
        __builtin_ia32_pause();
    #endif
    }

    static inline int64_t vhu_nanoseconds(void)
    {
        struct timespec time;
        clock_gettime(CLOCK_MONOTONIC, &time);
        return time.tv_sec * 1000000000LL + time.tv_nsec;
    }

    /* Add one to an eventfd, unless it is full, which is as good, or not ready to take it. */
    static inline void vhu_set_eventfd(int fd)
    {
        struct pollfd watched = {.fd = fd, .events = POLLOUT};
        uint64_t one = 1;
        if (poll(&watched, 1, 0) == 1 && write(fd, &one, sizeof(one)) < 0)
            return;
    }

    /* Read an eventfd without waiting, even if its other owner has just made it one that waits, and emptied it. */
    static inline ssize_t vhu_take(int fd, uint64_t *count)
    {
        struct iovec part = {count, sizeof(*count)};
        ssize_t got = preadv2(fd, &part, 1, -1, RWF_NOWAIT);
        return got < 0 && errno == EOPNOTSUPP ? read(fd, count, sizeof(*count)) : got;
    }

    /* Wait for a kick or the waker: 1 a kick, which is taken; 0 the waker; -1 a kick that can't be read. */
    static inline int vhu_sleep(int kick, int waker)
    {
        struct pollfd watched[2] = {{.fd = waker, .events = POLLIN}, {.fd = kick, .events = POLLIN}};
        uint64_t count;
        for (;;) {
            if (poll(watched, 2, -1) < 0)
                continue;
            if (watched[0].revents)
                return 0;
            ssize_t got = vhu_take(kick, &count);
            if (got > 0 || (got < 0 && (errno == EAGAIN || errno == EINTR)))
                return 1;
            return -1;
        }
    }

    /* Do nothing for a millisecond, unless the waker is set: whether it is. */
    static inline int vhu_rest(int waker)
    {
        struct pollfd watched = {.fd = waker, .events = POLLIN};
        return poll(&watched, 1, 1) > 0;
    }
    """
    void vhu_pause() noexcept nogil
    int64_t vhu_nanoseconds() noexcept nogil
    void vhu_set_eventfd(int fd) noexcept nogil
    int vhu_sleep(int kick, int waker) noexcept nogil
    int vhu_rest(int waker) noexcept nogil

cdef enum:
    ROUNDS = 16  # looks at a ring between two at the clock
    MOST_EMPTY = 256  # kicks in a row that may find nothing, as in `kick_poller`


@cython.final
cdef class Handover:
    """What a ring's thread and the one that serves the front-end share while the former does not hold the GIL.

    The lock is held for a few instructions and a write to an eventfd, never while a request is in progress.
    """

    def __cinit__(self):
        self.call = -1
        self.lock = PyThread_allocate_lock()
        if self.lock == NULL:
            raise MemoryError("no memory for a lock")

    def __dealloc__(self):
        if self.lock != NULL:
            PyThread_free_lock(self.lock)

    def point(self, int fd):
        """Signal this eventfd from now on, or none (-1). The one of before is not used any more."""
        with nogil:
            self.hold()
            self.call = fd
            self.let_go()

    def signal(self):
        """Set the eventfd, if there is one."""
        with nogil:
            self.hold()
            self.call_driver()
            self.let_go()

    def leave(self):
        """Have the thread come back to Python soon, once its waker is set as well."""
        vhu_say(&self.leaving, 1)

    def stay(self):
        """It has come."""
        vhu_say(&self.leaving, 0)

    def abandon(self):
        """What is in progress is left to itself: nothing of it reaches the ring from now on."""
        with nogil:
            self.hold()
            self.epoch += 1
            self.let_go()

    def wait(self, DeviceRing ring not None, int epoch, int kick, int waker, int64_t spin):
        """Wait for a request in a ring, `spin` nanoseconds awake: WORK, WOKEN, UNREADABLE, ABANDONED or GONE.

        `epoch` is how often `abandon` had been called when the ring was found active.
        """
        cdef int why
        cdef Guard *guard = new_guard()
        with nogil:
            if vhu_enter(guard):
                why = self.gone()
            else:
                why = depart(ring, self, epoch, idle(ring, self, kick, waker, spin))
                vhu_exit(guard)
        return why

    cdef void hold(self) noexcept nogil:
        PyThread_acquire_lock(self.lock, WAIT_LOCK)
        own_guard().held = 1

    cdef void let_go(self) noexcept nogil:
        own_guard().held = 0
        PyThread_release_lock(self.lock)

    cdef int gone(self) noexcept nogil:
        """The thread has come back to the start of its guard."""
        if own_guard().held:
            self.let_go()
        return GONE

    cdef void call_driver(self) noexcept nogil:
        if self.call >= 0:
            vhu_set_eventfd(self.call)


cdef int idle(DeviceRing ring, Handover handover, int kick, int waker, int64_t spin) noexcept nogil:
    """Look for a request without pause, then ask for a kick, look once more and sleep. With WORK no kicks are wanted."""
    cdef int why = awake(ring, handover, spin) if spin > 0 else EMPTY
    cdef int empty = 0
    while why == EMPTY:
        if empty > MOST_EMPTY and vhu_rest(waker):  # a kick that is set without end: a look a millisecond is enough
            why = WOKEN
            break
        empty += 1
        ring.resting = False
        if ring.ask():
            why = quiet(ring)
        elif vhu_look(&handover.leaving):
            why = WOKEN
        else:
            why = asleep(ring, kick, waker)
    return why


cdef int quiet(DeviceRing ring) noexcept nogil:
    """There is work: no kicks are wanted until it is done."""
    ring.resting = True
    ring.rest()
    return WORK


cdef int depart(DeviceRing ring, Handover handover, int epoch, int why) noexcept nogil:
    """Go with kicks wanted, if it is to rest; find out whether the ring is this thread's still."""
    if why == WORK:
        return why
    handover.hold()
    if handover.epoch != epoch:
        why = ABANDONED
    else:
        ring.resting = False
        ring.ask()
    handover.let_go()
    return why


cdef inline int awake(DeviceRing ring, Handover handover, int64_t spin) noexcept nogil:
    """Look at the ring until something waits there, or the time has passed. Kicks are not wanted meanwhile."""
    cdef int64_t end = vhu_nanoseconds() + spin
    cdef int at
    quiet(ring)
    while True:
        for at in range(ROUNDS):
            if vhu_look(&handover.leaving):
                return WOKEN
            if ring.waiting():
                return WORK
            vhu_pause()
        if vhu_nanoseconds() >= end:
            return EMPTY


cdef inline int asleep(DeviceRing ring, int kick, int waker) noexcept nogil:
    cdef int woken_by = vhu_sleep(kick, waker)
    if woken_by <= 0:
        return WOKEN if woken_by == 0 else UNREADABLE
    return quiet(ring) if ring.waiting() else EMPTY
