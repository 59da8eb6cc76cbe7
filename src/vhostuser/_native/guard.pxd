"""Memory that its file may have lost: who touches it within a guard comes back to its start, instead of dying of SIGBUS.

`if vhu_enter(): ...` is taken when that happens; `vhu_exit` ends the guard. Guards are the thread's own and do not nest; between
the two no Python object may be made, and no lock held but one that is let go of in the branch.
"""

cdef extern from *:
    """
    #ifndef VHU_GUARD
    #define VHU_GUARD
    #include <setjmp.h>
    #include <signal.h>
    #include <string.h>

    static __thread sigjmp_buf vhu_start __attribute__((tls_model("initial-exec")));
    static __thread volatile sig_atomic_t vhu_inside __attribute__((tls_model("initial-exec")));
    static __thread volatile sig_atomic_t vhu_passing __attribute__((tls_model("initial-exec")));
    static struct sigaction vhu_others;

    /* Go back to the start of this thread's guard, if memory is gone. Else it is for whoever was here before; a fault of his is
       for nobody. */
    static void vhu_on_fault(int number, siginfo_t *info, void *context)
    {
        int theirs = (vhu_others.sa_flags & SA_SIGINFO)
                     || (vhu_others.sa_handler != SIG_DFL && vhu_others.sa_handler != SIG_IGN);
        if (vhu_inside && info->si_code > 0)
            siglongjmp(vhu_start, 1);
        if (!theirs || vhu_passing) {
            signal(number, SIG_DFL);
            if (info->si_code <= 0)
                raise(number);
            return;
        }
        vhu_passing = 1;
        if (vhu_others.sa_flags & SA_SIGINFO)
            vhu_others.sa_sigaction(number, info, context);
        else
            vhu_others.sa_handler(number);
        vhu_passing = 0;
    }

    /* See to it that this thread's faults come here, whoever has asked for them since. The GIL must be held. */
    static inline void vhu_catch_faults(void)
    {
        struct sigaction now, ours;
        sigset_t faults;
        sigemptyset(&faults);
        sigaddset(&faults, SIGBUS);
        pthread_sigmask(SIG_UNBLOCK, &faults, NULL);
        if (sigaction(SIGBUS, NULL, &now) || ((now.sa_flags & SA_SIGINFO) && now.sa_sigaction == vhu_on_fault))
            return;
        memset(&ours, 0, sizeof(ours));
        ours.sa_sigaction = vhu_on_fault;
        ours.sa_flags = SA_SIGINFO | SA_NODEFER | SA_ONSTACK;
        vhu_others = now;
        sigaction(SIGBUS, &ours, NULL);
    }

    #define vhu_enter() (vhu_inside = 1, sigsetjmp(vhu_start, 0) && (vhu_inside = 0, 1))
    static inline void vhu_exit(void) { vhu_inside = 0; }
    #endif
    """
    void vhu_catch_faults()
    bint vhu_enter() nogil
    void vhu_exit() noexcept nogil
