from cpython.object cimport PyObject
from cpython.pythread cimport PyThread_type_lock
from libc.stdint cimport int64_t, uint64_t

ctypedef struct File:
    # An open file. It stays as long as it is being read, though it was removed.
    uint64_t fh, nodeid
    int fd
    int readers
    double since  # when the first of these began
    bint gone
    PyObject *owner
    File *next

cdef class OpenFiles:
    cdef PyThread_type_lock lock
    cdef File **buckets
    cdef uint64_t room, count
    cdef File *removed  # while they are being read
    cdef readonly uint64_t reads, bytes_read
    cdef File *begin(self, uint64_t fh, uint64_t nodeid) noexcept nogil
    cdef void end(self, File *file, int64_t done, int *owed) noexcept nogil
    cdef void sweep(self, int *owed)
    cdef File *take_out(self, File **place) noexcept nogil
    cdef void empty(self)
    cdef void grow(self) noexcept nogil
    cdef void hold(self) noexcept nogil
    cdef void let_go(self) noexcept nogil
