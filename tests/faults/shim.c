/* System calls that fail on demand: preloaded into a Python process, which says through vhu_arm() which call is to fail.
 *
 * A call is named after what it does, whatever its variants are called: "open" is openat64 as well. What the C library calls
 * within itself does not come by here, so its own memory and threads' stacks are left alone. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/uio.h>
#include <sys/vfs.h>
#include <unistd.h>

enum { NOTHING = 0, SHORT = -1, TRUNCATED = -2 }; /* beside errnos: do one byte of it; lose the fds that came */
enum { ANY, MINE, OTHERS };                        /* whose calls count: those of the thread that armed it, or of others */

static char armed_call[32];
static int armed_first, armed_times, armed_number, armed_whose;
static pid_t armed_by;
static int armed, seen, failed;

/* Fail the `first` call of that name from now on, and those behind it, `times` in all. */
void vhu_arm(const char *call, int first, int times, int number, int whose)
{
    strncpy(armed_call, call, sizeof(armed_call) - 1);
    armed_first = first, armed_times = times, armed_number = number, armed_whose = whose;
    armed_by = gettid();
    seen = failed = 0;
    __atomic_store_n(&armed, 1, __ATOMIC_SEQ_CST);
}

/* Let every call work again. How many were made to fail. */
int vhu_disarm(void)
{
    __atomic_store_n(&armed, 0, __ATOMIC_SEQ_CST);
    return __atomic_load_n(&failed, __ATOMIC_SEQ_CST);
}

/* What is to become of a call: NOTHING, an errno, SHORT or TRUNCATED. */
static int fate(const char *call)
{
    int at;
    if (!__atomic_load_n(&armed, __ATOMIC_SEQ_CST) || strcmp(call, armed_call))
        return NOTHING;
    if (armed_whose != ANY && (gettid() == armed_by) != (armed_whose == MINE))
        return NOTHING;
    at = __atomic_add_fetch(&seen, 1, __ATOMIC_SEQ_CST);
    if (at < armed_first || at >= armed_first + armed_times)
        return NOTHING;
    __atomic_add_fetch(&failed, 1, __ATOMIC_SEQ_CST);
    return armed_number;
}

#define REAL(name) ((__typeof__(&name))real(#name))

static void *real(const char *name)
{
    return dlsym(RTLD_NEXT, name);
}

#define FAIL_WITH(number, result) do { if ((number) > 0) { errno = (number); return (result); } } while (0)

/* A call that either works or does not. */
#define WHOLE(type, result, call, name, parameters, arguments) \
    type name parameters \
    { \
        int number = fate(call); \
        FAIL_WITH(number, result); \
        return REAL(name) arguments; \
    }

WHOLE(int, -1, "socket", socket, (int family, int type, int protocol), (family, type, protocol))
WHOLE(int, -1, "socketpair", socketpair, (int family, int type, int protocol, int fds[2]), (family, type, protocol, fds))
WHOLE(int, -1, "accept", accept4, (int fd, struct sockaddr *at, socklen_t *size, int flags), (fd, at, size, flags))
WHOLE(int, -1, "connect", connect, (int fd, const struct sockaddr *at, socklen_t size), (fd, at, size))
WHOLE(int, -1, "bind", bind, (int fd, const struct sockaddr *at, socklen_t size), (fd, at, size))
WHOLE(int, -1, "listen", listen, (int fd, int most), (fd, most))
WHOLE(int, -1, "getsockname", getsockname, (int fd, struct sockaddr *at, socklen_t *size), (fd, at, size))
WHOLE(int, -1, "setsockopt", setsockopt, (int fd, int level, int name, const void *value, socklen_t size),
      (fd, level, name, value, size))
WHOLE(int, -1, "eventfd", eventfd, (unsigned int value, int flags), (value, flags))
WHOLE(int, -1, "memfd_create", memfd_create, (const char *name, unsigned int flags), (name, flags))
WHOLE(int, -1, "ftruncate", ftruncate, (int fd, off_t size), (fd, size))
WHOLE(int, -1, "ftruncate", ftruncate64, (int fd, off64_t size), (fd, size))
WHOLE(int, -1, "fstat", fstat, (int fd, struct stat *into), (fd, into))
WHOLE(int, -1, "fstat", fstat64, (int fd, struct stat64 *into), (fd, into))
WHOLE(int, -1, "fstatfs", fstatfs, (int fd, struct statfs *into), (fd, into))
WHOLE(int, -1, "fstatfs", fstatfs64, (int fd, struct statfs64 *into), (fd, into))
WHOLE(int, -1, "fstatfs", fstatvfs64, (int fd, struct statvfs64 *into), (fd, into))
WHOLE(int, -1, "fallocate", fallocate, (int fd, int mode, off_t start, off_t size), (fd, mode, start, size))
WHOLE(int, -1, "fallocate", fallocate64, (int fd, int mode, off64_t start, off64_t size), (fd, mode, start, size))
WHOLE(int, -1, "fdatasync", fdatasync, (int fd), (fd))
WHOLE(int, -1, "fdatasync", fsync, (int fd), (fd))
WHOLE(ssize_t, -1, "copy", copy_file_range, (int in, off64_t *from, int out, off64_t *to, size_t size, unsigned int flags),
      (in, from, out, to, size, flags))
WHOLE(ssize_t, -1, "copy", sendfile64, (int out, int in, off64_t *from, size_t size), (out, in, from, size))

/* A signal interrupts poll() only where nothing is ready. */
int poll(struct pollfd *fds, nfds_t count, int timeout)
{
    int number = fate("poll");
    int ready = number == EINTR ? REAL(poll)(fds, count, 0) : 0;
    if (ready > 0)
        return ready;
    FAIL_WITH(number, -1);
    return REAL(poll)(fds, count, timeout);
}

int pthread_create(pthread_t *made, const pthread_attr_t *how, void *(*run)(void *), void *given)
{
    int number = fate("pthread_create");
    return number > 0 ? number : REAL(pthread_create)(made, how, run, given);
}

/* close() gives the fd back whatever it says: what fails is to write what a file system kept of a file. */
int close(int fd)
{
    struct stat64 what;
    int number = REAL(fstat64)(fd, &what) == 0 && S_ISREG(what.st_mode) ? fate("close") : NOTHING;
    int result = REAL(close)(fd);
    if (!result)
        FAIL_WITH(number, -1);
    return result;
}

/* Python's own memory is left alone: it is private, and may be read. */
static int is_memory(int prot, int flags)
{
    return (flags & MAP_PRIVATE) && prot != PROT_NONE;
}

void *mmap(void *at, size_t size, int prot, int flags, int fd, off_t offset)
{
    int number = is_memory(prot, flags) ? NOTHING : fate("mmap");
    FAIL_WITH(number, MAP_FAILED);
    return REAL(mmap)(at, size, prot, flags, fd, offset);
}

void *mmap64(void *at, size_t size, int prot, int flags, int fd, off64_t offset)
{
    int number = is_memory(prot, flags) ? NOTHING : fate("mmap");
    FAIL_WITH(number, MAP_FAILED);
    return REAL(mmap64)(at, size, prot, flags, fd, offset);
}

void *mremap(void *from, size_t old, size_t size, int flags, ...)
{
    void *to;
    va_list more;
    int number = fate("mremap");
    FAIL_WITH(number, MAP_FAILED);
    va_start(more, flags);
    to = flags & MREMAP_FIXED ? va_arg(more, void *) : NULL;
    va_end(more);
    return flags & MREMAP_FIXED ? REAL(mremap)(from, old, size, flags, to) : REAL(mremap)(from, old, size, flags);
}

#define CONTROL(name, variant, call) \
    int variant(int fd, name##_command command, ...) \
    { \
        void *argument; \
        va_list more; \
        int number = fate(call); \
        FAIL_WITH(number, -1); \
        va_start(more, command); \
        argument = va_arg(more, void *); \
        va_end(more); \
        return REAL(variant)(fd, command, argument); \
    }

typedef int fcntl_command;
typedef unsigned long ioctl_command;
CONTROL(fcntl, fcntl, command == F_DUPFD_CLOEXEC ? "dup" : "fcntl")
CONTROL(fcntl, fcntl64, command == F_DUPFD_CLOEXEC ? "dup" : "fcntl")
CONTROL(ioctl, ioctl, "ioctl")

#define OPENING(variant, parameters, arguments) \
    int variant parameters \
    { \
        mode_t mode; \
        va_list more; \
        int number = fate("open"); \
        FAIL_WITH(number, -1); \
        va_start(more, flags); \
        mode = flags & (O_CREAT | __O_TMPFILE) ? va_arg(more, mode_t) : 0; \
        va_end(more); \
        return REAL(variant) arguments; \
    }

OPENING(open, (const char *path, int flags, ...), (path, flags, mode))
OPENING(open64, (const char *path, int flags, ...), (path, flags, mode))
OPENING(openat, (int at, const char *path, int flags, ...), (at, path, flags, mode))
OPENING(openat64, (int at, const char *path, int flags, ...), (at, path, flags, mode))

/* Bytes of files and sockets: SHORT does one of them. */
#define BYTES(call, name, buffer) \
    ssize_t name(int fd, buffer *data, size_t size, off64_t offset) \
    { \
        int number = fate(call); \
        FAIL_WITH(number, -1); \
        return REAL(name)(fd, data, number == SHORT && size ? 1 : size, offset); \
    }

BYTES("pread", pread64, void)
BYTES("pwrite", pwrite64, const void)

/* The first byte of some parts. */
static struct iovec first_byte(const struct iovec *parts, int count)
{
    struct iovec first = {0};
    for (int at = 0; at < count && !first.iov_len; at++)
        first = (struct iovec){parts[at].iov_base, parts[at].iov_len ? 1 : 0};
    return first;
}

#define VECTORS(call, name, parameters, arguments) \
    ssize_t name parameters \
    { \
        struct iovec first = first_byte(parts, count); \
        int number = fate(call); \
        FAIL_WITH(number, -1); \
        if (number == SHORT) \
            parts = &first, count = 1; \
        return REAL(name) arguments; \
    }

VECTORS("pread", preadv64, (int fd, const struct iovec *parts, int count, off64_t offset), (fd, parts, count, offset))
VECTORS("pwrite", pwritev64, (int fd, const struct iovec *parts, int count, off64_t offset), (fd, parts, count, offset))
VECTORS("pwrite", pwritev64v2, (int fd, const struct iovec *parts, int count, off64_t offset, int flags),
        (fd, parts, count, offset, flags))

/* Eventfds are read by it as well, with an offset of -1: those are no files. */
ssize_t preadv64v2(int fd, const struct iovec *parts, int count, off64_t offset, int flags)
{
    struct iovec first = first_byte(parts, count);
    int number = offset == -1 ? NOTHING : fate("pread");
    FAIL_WITH(number, -1);
    return number == SHORT ? REAL(preadv64v2)(fd, &first, 1, offset, flags) : REAL(preadv64v2)(fd, parts, count, offset, flags);
}

ssize_t send(int fd, const void *data, size_t size, int flags)
{
    int number = fate("send");
    FAIL_WITH(number, -1);
    return REAL(send)(fd, data, number == SHORT && size ? 1 : size, flags);
}

ssize_t sendmsg(int fd, const struct msghdr *message, int flags)
{
    struct msghdr part = *message;
    struct iovec first = first_byte(message->msg_iov, message->msg_iovlen);
    int number = fate("sendmsg");
    FAIL_WITH(number, -1);
    if (number == SHORT)
        part.msg_iov = &first, part.msg_iovlen = 1;
    return REAL(sendmsg)(fd, &part, flags);
}

int sendmmsg(int fd, struct mmsghdr *messages, unsigned int count, int flags)
{
    int number = fate("sendmmsg");
    FAIL_WITH(number, -1);
    return REAL(sendmmsg)(fd, messages, number == SHORT && count ? 1 : count, flags);
}

/* As the kernel does where there is no room for an fd: the bytes come, the fds are closed. */
static void lose_fds(struct msghdr *message)
{
    if (!message->msg_controllen)
        return;
    for (struct cmsghdr *c = CMSG_FIRSTHDR(message); c; c = CMSG_NXTHDR(message, c))
        if (c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_RIGHTS)
            for (size_t at = 0; at < (c->cmsg_len - CMSG_LEN(0)) / sizeof(int); at++)
                REAL(close)(((int *)CMSG_DATA(c))[at]);
    message->msg_controllen = 0;
    message->msg_flags |= MSG_CTRUNC;
}

ssize_t recvmsg(int fd, struct msghdr *message, int flags)
{
    struct iovec *parts = message->msg_iov, first = first_byte(parts, message->msg_iovlen);
    size_t count = message->msg_iovlen;
    int number = fate("recvmsg");
    ssize_t got;
    FAIL_WITH(number, -1);
    if (number == SHORT)
        message->msg_iov = &first, message->msg_iovlen = 1;
    got = REAL(recvmsg)(fd, message, flags);
    message->msg_iov = parts, message->msg_iovlen = count;
    if (number == TRUNCATED && got >= 0)
        lose_fds(message);
    return got;
}
