"""What both compiled halves of the back-end channel need of C: a message's layout, and receiving it with its fds."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t

cdef extern from *:
    """
    #ifndef _GNU_SOURCE
    #define _GNU_SOURCE
    #endif
    #include <errno.h>
    #include <fcntl.h>
    #include <poll.h>
    #include <string.h>
    #include <sys/socket.h>
    #include <time.h>
    #include <unistd.h>

    #define VHU_FDS 253
    #define VHU_SCM_PIDFD 4 /* an fd, too, that comes if whoever shares the socket has set SO_PASSPIDFD */
    #define VHU_BATCH 64

    typedef struct { uint32_t request, flags, size; } vhu_header;
    typedef struct { uint8_t shmid, padding[7]; uint64_t fd_offset, shm_offset, len, flags; } vhu_mmap;
    typedef struct { vhu_header header; vhu_mmap body; } __attribute__((packed)) vhu_request;
    typedef struct { vhu_header header; uint64_t status; } __attribute__((packed)) vhu_ack;

    /* Read at most `want` bytes and the fds with them; *truncated says that fds were lost. */
    static inline ssize_t vhu_receive(int sock, void *data, size_t want, int flags, int *fds, int *count, int *truncated)
    {
        union { struct cmsghdr align; char room[CMSG_SPACE(VHU_FDS * sizeof(int))]; } control;
        struct iovec part = { data, want };
        struct msghdr message = { .msg_iov = &part, .msg_iovlen = 1,
                                  .msg_control = &control, .msg_controllen = sizeof(control) };
        ssize_t got = recvmsg(sock, &message, flags | MSG_CMSG_CLOEXEC);
        *count = 0;
        *truncated = got >= 0 && (message.msg_flags & MSG_CTRUNC);
        if (got < 0 || message.msg_controllen == 0)
            return got;
        for (struct cmsghdr *c = CMSG_FIRSTHDR(&message); c; c = CMSG_NXTHDR(&message, c)) {
            if (c->cmsg_level != SOL_SOCKET || (c->cmsg_type != SCM_RIGHTS && c->cmsg_type != VHU_SCM_PIDFD))
                continue;
            int here = (int)((c->cmsg_len - CMSG_LEN(0)) / sizeof(int));
            memcpy(fds + *count, CMSG_DATA(c), here * sizeof(int));
            *count += here;
        }
        return got;
    }

    /* The payload: fds belong to the first byte of a message, so here there is no room for any, and *truncated says it. */
    static inline ssize_t vhu_receive_rest(int sock, void *data, size_t want, int *truncated)
    {
        struct iovec part = { data, want };
        struct msghdr message = { .msg_iov = &part, .msg_iovlen = 1 };
        ssize_t got = recvmsg(sock, &message, MSG_DONTWAIT);
        *truncated = got >= 0 && (message.msg_flags & MSG_CTRUNC);
        return got;
    }

    static inline double vhu_now(void)
    { struct timespec t; clock_gettime(CLOCK_MONOTONIC_COARSE, &t); return t.tv_sec + t.tv_nsec * 1e-9; }

    /* The kernel did not take a message. Whether to try again, after a nap: for some seconds, if memory is short. */
    typedef struct { double end, room; long nanoseconds; } vhu_patience;

    static inline int vhu_nap(vhu_patience *patience, double seconds)
    {
        if (errno == EINTR)
            return 1;
        if (errno != ENOMEM && errno != ENOBUFS && errno != ETOOMANYREFS)
            return 0;
        int number = errno;
        double now = vhu_now();
        if (!patience->nanoseconds)
            patience->end = now + seconds, patience->nanoseconds = 1000000;
        if (now < patience->end) {
            struct timespec nap = { 0, patience->nanoseconds };
            nanosleep(&nap, NULL);
            if (patience->nanoseconds < 32000000)
                patience->nanoseconds *= 2;
            return 1;
        }
        errno = number;
        return 0;
    }
    """
    ctypedef struct vhu_header:
        uint32_t request, flags, size
    ctypedef struct vhu_mmap:
        uint8_t shmid
        uint8_t padding[7]
        uint64_t fd_offset, shm_offset, len, flags
    ctypedef struct vhu_request:
        vhu_header header
        vhu_mmap body
    ctypedef struct vhu_ack:
        vhu_header header
        uint64_t status
    cdef struct pollfd:
        int fd
        short events, revents
    enum: POLLIN, POLLOUT, MSG_DONTWAIT, MSG_NOSIGNAL
    int poll(pollfd *fds, unsigned long count, int timeout) nogil
    ssize_t vhu_receive(int sock, void *data, size_t want, int flags, int *fds, int *count, int *truncated) nogil
    ssize_t vhu_receive_rest(int sock, void *data, size_t want, int *truncated) nogil
    ssize_t send(int sock, const void *data, size_t size, int flags) nogil
    int close(int fd) nogil
    double vhu_now() nogil

cdef enum:
    SHMEM_MAP = 9
    SHMEM_UNMAP = 10
    PLAIN = 0x1
    ASKING = 0x9
    ANSWER = 0x5
    HEADER_SIZE = 12
    BODY_SIZE = 40
    ACK_SIZE = 20
    BATCH = 64
    MOST_FDS = 253
