from libc.stdint cimport uint8_t, uint32_t, uint64_t

from .wire cimport ACK_SIZE, BATCH, MOST_FDS, vhu_request

cdef enum:
    # What comes of a request instead of a status, as in `plain.frames`.
    UNSENT = -11  # ask Python
    REST = -12  # `Line.take` says what came
    STALE = -13  # a reset came between

cdef class Line:
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
    cdef int ask(self, vhu_request *request, int fd, uint64_t *refusal) noexcept nogil
    cdef int send(self, vhu_request *requests, int *fds, int count, bint owed) noexcept nogil
    cdef bint is_quiet(self) noexcept nogil
    cdef int answers(self, int wanted) noexcept nogil
    cdef bint goes_on(self) noexcept nogil
    cdef int left(self, double *deadline) noexcept nogil
    cdef void unsent(self, int error, bint owed) noexcept nogil
    cdef bint is_answer(self, int place, uint32_t request, uint64_t *status) noexcept nogil
