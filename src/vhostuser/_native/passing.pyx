"""A plain message from one socket to another one, compiled: the short way of a proxy.

Plain is what is there whole, has a right header, and brings no fds. Whatever is not goes to Python as it was read.
"""

from libc.stdint cimport int64_t, uint8_t

from .wire cimport *

cdef extern from *:
    """
    static inline int64_t vhu_monotonic_clock(void)
    { struct timespec t; clock_gettime(CLOCK_MONOTONIC, &t); return t.tv_sec * 1000000000LL + t.tv_nsec; }
    """
    int64_t vhu_monotonic_clock() nogil

cdef enum:
    MOST_PAYLOAD = 4096
    ANSWERS = 0xC  # reply and need_reply: any of these, or none, beside the version


cdef struct Read:
    uint8_t data[HEADER_SIZE + MOST_PAYLOAD]
    int fds[2][MOST_FDS]
    int counts[2]
    int truncated
    Py_ssize_t header, rest, sent
    int64_t at


def pass_on(int source, int target):
    """Pass on the message that waits at `source`: when its last byte came (as time.monotonic_ns), and its bytes.

    None if nothing was read. Else what was read, for another one to go on with: pieces (bytes, fds, fds were lost), and how
    much of it has been sent.
    """
    cdef Read read
    cdef bint gone
    with nogil:
        gone = passed(&read, source, target)
    if gone:
        return read.at, (<char *>read.data)[:read.header + read.rest]
    if read.header <= 0:
        return None
    pieces = [((<char *>read.data)[:read.header], taken(&read, 0), read.rest < 0 and read.truncated != 0)]
    if read.rest > 0:
        body = <char *>read.data + HEADER_SIZE
        pieces.append((body[:read.rest], taken(&read, 1), read.truncated != 0))
    return pieces, read.sent


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
