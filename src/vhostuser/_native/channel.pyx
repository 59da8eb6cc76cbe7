"""SHMEM_MAP and SHMEM_UNMAP, compiled, on both sides: the loop that receives, checks, maps and acknowledges; and the call
that checks, sends and waits for its acknowledgement.

Both handle what is entirely right, and nothing else. Whatever is not, a wrong field, another request, half a message, a full
table, a signal, goes to Python as it came: `Server.take` and `Line.take` give the bytes and fds that were read.
"""

from cpython.long cimport PyLong_Check
from libc.errno cimport EAGAIN, EBADF, EINTR, EMFILE, errno
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memset

from .window cimport MappingTable, Quota, WindowCore, give, plain_file, plain_range, take

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
            if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
                continue;
            int here = (int)((c->cmsg_len - CMSG_LEN(0)) / sizeof(int));
            memcpy(fds + *count, CMSG_DATA(c), here * sizeof(int));
            *count += here;
        }
        return got;
    }

    /* Is it an fd that may be sent? One of O_PATH costs QEMU 11.1 its channel. */
    static inline int vhu_sendable(int fd)
    { int flags = fcntl(fd, F_GETFL); return flags >= 0 && !(flags & O_PATH); }

    static inline void vhu_prepare(struct msghdr *message, struct iovec *part, char *control, vhu_request *request, int fd)
    {
        part->iov_base = request;
        part->iov_len = sizeof(*request);
        memset(message, 0, sizeof(*message));
        message->msg_iov = part;
        message->msg_iovlen = 1;
        if (fd >= 0) {
            message->msg_control = control;
            message->msg_controllen = CMSG_SPACE(sizeof(int));
            struct cmsghdr *c = CMSG_FIRSTHDR(message);
            c->cmsg_level = SOL_SOCKET;
            c->cmsg_type = SCM_RIGHTS;
            c->cmsg_len = CMSG_LEN(sizeof(int));
            memcpy(CMSG_DATA(c), &fd, sizeof(int));
        }
    }

    /* Send one request and its fd, if it has one (fd >= 0), in one piece or not at all. */
    static inline ssize_t vhu_send_request(int sock, vhu_request *request, int fd)
    {
        char control[CMSG_SPACE(sizeof(int))] __attribute__((aligned(8)));
        struct iovec part;
        struct msghdr message;
        vhu_prepare(&message, &part, control, request, fd);
        ssize_t sent;
        do
            sent = sendmsg(sock, &message, MSG_NOSIGNAL);
        while (sent < 0 && errno == EINTR);
        return sent;
    }

    /* Send several in one system call, each with its fd, or all in one piece if they have none; how many went out whole. */
    static inline int vhu_send_requests(int sock, vhu_request *requests, int *fds, int count)
    {
        if (fds[0] < 0) {
            ssize_t whole;
            do
                whole = send(sock, requests, count * sizeof(*requests), MSG_NOSIGNAL);
            while (whole < 0 && errno == EINTR);
            return whole < 0 ? -1 : whole % sizeof(*requests) ? 0 : (int)(whole / sizeof(*requests));
        }
        char control[VHU_BATCH][CMSG_SPACE(sizeof(int))] __attribute__((aligned(8)));
        struct iovec parts[VHU_BATCH];
        struct mmsghdr messages[VHU_BATCH];
        memset(control, 0, sizeof(control));
        for (int i = 0; i < count; i++)
            vhu_prepare(&messages[i].msg_hdr, &parts[i], control[i], &requests[i], fds[i]);
        int sent;
        do
            sent = sendmmsg(sock, messages, count, MSG_NOSIGNAL);
        while (sent < 0 && errno == EINTR);
        for (int i = 0; i < sent; i++)
            if (messages[i].msg_len != sizeof(vhu_request))
                return i;
        return sent;
    }

    static inline double vhu_now(void)
    { struct timespec t; clock_gettime(CLOCK_MONOTONIC_COARSE, &t); return t.tv_sec + t.tv_nsec * 1e-9; }
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
    enum: POLLIN, MSG_DONTWAIT, MSG_NOSIGNAL, VHU_FDS, VHU_BATCH
    int poll(pollfd *fds, unsigned long count, int timeout) nogil
    ssize_t vhu_receive(int sock, void *data, size_t want, int flags, int *fds, int *count, int *truncated) nogil
    int vhu_sendable(int fd) nogil
    ssize_t vhu_send_request(int sock, vhu_request *request, int fd) nogil
    int vhu_send_requests(int sock, vhu_request *requests, int *fds, int count) nogil
    ssize_t recv(int sock, void *data, size_t size, int flags) nogil
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
    MOST_OTHERS = 8

cdef enum Step:
    HANDLED
    EMPTY
    FOR_PYTHON

cpdef enum:
    # What Server.run returns instead of an fd.
    EXPIRED = -1
    TAKE = -2
    NOT_TAKEN = -3
    # What Caller.map and Caller.unmap return instead of a status.
    UNSENT = -11
    REST = -12
    STALE = -13


cdef class Server:
    """The front-end's receiving loop on the back-end channel."""

    cdef int fd
    cdef void *cores[256]
    cdef list kept
    cdef uint8_t data[52]
    cdef int size
    cdef int fds[253]
    cdef int count
    cdef int truncated
    cdef vhu_ack acks[64]
    cdef int due
    cdef bint streaming
    cdef uint32_t turn
    cdef readonly long messages, sent_acks, maps, unmaps

    def __init__(self, sock, dict windows):
        self.fd = sock.fileno()
        self.kept = list(windows.values())
        for shmid, core in windows.items():
            self.cores[<int>shmid] = <void *><WindowCore?>core

    def run(self, others, double seconds):
        """Answer requests until one of the fds `others` is readable, and return it.

        EXPIRED after `seconds` (negative: never), TAKE if something is there for `take`, NOT_TAKEN if the back-end does not
        take its acknowledgements.
        """
        cdef pollfd watched[MOST_OTHERS + 1]
        cdef int count = len(others), result, at = 0
        if count > MOST_OTHERS:
            raise ValueError("more fds than the loop can watch")
        for other in others:
            watched[at].fd, watched[at].events = other, POLLIN
            at += 1
        watched[count].fd, watched[count].events = self.fd, POLLIN
        with nogil:
            result = self.loop(watched, count, seconds)
        return result

    def take(self):
        """The bytes and fd numbers that were read and not handled, and whether fds were lost with them."""
        data, fds = self.data[:self.size], [self.fds[at] for at in range(self.count)]
        truncated = self.truncated != 0
        self.size = self.count = self.truncated = 0
        return data, fds, truncated

    cdef int loop(self, pollfd *watched, int count, double seconds) noexcept nogil:
        cdef double deadline = vhu_now() + seconds
        cdef double left = seconds
        cdef int ready, at
        while True:
            ready = poll(watched, count + 1, -1 if seconds < 0 else <int>(left * 1000 + 0.999))
            if ready < 0:
                return TAKE
            if watched[count].revents:
                if self.serve() == FOR_PYTHON:
                    return TAKE
                if not self.flush():
                    return NOT_TAKEN
            else:
                for at in range(count):
                    if watched[at].revents:
                        return watched[at].fd
            if seconds >= 0:
                left = deadline - vhu_now()
                if left <= 0:
                    return self.ready_now(watched, count)

    cdef int ready_now(self, pollfd *watched, int count) noexcept nogil:
        """The deadline has passed: what is ready at this moment still counts."""
        cdef int at
        poll(watched, count, 0)
        for at in range(count):
            if watched[at].revents:
                return watched[at].fd
        return EXPIRED

    cdef Step serve(self) noexcept nogil:
        """Handle one request, and those behind it if the back-end sends them without waiting.

        To find out costs a system call. So it is tried at every fourth message only, until it was worth it.
        """
        cdef Step step = self.one()
        self.turn += 1
        if not self.streaming and self.turn & 3:
            return step
        while step == HANDLED:
            if self.due == VHU_BATCH and not self.flush():
                return HANDLED
            step = self.one()
            self.streaming = step == HANDLED
        if step == FOR_PYTHON:
            self.flush()
        return HANDLED if step == EMPTY else step

    cdef Step one(self) noexcept nogil:
        cdef vhu_request *request = <vhu_request *>self.data
        cdef ssize_t got = vhu_receive(
            self.fd, self.data, HEADER_SIZE, MSG_DONTWAIT, self.fds, &self.count, &self.truncated
        )
        self.size = <int>got if got > 0 else 0
        if got < 0:
            return EMPTY if errno == EAGAIN else FOR_PYTHON
        if got != HEADER_SIZE or self.truncated or request.header.size != BODY_SIZE:
            return FOR_PYTHON
        if request.header.flags != PLAIN and request.header.flags != ASKING:
            return FOR_PYTHON
        if self.count != (request.header.request == SHMEM_MAP):
            return FOR_PYTHON
        if request.header.request != SHMEM_MAP and request.header.request != SHMEM_UNMAP:
            return FOR_PYTHON
        got = recv(self.fd, self.data + HEADER_SIZE, BODY_SIZE, MSG_DONTWAIT)
        if got > 0:
            self.size += <int>got
        if got != BODY_SIZE or not self.perform(request):
            return FOR_PYTHON
        self.messages += 1
        if request.header.flags == ASKING:
            self.acknowledge(request.header.request)
        self.size = self.count = 0
        return HANDLED

    cdef bint perform(self, vhu_request *request) noexcept nogil:
        cdef void *core = self.cores[request.body.shmid]
        if core == NULL:
            return False
        if request.header.request == SHMEM_UNMAP:
            if not (<WindowCore>core).lift(request.body.shm_offset, request.body.len):
                return False
            self.unmaps += 1
            return True
        if not (<WindowCore>core).place(
            self.fds[0], request.body.shm_offset, request.body.len, request.body.fd_offset, request.body.flags
        ):
            return False
        close(self.fds[0])
        self.maps += 1
        return True

    cdef void acknowledge(self, uint32_t request) noexcept nogil:
        cdef vhu_ack *ack = &self.acks[self.due]
        ack.header.request, ack.header.flags, ack.header.size = request, ANSWER, 8
        ack.status = 0
        self.due += 1

    cdef bint flush(self) noexcept nogil:
        """Send the acknowledgements that are due; false if the back-end does not take them."""
        cdef uint8_t *at = <uint8_t *>self.acks
        cdef ssize_t left = self.due * ACK_SIZE, sent
        self.sent_acks += self.due
        self.due = 0
        while left > 0:
            sent = send(self.fd, at, left, MSG_NOSIGNAL)
            if sent < 0:
                if errno == EINTR:
                    continue
                return errno != EAGAIN
            at += sent
            left -= sent
        return True


cdef class Line:
    """What the regions of a device share: the back-end channel, whether it may be used, and the lock for it."""

    cdef int fd
    cdef public bint running
    cdef double seconds
    cdef readonly object lock
    cdef uint8_t data[64 * 20]
    cdef int size
    cdef int fds[253]
    cdef int count
    cdef int error

    def __init__(self, lock):
        self.fd, self.lock, self.seconds = -1, lock, 10

    def use(self, sock, double seconds):
        """Send on `sock` from now on, or on nothing; wait at most `seconds` for an acknowledgement."""
        self.fd, self.seconds = (-1 if sock is None else sock.fileno()), seconds

    def take(self):
        """What came instead of whole acknowledgements: bytes, fd numbers, and the errno that ended it, or 0."""
        data, fds, error = self.data[:self.size], [self.fds[at] for at in range(self.count)], self.error
        self.size = self.count = self.error = 0
        return data, fds, error

    cdef int answers(self, int wanted) noexcept nogil:
        """Wait for that many acknowledgements; how many came whole. They carry no fds, so one read may take several.

        The wait is in poll(): a read that blocks is woken, for nothing, each time that the peer takes a message of ours.
        """
        cdef int truncated, left, want = wanted * ACK_SIZE
        cdef double deadline = 0
        cdef pollfd watched
        cdef ssize_t got
        self.size = self.error = self.count = 0
        watched.fd, watched.events = self.fd, POLLIN
        while self.size < want and not self.count and self.goes_on():
            left = self.left(&deadline)
            got = poll(&watched, 1, left)
            if got > 0:
                got = vhu_receive(
                    self.fd, self.data + self.size, want - self.size, MSG_DONTWAIT, self.fds, &self.count, &truncated
                )
                if got > 0 and not truncated:
                    self.size += <int>got
                    continue
                self.error = errno if got < 0 else 0
                if truncated:
                    self.size, self.error = 0, EMFILE
            elif got == 0:
                self.error = EAGAIN
            elif errno == EINTR:
                continue
            else:
                self.error = errno
            break
        return 0 if self.count else self.size // ACK_SIZE

    cdef bint goes_on(self) noexcept nogil:
        """What came so far is the beginning of acknowledgements: the header of the last has nothing else in it."""
        cdef vhu_ack *last = <vhu_ack *>(self.data + self.size - self.size % ACK_SIZE)
        if self.size % ACK_SIZE < <int>sizeof(last.header):
            return True
        return last.header.flags == ANSWER and last.header.size == 8

    cdef int left(self, double *deadline) noexcept nogil:
        """Milliseconds until the deadline, which begins now if it has not begun."""
        cdef double now = vhu_now()
        if deadline[0] == 0:
            deadline[0] = now + self.seconds
        return max(0, <int>((deadline[0] - now) * 1000 + 0.999))

    cdef int unsent(self, int error) noexcept nogil:
        """A request did not go out whole."""
        self.size = self.count = 0
        self.error = error
        return 0

    cdef bint is_answer(self, int place, uint32_t request) noexcept nogil:
        cdef vhu_ack *ack = <vhu_ack *>(self.data + place * ACK_SIZE)
        return ack.header.request == request and ack.header.flags == ANSWER and ack.header.size == 8


cdef bint number(object value, uint64_t *result):
    """Take an int of 64 bits, and nothing else that could be made one."""
    if not PyLong_Check(value):
        return False
    try:
        result[0] = value
    except OverflowError:
        return False
    return True


cdef class Caller:
    """The back-end's map and unmap of one region."""

    cdef Line line
    cdef MappingTable table
    cdef Quota quota
    cdef uint8_t shmid
    cdef uint64_t size
    cdef public long epoch
    cdef readonly long maps, unmaps
    cdef uint64_t refusal

    def __init__(self, Line line, uint8_t shmid, uint64_t size, MappingTable table, Quota quota):
        self.line, self.shmid, self.size, self.table, self.quota = line, shmid, size, table, quota

    def map(self, int fd, start, size, file_start, bint writable):
        """SHMEM_MAP: the status that came back, UNSENT (ask Python), REST or STALE (a reset came between).

        With REST the lock stays held: `Line.take` says what came, and nobody may change the channel before.
        """
        cdef vhu_request request
        cdef uint64_t shm_offset = 0, len = 0, fd_offset = 0
        cdef long epoch = self.epoch
        cdef int status = UNSENT
        if not number(start, &shm_offset) or not number(size, &len) or not number(file_start, &fd_offset):
            return UNSENT
        if not self.line.running or self.line.fd < 0 or not self.line.lock.acquire(False):
            return UNSENT
        try:
            if not vhu_sendable(fd) or not plain_range(self.size, shm_offset, len) or not plain_file(fd_offset, len):
                return UNSENT
            if not self.table.fits(shm_offset, len) or not take(&self.quota.count):
                return UNSENT
            self.fill(&request, SHMEM_MAP, shm_offset, len, fd_offset, writable)
            with nogil:
                status = self.call(&request, fd)
            if status == 0 and epoch != self.epoch:
                status = STALE
            if status == 0 and self.table.add(shm_offset, len, fd_offset, writable, False):
                self.maps += 1
            else:
                give(&self.quota.count)
            return self.refusal if status > 0 else status
        finally:
            if status != REST:
                self.line.lock.release()

    def unmap(self, start, size):
        """SHMEM_UNMAP: as `map`."""
        cdef vhu_request request
        cdef uint64_t shm_offset = 0, len = 0
        cdef long epoch = self.epoch
        cdef int status = UNSENT
        if not number(start, &shm_offset) or not number(size, &len):
            return UNSENT
        if not self.line.running or self.line.fd < 0 or not self.line.lock.acquire(False):
            return UNSENT
        try:
            if not self.table.has(shm_offset, len):
                return UNSENT
            self.fill(&request, SHMEM_UNMAP, shm_offset, len, 0, False)
            with nogil:
                status = self.call(&request, -1)
            if status == 0 and epoch != self.epoch:
                status = STALE
            if status == 0:
                self.table.drop(shm_offset, len)
                give(&self.quota.count)
                self.unmaps += 1
            return self.refusal if status > 0 else status
        finally:
            if status != REST:
                self.line.lock.release()

    def map_many(self, list requests, list files):
        """SHMEM_MAP for each of `requests` (MapRequest) with its fd of `files`, for SharedMemory, which holds the lock.

        The statuses that came back, fewer if the channel was lost; None, with nothing sent, if anything is not plain.
        """
        cdef int total = len(requests), at = 0, done
        cdef long epoch = self.epoch
        cdef uint64_t shm_offset = 0, length = 0, fd_offset = 0
        cdef bint writable
        for request in requests:
            if not number(request[1], &shm_offset) or not number(request[2], &length) or not number(request[3], &fd_offset):
                break
            if not plain_range(self.size, shm_offset, length) or not plain_file(fd_offset, length):
                break
            if not self.table.fits(shm_offset, length) or not take(&self.quota.count):
                break
            writable = request[4]
            self.table.add(shm_offset, length, fd_offset, writable, False)
            at += 1
        if at < total:
            self.take_back(requests, 0, at)
            return None
        statuses = self.exchange(SHMEM_MAP, requests, files)
        if epoch == self.epoch:
            done = len(statuses)
            self.take_back(requests, done, total)
            for at in range(done):
                if statuses[at]:
                    self.take_back(requests, at, at + 1)
                else:
                    self.maps += 1
        return statuses

    def unmap_many(self, list ranges):
        """SHMEM_UNMAP for each (shm_offset, len) of `ranges`: as `map_many`."""
        cdef int total = len(ranges), at = 0
        cdef long epoch = self.epoch
        cdef uint64_t shm_offset = 0, length = 0
        known = []
        for start, size in ranges:
            mapping = self.table.exact(start, size) if number(start, &shm_offset) and number(size, &length) else None
            if mapping is None:
                break
            self.table.drop(shm_offset, length)
            known.append(mapping)
            at += 1
        statuses = self.exchange(SHMEM_UNMAP, [(None, *each, 0, 0) for each in ranges], None) if at == total else None
        for at in range(len(known)):
            if epoch != self.epoch:
                give(&self.quota.count)  # a reset counts out what is in the table, and these were not
            elif statuses is None or at >= len(statuses) or statuses[at]:
                self.table.insert(known[at])
            else:
                give(&self.quota.count)
                self.unmaps += 1
        return statuses

    cdef void take_back(self, list requests, int start, int end):
        """Those mappings were not made after all."""
        cdef int at
        for at in range(start, end):
            if self.table.drop(requests[at][1], requests[at][2]):
                give(&self.quota.count)

    cdef list exchange(self, uint32_t number, list rows, list files):
        """Send requests, some at a time, and read their answers; fewer statuses if the channel is lost."""
        cdef int total = len(rows), done = 0, batch, at, sent, got
        cdef int fds[64]
        cdef vhu_request requests[64]
        statuses = []
        while done < total:
            batch = min(total - done, VHU_BATCH)
            for at in range(batch):
                row = rows[done + at]
                self.fill(&requests[at], number, row[1], row[2], row[3], 1 if row[4] else 0)
                fds[at] = files[done + at] if files is not None else -1
            with nogil:
                sent = vhu_send_requests(self.line.fd, requests, fds, batch)
                got = self.line.answers(sent) if sent > 0 else self.line.unsent(errno)
            for at in range(got):
                if not self.line.is_answer(at, number):
                    return statuses
                statuses.append((<vhu_ack *>(self.line.data + at * ACK_SIZE)).status)
            done += got
            if sent <= 0 or got < sent:
                return statuses
            self.line.size = 0
        return statuses

    cdef void fill(
        self, vhu_request *request, uint32_t number, uint64_t shm_offset, uint64_t len, uint64_t fd_offset, uint64_t flags
    ) noexcept:
        memset(request, 0, sizeof(vhu_request))
        request.header.request, request.header.flags, request.header.size = number, ASKING, BODY_SIZE
        request.body.shmid, request.body.fd_offset = self.shmid, fd_offset
        request.body.shm_offset, request.body.len, request.body.flags = shm_offset, len, flags

    cdef int call(self, vhu_request *request, int fd) noexcept nogil:
        """Send, wait, and return the status."""
        cdef ssize_t sent = vhu_send_request(self.line.fd, request, fd)
        if sent < 0 and errno == EBADF:
            return UNSENT
        if sent != sizeof(vhu_request):
            self.line.unsent(errno if sent < 0 else EAGAIN)
            return REST
        if self.line.answers(1) != 1 or not self.line.is_answer(0, request.header.request):
            return REST
        self.refusal = (<vhu_ack *>self.line.data).status
        self.line.size = 0
        return self.refusal != 0
