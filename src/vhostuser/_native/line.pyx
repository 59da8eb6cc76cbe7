"""The device's end of the back-end channel, compiled: a request goes out, and its acknowledgement is waited for.

What comes instead of an acknowledgement `Line.take` gives to Python as it came.
"""

cimport cython
from libc.errno cimport EAGAIN, EINTR, EMFILE, errno
from libc.stdint cimport uint32_t, uint64_t

from .wire cimport *

cdef extern from *:
    """
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
    bint vhu_is_empty(int sock) nogil
    ssize_t vhu_send_request(int sock, vhu_request *request, int fd, double seconds) nogil
    int vhu_send_requests(int sock, vhu_request *requests, int *fds, int count, double room, double scarce) nogil
    bint vhu_lost(int number) nogil

cdef enum:
    LOOK_EVERY = 64  # requests after which a channel is looked at for what nobody asked for; the long way always looks
    SCARCE_SECONDS = 1  # for which a request is tried again that may just as well not be sent


@cython.final
cdef class Line:
    """What the regions of a device share: the back-end channel, whether it may be used, and the lock for it."""

    def __init__(self, lock):
        self.fd, self.lock, self.seconds = -1, lock, 10

    def use(self, sock, double seconds):
        """Send on `sock` from now on, or on nothing; wait at most `seconds` for an acknowledgement."""
        self.fd, self.seconds, self.turn = (-1 if sock is None else sock.fileno()), seconds, 0

    def take(self):
        """What came instead of whole acknowledgements: bytes, fd numbers, and the errno that ended it, or 0.

        It is negative if the kernel took nothing: no acknowledgement is to come, and the channel is as it was.
        """
        data, fds, error = self.data[:self.size], [self.fds[at] for at in range(self.count)], self.error
        self.size = self.count = self.error = 0
        return data, fds, error

    cdef int ask(self, vhu_request *request, int fd, uint64_t *refusal) noexcept nogil:
        """Send a request and wait: 0, 1 if it is refused, and with what status, UNSENT or REST."""
        cdef ssize_t sent
        if not self.is_quiet():
            return UNSENT  # the long way says what came
        sent = vhu_send_request(self.fd, request, fd, self.seconds)
        if sent < 0 and not vhu_lost(errno):
            return UNSENT  # the long way tries again, if that is of use, and says what is wrong
        if sent != sizeof(vhu_request):
            self.unsent(errno if sent < 0 else EAGAIN, True)
            return REST
        if self.answers(1) != 1 or not self.is_answer(0, request.header.request, refusal):
            return REST
        self.size = 0
        return refusal[0] != 0

    cdef int send(self, vhu_request *requests, int *fds, int count, bint owed) noexcept nogil:
        """Send requests; how many went out whole, or -1. `owed`: what the first of them belongs to has begun."""
        cdef double scarce = self.seconds if owed else min(self.seconds, SCARCE_SECONDS)
        cdef int sent = vhu_send_requests(self.fd, requests, fds, count, self.seconds, scarce)
        if sent <= 0:
            self.unsent(errno, owed)
        return sent

    cdef bint is_quiet(self) noexcept nogil:
        """Nothing has come that a request would take for its answer. To look costs a system call, so it is done rarely."""
        if self.turn % LOOK_EVERY == 0 and not vhu_is_empty(self.fd):
            return False
        self.turn += 1
        return True

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

    cdef void unsent(self, int error, bint owed) noexcept nogil:
        """A request did not go out whole; not at all, if it is not the channel's fault, and none of its kin went before."""
        self.size = self.count = 0
        self.error = error if owed or vhu_lost(error) else -error

    cdef bint is_answer(self, int place, uint32_t request, uint64_t *status) noexcept nogil:
        """What came there is the acknowledgement of such a request, and has this status."""
        cdef vhu_ack *ack = <vhu_ack *>(self.data + place * ACK_SIZE)
        status[0] = ack.status
        return ack.header.request == request and ack.header.flags == ANSWER and ack.header.size == 8
