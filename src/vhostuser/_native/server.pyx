"""The front-end's end of the back-end channel, compiled: the loop that receives, checks, maps and acknowledges.

It handles what is entirely right, and nothing else. Whatever is not, a wrong field, another request, half a message, a full
table, a signal, goes to Python as it came: `Server.take` gives the bytes and fds that were read.
"""

from libc.errno cimport EAGAIN, ECONNRESET, EINTR, ENOBUFS, ENOMEM, EPIPE, errno
from libc.stdint cimport uint8_t, uint32_t

from .window cimport Entry, WindowCore
from .wire cimport *

cdef enum:
    MOST_OTHERS = 64
    LONGEST = 1  # seconds in one poll(): Python looks at its signals in between
    NAP = 8  # milliseconds, before another try while memory is short
    MOST_ASKED = 512  # answered before what was waited for, once that is there: more than can have been sent before it
    IN_A_ROW = 4096  # answered before Python looks at its signals

cdef enum Step:
    HANDLED
    EMPTY
    FOR_PYTHON

cpdef enum:
    # What Server.run returns instead of an fd.
    EXPIRED = -1
    TAKE = -2
    NOT_TAKEN = -3
    WAITING = -4


cdef int first_ready(pollfd *watched, int count) noexcept nogil:
    """The first fd that poll() found ready, or -1."""
    cdef int at
    for at in range(count):
        if watched[at].revents:
            return watched[at].fd
    return -1


cdef class Server:
    """The front-end's receiving loop on the back-end channel."""

    cdef int fd
    cdef double seconds  # for which an acknowledgement that is not taken is tried again
    cdef void *cores[256]
    cdef list kept
    cdef uint8_t data[52]
    cdef int size
    cdef int fds[MOST_FDS]
    cdef int count
    cdef int truncated
    cdef vhu_ack acks[BATCH]
    cdef int due
    cdef ssize_t sent, unsent  # bytes of `acks`
    cdef double until  # when it is over with what is unsent; 0 as long as all is taken
    cdef void *emptied
    cdef Entry gone[BATCH]
    cdef int gone_count
    cdef int first_gone
    cdef bint streaming
    cdef uint32_t turn
    cdef readonly long messages, sent_acks, maps, unmaps

    def __init__(self, sock, dict windows, double seconds):
        self.fd, self.seconds = sock.fileno(), seconds
        self.kept = list(windows.values())
        for shmid, core in windows.items():
            self.cores[<int>shmid] = <void *><WindowCore?>core

    def run(self, others, double seconds):
        """Answer requests until one of the fds `others` is readable, and return it; those that came before it first.

        EXPIRED after `seconds` (negative: never), or earlier for Python to look at its signals, TAKE if something is there
        for `take`, NOT_TAKEN if the back-end does not take its acknowledgements, WAITING for Python to look at its signals
        while they are not taken yet: the next run goes on with them.
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

    @property
    def unfinished(self):
        """Acknowledgements are not sent yet, or something is there for `take`: another run comes before anything else."""
        return self.unsent > 0 or self.size > 0 or self.count > 0

    def take(self):
        """The bytes and fd numbers that were read and not handled, and whether fds were lost with them."""
        data, fds = self.data[:self.size], [self.fds[at] for at in range(self.count)]
        truncated = self.truncated != 0
        self.size = self.count = self.truncated = 0
        return data, fds, truncated

    cdef int loop(self, pollfd *watched, int count, double seconds) noexcept nogil:
        cdef double deadline = vhu_now() + seconds
        cdef double left = LONGEST if seconds < 0 else min(seconds, LONGEST)
        cdef long enough = self.messages + IN_A_ROW, patience = -1
        cdef int ready, other, result = self.push()
        cdef Step step
        if result or self.size or self.count:
            return result if result else TAKE
        while True:
            ready = poll(watched, count + 1, <int>(left * 1000 + 0.999))
            if ready < 0:
                return TAKE
            if ready == 0:
                return self.ready_now(watched, count)
            other = first_ready(watched, count)
            if other >= 0 and patience < 0:
                patience = self.messages + MOST_ASKED
            if other >= 0 and (not watched[count].revents or self.messages >= patience):
                return other
            step = self.serve()
            result = self.flush()
            if result:
                return result
            if step == FOR_PYTHON:
                return TAKE
            if seconds >= 0:
                left = min(deadline - vhu_now(), LONGEST)
            if left <= 0 or self.messages >= enough:
                return self.ready_now(watched, count)

    cdef int ready_now(self, pollfd *watched, int count) noexcept nogil:
        """Time is up: what is ready at this moment still counts."""
        cdef int other
        poll(watched, count, 0)
        other = first_ready(watched, count)
        return other if other >= 0 else EXPIRED

    cdef Step serve(self) noexcept nogil:
        """Handle one request, and those behind it if the back-end sends them without waiting.

        To find out costs a system call. So it is tried at every fourth message only, until it was worth it.
        """
        cdef Step step = self.one()
        cdef int more = BATCH - 1
        self.turn += 1
        if not self.streaming and self.turn & 3:
            return step
        while step == HANDLED and more:
            more -= 1
            step = self.one()
            self.streaming = step == HANDLED
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
        got = vhu_receive_rest(self.fd, self.data + HEADER_SIZE, BODY_SIZE, &self.truncated)
        if got > 0:
            self.size += <int>got
        if got != BODY_SIZE or self.truncated or not self.perform(request):
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
            return self.lift(core, request)
        self.settle()
        if not (<WindowCore>core).place(
            self.fds[0], request.body.shm_offset, request.body.len, request.body.fd_offset, request.body.flags
        ):
            return False
        close(self.fds[0])
        self.maps += 1
        return True

    cdef bint lift(self, void *core, vhu_request *request) noexcept nogil:
        """Forget a mapping. What lies side by side is taken away by one system call, in `settle`, before anything else."""
        cdef Entry *last
        if request.header.flags != ASKING or not self.streaming:
            self.settle()
            if not (<WindowCore>core).lift(request.body.shm_offset, request.body.len):
                return False
            self.unmaps += 1
            return True
        if self.gone_count:
            last = &self.gone[self.gone_count - 1]
            if core != self.emptied or request.body.shm_offset != last.start + last.len:
                self.settle()
        if not (<WindowCore>core).forget(request.body.shm_offset, request.body.len, &self.gone[self.gone_count]):
            return False
        if not self.gone_count:
            self.emptied, self.first_gone = core, self.due
        self.gone_count += 1
        return True

    cdef void settle(self) noexcept nogil:
        """Take away what was forgotten. What the kernel leaves there is a mapping again, and its request was refused."""
        cdef Entry *entry = &self.gone[0]
        cdef Entry *last
        cdef int at, count = self.gone_count
        if not count:
            return
        last = &self.gone[count - 1]
        self.gone_count = 0
        if (<WindowCore>self.emptied).restore(entry.start, last.start + last.len - entry.start):
            self.unmaps += count
            return
        for at in range(count):
            entry = &self.gone[at]
            if (<WindowCore>self.emptied).restore(entry.start, entry.len):
                self.unmaps += 1
            else:
                (<WindowCore>self.emptied).remember(entry)
                self.acks[self.first_gone + at].status = 1

    cdef void acknowledge(self, uint32_t request) noexcept nogil:
        cdef vhu_ack *ack = &self.acks[self.due]
        ack.header.request, ack.header.flags, ack.header.size = request, ANSWER, 8
        ack.status = 0
        self.due += 1

    cdef int flush(self) noexcept nogil:
        """Send the acknowledgements that are due: 0, or what `run` returns."""
        self.settle()
        self.sent_acks += self.due
        self.sent, self.unsent, self.due = 0, self.due * ACK_SIZE, 0
        return self.push()

    cdef int push(self) noexcept nogil:
        """Send what is unsent: 0, or what `run` returns."""
        cdef ssize_t taken
        cdef int result
        while self.unsent > 0:
            taken = send(self.fd, <uint8_t *>self.acks + self.sent, self.unsent, MSG_NOSIGNAL | MSG_DONTWAIT)
            if taken >= 0:
                self.sent += taken
                self.unsent -= taken
                continue
            result = self.wait_for_room()
            if result:
                return result
        self.until = 0
        return 0

    cdef int wait_for_room(self) noexcept nogil:
        """The kernel took nothing: 0 to try again at once, or what `run` returns. The deadline is that of the first time."""
        cdef int number = errno
        cdef pollfd room
        cdef double now = vhu_now()
        if number == EPIPE or number == ECONNRESET:
            self.unsent = 0  # the end, which the next look finds
            return 0
        if self.until == 0:
            self.until = now + self.seconds
        room.fd, room.events = self.fd, POLLOUT
        if number == ENOMEM or number == ENOBUFS:
            poll(&room, 0, NAP)
        elif number != EAGAIN and number != EINTR:
            return NOT_TAKEN
        elif number == EAGAIN and poll(&room, 1, <int>(max(0, min(self.until - now, LONGEST)) * 1000 + 0.999)) > 0:
            return 0
        return WAITING if now < self.until else NOT_TAKEN
