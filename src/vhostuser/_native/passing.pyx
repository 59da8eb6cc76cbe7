"""Plain messages from sockets to others, compiled: the short way of a proxy, and its wait for more.

Plain is what is there whole, has a right header, and brings no fds. Whatever is not goes to Python as it was read.
"""

from cpython.exc cimport PyErr_CheckSignals, PyErr_SetFromErrno
from cpython.object cimport PyObject_GenericSetAttr
from libc.errno cimport EINTR, errno
from libc.stdint cimport int64_t, uint8_t, uint32_t

from .wire cimport *

cdef extern from *:
    """
    #include <sys/epoll.h>
    #include <sys/timerfd.h>

    static inline int64_t vhu_monotonic_clock(void)
    { struct timespec t; clock_gettime(CLOCK_MONOTONIC, &t); return t.tv_sec * 1000000000LL + t.tv_nsec; }

    /* A timer in an epoll, which tells each time that it has run out once. */
    static int vhu_new_timer(int poll)
    {
        int timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
        struct epoll_event event = { .events = EPOLLIN | EPOLLET, .data.fd = timer };
        if (timer >= 0 && epoll_ctl(poll, EPOLL_CTL_ADD, timer, &event) < 0) {
            int why = errno;
            close(timer);
            errno = why;
            return -1;
        }
        return timer;
    }

    /* Let it run out in so many nanoseconds; 0 for not at all. Forgets that it has. */
    static inline int vhu_set_timer(int timer, int64_t nanoseconds)
    {
        struct itimerspec t = { .it_value = { nanoseconds / 1000000000, nanoseconds % 1000000000 } };
        return timerfd_settime(timer, 0, &t, 0);
    }
    """
    ctypedef union epoll_data_t:
        int fd
    cdef struct epoll_event:
        uint32_t events
        epoll_data_t data
    enum: EPOLLIN
    int epoll_wait(int poll, epoll_event *events, int most, int timeout) nogil
    int64_t vhu_monotonic_clock() nogil
    int vhu_new_timer(int poll) nogil
    int vhu_set_timer(int timer, int64_t nanoseconds) nogil

cdef extern from "Python.h":
    object PyType_GenericAlloc(type kind, Py_ssize_t count)

cdef enum:
    MOST_PAYLOAD = 4096
    ANSWERS = 0xC  # reply and need_reply: any of these, or none, beside the version
    MOST = 8  # sockets that are seen to in one turn


cdef struct Read:
    uint8_t data[HEADER_SIZE + MOST_PAYLOAD]
    int fds[2][MOST_FDS]
    int counts[2]
    int truncated
    Py_ssize_t header, rest, sent
    int64_t at


cdef class Passer:
    """Passes plain messages on between the sockets that an epoll watches.

    It waits by a timer of its own: a timeout of each wait would have to be set, and taken back, for each message.
    """

    cdef int poll, timer
    cdef int64_t quiet, start
    cdef type kind
    cdef object connection, tell

    def __cinit__(self):
        self.timer = -1

    def __dealloc__(self):
        if self.timer >= 0:
            close(self.timer)

    def __init__(self, int poll, int64_t quiet, int64_t start, type kind, connection, tell):
        """`tell` is called with each message that went, of the class `kind`; its time is time.monotonic_ns plus `start`."""
        self.poll, self.quiet, self.start = poll, quiet, start
        self.kind, self.connection, self.tell = kind, connection, tell
        self.timer = vhu_new_timer(poll)
        if self.timer < 0:
            PyErr_SetFromErrno(OSError)

    def run(self, dict ways, bint waits):
        """Pass messages on until something else is to do; what that is.

        `ways` says where to, by the number of a socket: the other one's, channel and sender. Returned are the events from the
        first one on that is not just a plain message; and what was read of that, pieces (bytes, fds, fds were lost), with how
        much of it was sent. No events: something `waits`, or was told, and then nothing came for `quiet` nanoseconds.
        """
        cdef epoll_event events[MOST]
        cdef Read read
        cdef int ready, at, why
        cdef bint armed = False, moved = False, fired
        try:
            while True:
                if waits and not armed:
                    armed, moved = vhu_set_timer(self.timer, self.quiet) == 0, False
                with nogil:
                    ready = epoll_wait(self.poll, events, MOST, -1)
                    why = errno
                PyErr_CheckSignals()
                if ready < 0 and why != EINTR:
                    raise OSError(why, "epoll_wait")
                fired = False
                for at in range(ready):
                    read.header = read.sent = 0
                    if events[at].data.fd == self.timer:
                        fired = True
                    elif self.passes(&read, &events[at], ways):
                        waits = moved = True
                    else:
                        return self.others(&events[at], ready - at), pieces(&read), read.sent
                if fired:
                    armed = False
                    if not moved:
                        return [], [], 0
        finally:
            if armed:
                vhu_set_timer(self.timer, 0)

    cdef bint passes(self, Read *read, epoll_event *event, dict ways) except -1:
        """Whether this was nothing but a plain message, which went and was told."""
        cdef int source = event.data.fd, target
        cdef bint gone
        way = ways.get(source)
        if way is None or event.events != EPOLLIN:
            return False
        target, channel, sender = <tuple?>way
        with nogil:
            gone = passed(read, source, target)
        if gone:
            data = (<char *>read.data)[:read.header + read.rest]
            self.tell(plain(self.kind, self.start + read.at, self.connection, channel, sender, data))
        return gone

    cdef list others(self, epoll_event *events, int count):
        """Events for Python to see to."""
        cdef int at
        return [(events[at].data.fd, events[at].events) for at in range(count) if events[at].data.fd != self.timer]

    def close(self):
        """Let go of the timer, and of who is told."""
        if self.timer >= 0:
            close(self.timer)
        self.timer, self.tell = -1, None


cdef object plain(type kind, at, connection, channel, sender, data):
    """A message that is whole and has no fds: just what its class would make of this, which checks nothing and takes longer."""
    message = PyType_GenericAlloc(kind, 0)
    PyObject_GenericSetAttr(message, "at", at)
    PyObject_GenericSetAttr(message, "connection", connection)
    PyObject_GenericSetAttr(message, "channel", channel)
    PyObject_GenericSetAttr(message, "sender", sender)
    PyObject_GenericSetAttr(message, "data", data)
    PyObject_GenericSetAttr(message, "fds", ())
    PyObject_GenericSetAttr(message, "whole", True)
    PyObject_GenericSetAttr(message, "note", "")
    return message


cdef list pieces(Read *read):
    """What was read of a message that is not plain, or not whole, or did not go."""
    if read.header <= 0:
        return []
    found = [((<char *>read.data)[:read.header], taken(read, 0), read.rest < 0 and read.truncated != 0)]
    if read.rest > 0:
        body = <char *>read.data + HEADER_SIZE
        found.append((body[:read.rest], taken(read, 1), read.truncated != 0))
    return found


cdef list taken(Read *read, int which):
    return [read.fds[which][at] for at in range(read.counts[which])]


cdef bint passed(Read *read, int source, int target) noexcept nogil:
    """Read a message and send it; whether all of it went. `rest` is -1 if its payload was not asked for."""
    cdef vhu_header *header = <vhu_header *>read.data
    read.counts[0] = read.counts[1] = 0
    read.rest, read.sent = -1, 0
    read.header = vhu_receive(source, read.data, HEADER_SIZE, MSG_DONTWAIT, read.fds[0], &read.counts[0], &read.truncated)
    if read.header != HEADER_SIZE or read.counts[0] or read.truncated:
        return False
    if header.flags & ~<unsigned>ANSWERS != PLAIN or header.size > MOST_PAYLOAD:
        return False
    read.rest = 0
    if header.size:
        read.rest = vhu_receive(
            source, read.data + HEADER_SIZE, header.size, MSG_DONTWAIT, read.fds[1], &read.counts[1], &read.truncated
        )
        if read.rest != header.size or read.counts[1] or read.truncated:
            read.rest = max(read.rest, 0)
            return False
    read.at = vhu_monotonic_clock()
    read.sent = max(send(target, read.data, HEADER_SIZE + header.size, MSG_DONTWAIT | MSG_NOSIGNAL), 0)
    return read.sent == HEADER_SIZE + <Py_ssize_t>header.size
