"""What guards share: the one handler of SIGBUS, and what each thread has. And copies by the kernel, which need no guard."""

from cpython.buffer cimport PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport uint64_t

cdef extern from *:
    """
    #ifndef _GNU_SOURCE
    #define _GNU_SOURCE
    #endif
    #include <errno.h>
    #include <stdint.h>
    #include <string.h>
    #include <sys/uio.h>
    #include <unistd.h>

    static __thread vhu_guard vhu_mine __attribute__((tls_model("initial-exec")));
    static __thread volatile sig_atomic_t vhu_passing __attribute__((tls_model("initial-exec")));
    static struct sigaction vhu_others;

    /* Go back to the start of this thread's guard, if memory is gone. Else it is for whoever was here before; a fault of his is
       for nobody. */
    static void vhu_on_fault(int number, siginfo_t *info, void *context)
    {
        int theirs = (vhu_others.sa_flags & SA_SIGINFO)
                     || (vhu_others.sa_handler != SIG_DFL && vhu_others.sa_handler != SIG_IGN);
        if (vhu_mine.inside && info->si_code > 0)
            siglongjmp(vhu_mine.start, 1);
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

    /* Let this thread get SIGBUS; its fault would end the process otherwise. */
    static inline void vhu_unblock(void)
    {
        sigset_t faults;
        sigemptyset(&faults);
        sigaddset(&faults, SIGBUS);
        pthread_sigmask(SIG_UNBLOCK, &faults, NULL);
    }

    /* See to it that faults within a guard come here, whoever has asked for them since. The GIL must be held. */
    static inline void vhu_catch_faults(void)
    {
        struct sigaction now, ours;
        if (sigaction(SIGBUS, NULL, &now) || ((now.sa_flags & SA_SIGINFO) && now.sa_sigaction == vhu_on_fault))
            return;
        memset(&ours, 0, sizeof(ours));
        ours.sa_sigaction = vhu_on_fault;
        ours.sa_flags = SA_SIGINFO | SA_NODEFER | SA_ONSTACK;
        vhu_others = now;
        sigaction(SIGBUS, &ours, NULL);
    }

    static inline vhu_guard *vhu_own(void) { return &vhu_mine; }

    /* Let the kernel copy between two places of this process: the bytes done, or the errno of a page that is not there. */
    static inline ssize_t vhu_copy(int writes, void *ours, uint64_t address, size_t size)
    {
        size_t done = 0;
        while (done < size) {
            struct iovec near = {(char *)ours + done, size - done}, far = {(void *)(uintptr_t)(address + done), size - done};
            ssize_t count = writes ? process_vm_writev(getpid(), &near, 1, &far, 1, 0)
                                   : process_vm_readv(getpid(), &near, 1, &far, 1, 0);
            if (count <= 0)
                return count ? -errno : -EFAULT;
            done += count;
        }
        return 0;
    }
    """
    Guard *vhu_own() noexcept nogil
    void vhu_catch_faults()
    void vhu_unblock()
    ssize_t vhu_copy(bint writes, void *ours, uint64_t address, size_t size) noexcept nogil


cdef Guard *own_guard() noexcept nogil:
    """The guard of this thread."""
    return vhu_own()


cdef Guard *ready_guard() noexcept:
    """The same, where faults come here, unless others asked for them since the last `new_guard`. The GIL must be held."""
    return vhu_own() if vhu_own().ready else new_guard()


cdef Guard *new_guard() noexcept:
    """The same, after another look at who gets this process's SIGBUS. The GIL must be held."""
    vhu_catch_faults()
    if not vhu_own().ready:
        vhu_unblock()
    vhu_own().ready = 1
    return vhu_own()


def copy_here(buffer not None, uint64_t address):
    """Fill a writable buffer with the bytes at `address`: 0, or the errno where they are not there."""
    return moved(buffer, address, False)


def copy_there(buffer not None, uint64_t address):
    """Write a writable buffer's bytes to `address`: as `copy_here`."""
    return moved(buffer, address, True)


cdef int moved(buffer, uint64_t address, bint writes) except -1:
    cdef Py_buffer given
    cdef ssize_t result
    PyObject_GetBuffer(buffer, &given, PyBUF_WRITABLE)
    try:
        result = vhu_copy(writes, given.buf, address, given.len)
    finally:
        PyBuffer_Release(&given)
    return <int>-result
