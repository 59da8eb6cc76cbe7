"""The device's end of the back-end channel, compiled: the call that checks, sends and waits for its acknowledgement.

It handles what is entirely right, and nothing else: what is not it leaves unsent, and what comes instead of an acknowledgement
`Line.take` gives to Python as it came.
"""

from cpython.long cimport PyLong_Check
from libc.errno cimport EAGAIN, EINTR, EMFILE, errno
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memset

from .window cimport MappingTable, Quota, give, plain_file, plain_range, take
from .wire cimport *

cdef extern from *:
    """
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

    /* A socket takes no more, or no memory is there. Whether to try again, after a wait: `room` seconds for the one, `scarce`
     * for the other. Not by a send that blocks: whoever gave the socket may have it still, and set its timeouts. */
    static inline int vhu_again(int sock, vhu_patience *patience, double room, double scarce)
    {
        if (errno != EAGAIN)
            return vhu_nap(patience, scarce);
        struct pollfd watched = { sock, POLLOUT, 0 };
        double now = vhu_now(), left;
        if (!patience->room)
            patience->room = now + room;
        left = patience->room - now;
        int ready = left > 0 ? poll(&watched, 1, (int)((left < 1e6 ? left : 1e6) * 1000 + 0.999)) : 0;
        int again = ready > 0 || (ready < 0 && errno == EINTR);
        errno = EAGAIN;
        return again;
    }

    /* Send one request and its fd, if it has one (fd >= 0), in one piece or not at all. */
    static inline ssize_t vhu_send_request(int sock, vhu_request *request, int fd, double seconds)
    {
        vhu_patience patience = {0};
        char control[CMSG_SPACE(sizeof(int))] __attribute__((aligned(8)));
        struct iovec part;
        struct msghdr message;
        vhu_prepare(&message, &part, control, request, fd);
        ssize_t sent;
        do
            sent = sendmsg(sock, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
        while (sent < 0 && vhu_again(sock, &patience, seconds, 0));
        return sent;
    }

    /* Is there nothing to read? */
    static inline int vhu_is_empty(int sock)
    { char byte; return recv(sock, &byte, 1, MSG_PEEK | MSG_DONTWAIT) < 0 && errno == EAGAIN; }

    /* Of what sendmsg says: is the channel over, or read by nobody? All else is about the one message. */
    static inline int vhu_lost(int number)
    { return number == EAGAIN || number == EPIPE || number == ECONNRESET || number == ENOTCONN; }

    /* Send several in one system call, each with its fd, or all in one piece if they have none; how many went out whole.
     * Where memory is short it is tried again for some seconds. */
    static inline int vhu_send_requests(int sock, vhu_request *requests, int *fds, int count, double room, double scarce)
    {
        vhu_patience patience = {0};
        if (fds[0] < 0) {
            ssize_t whole;
            do
                whole = send(sock, requests, count * sizeof(*requests), MSG_NOSIGNAL | MSG_DONTWAIT);
            while (whole < 0 && vhu_again(sock, &patience, room, scarce));
            if (whole > 0 && whole % sizeof(*requests)) {
                errno = EAGAIN;
                return -1;
            }
            return whole < 0 ? -1 : (int)(whole / sizeof(*requests));
        }
        char control[VHU_BATCH][CMSG_SPACE(sizeof(int))] __attribute__((aligned(8)));
        struct iovec parts[VHU_BATCH];
        struct mmsghdr messages[VHU_BATCH];
        memset(control, 0, sizeof(control));
        for (int i = 0; i < count; i++)
            vhu_prepare(&messages[i].msg_hdr, &parts[i], control[i], &requests[i], fds[i]);
        int sent;
        do
            sent = sendmmsg(sock, messages, count, MSG_NOSIGNAL | MSG_DONTWAIT);
        while (sent < 0 && vhu_again(sock, &patience, room, scarce));
        for (int i = 0; i < sent; i++)
            if (messages[i].msg_len != sizeof(vhu_request)) {
                errno = EAGAIN;
                return -1;
            }
        return sent;
    }
    """
    int vhu_sendable(int fd) nogil
    bint vhu_is_empty(int sock) nogil
    ssize_t vhu_send_request(int sock, vhu_request *request, int fd, double seconds) nogil
    int vhu_send_requests(int sock, vhu_request *requests, int *fds, int count, double room, double scarce) nogil
    bint vhu_lost(int number) nogil

cpdef enum:
    # What Caller.map and Caller.unmap return instead of a status.
    UNSENT = -11
    REST = -12
    STALE = -13

cdef enum:
    LOOK_EVERY = 64  # requests after which a channel is looked at for what nobody asked for; the long way always looks
    SCARCE_SECONDS = 1  # for which a request is tried again that may just as well not be sent


cdef class Line:
    """What the regions of a device share: the back-end channel, whether it may be used, and the lock for it."""

    cdef int fd
    cdef public bint running
    cdef double seconds
    cdef readonly object lock
    cdef uint8_t data[BATCH * ACK_SIZE]
    cdef int size
    cdef int fds[MOST_FDS]
    cdef int count
    cdef int error
    cdef uint32_t turn

    def __init__(self, lock):
        self.fd, self.lock, self.seconds = -1, lock, 10

    def use(self, sock, double seconds):
        """Send on `sock` from now on, or on nothing; wait at most `seconds` for an acknowledgement."""
        self.fd, self.seconds, self.turn = (-1 if sock is None else sock.fileno()), seconds, 0

    cdef bint is_quiet(self) noexcept nogil:
        """Nothing has come that a request would take for its answer. To look costs a system call, so it is done rarely."""
        if self.turn % LOOK_EVERY == 0 and not vhu_is_empty(self.fd):
            return False
        self.turn += 1
        return True

    def take(self):
        """What came instead of whole acknowledgements: bytes, fd numbers, and the errno that ended it, or 0.

        It is negative if the kernel took nothing: no acknowledgement is to come, and the channel is as it was.
        """
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
        return max(0, <int>(min(deadline[0] - now, 1e6) * 1000 + 0.999))

    cdef int unsent(self, int error, bint owed) noexcept nogil:
        """A request did not go out whole; not at all, if it is not the channel's fault, and none of its kin went before."""
        self.size = self.count = 0
        self.error = error if owed or vhu_lost(error) else -error
        return 0

    cdef double patience(self, bint owed) noexcept nogil:
        """Seconds for which sending is tried again while memory is short."""
        return self.seconds if owed else min(self.seconds, SCARCE_SECONDS)

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
    cdef readonly long epoch
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
            if mapping is None or not self.table.drop(shm_offset, length):
                break
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

    def forget(self):
        """The front-end has dropped every mapping: requests that are under way are STALE."""
        self.epoch += 1
        self.quota.add(-<long>self.table.used)
        self.table.clear()

    cdef void take_back(self, list requests, int start, int end):
        """Those mappings were not made after all."""
        cdef int at
        for at in range(start, end):
            if self.table.drop(requests[at][1], requests[at][2]):
                give(&self.quota.count)

    cdef list exchange(self, uint32_t number, list rows, list files):
        """Send requests, some at a time, and read their answers; fewer statuses if the channel is lost."""
        cdef int total = len(rows), done = 0, batch, at, sent, got
        cdef int fds[BATCH]
        cdef vhu_request requests[BATCH]
        statuses = []
        while done < total:
            batch = min(total - done, BATCH)
            for at in range(batch):
                row = rows[done + at]
                self.fill(&requests[at], number, row[1], row[2], row[3], 1 if row[4] else 0)
                fds[at] = files[done + at] if files is not None else -1
            with nogil:
                sent = vhu_send_requests(
                    self.line.fd, requests, fds, batch, self.line.seconds, self.line.patience(done > 0)
                )
                got = self.line.answers(sent) if sent > 0 else self.line.unsent(errno, done > 0)
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
        cdef ssize_t sent
        if not self.line.is_quiet():
            return UNSENT  # the long way says what came
        sent = vhu_send_request(self.line.fd, request, fd, self.line.seconds)
        if sent < 0 and not vhu_lost(errno):
            return UNSENT  # the long way tries again, if that is of use, and says what is wrong
        if sent != sizeof(vhu_request):
            self.line.unsent(errno if sent < 0 else EAGAIN, True)
            return REST
        if self.line.answers(1) != 1 or not self.line.is_answer(0, request.header.request):
            return REST
        self.refusal = (<vhu_ack *>self.line.data).status
        self.line.size = 0
        return self.refusal != 0
