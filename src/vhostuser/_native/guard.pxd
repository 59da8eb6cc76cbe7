"""Memory that its file may have lost: who touches it within a guard comes back to its start, instead of dying of SIGBUS.

`if vhu_enter(guard): ...` is taken when that happens; `vhu_exit` ends it. Guards are the thread's own and do not nest; between
the two no Python object may be made, and no lock held but one that is let go of in the branch.
"""

cdef extern from *:
    """
    #ifndef VHU_GUARD
    #define VHU_GUARD
    #include <setjmp.h>
    #include <signal.h>

    /* What a thread has: where it comes back to, whether it is within a guard, and whether it holds a lock there. */
    typedef struct { sigjmp_buf start; volatile sig_atomic_t inside, held; int ready; } vhu_guard;
    #define vhu_enter(guard) ((guard)->inside = 1, sigsetjmp((guard)->start, 0) && ((guard)->inside = 0, 1))
    static inline void vhu_exit(vhu_guard *guard)
    {
        __asm__ volatile("" ::: "memory");  /* all that is guarded comes before */
        guard->inside = 0;
    }
    #endif
    """
    ctypedef struct Guard "vhu_guard":
        int held
        int ready
    bint vhu_enter(Guard *guard) nogil
    void vhu_exit(Guard *guard) noexcept nogil

cdef Guard *own_guard() noexcept nogil
cdef Guard *ready_guard() noexcept
cdef Guard *new_guard() noexcept
