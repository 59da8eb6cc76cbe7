"""A request as a compiled ring gives it: where its buffers lie, and no view of them until somebody wants one."""

from cpython.long cimport PyLong_CheckExact
from cpython.number cimport PyNumber_Index
from cpython.object cimport PyObject
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

cdef enum:
    FEW = 4  # pieces that a chain has room for in itself

ctypedef struct Piece:
    uint8_t *at
    uint32_t len
    void *view

ctypedef struct Taken:
    uint16_t head
    uint16_t entries  # descriptors that it takes up in a packed ring, else 1
    uint32_t readable
    uint32_t count

cdef class RingChain:
    # What Python has as plain fields: any object, or NULL once it was deleted.
    cdef PyObject *head
    cdef PyObject *entries
    cdef PyObject *written
    cdef public Py_ssize_t _read
    cdef bint guarded  # its memory may be gone: only copies of it may be seen
    cdef bint lost  # and is: somebody has found that
    cdef bint replaced  # its views are what a device has put there
    cdef uint32_t readable_count, count
    cdef Piece *pieces
    cdef Piece few[FEW]
    cdef object table  # what keeps the pieces where they are
    cdef object readable_views, writable_views
    cdef bint untouched(self)
    cdef bint plain(self, views)
    cdef bint move(self, Piece *piece, uint64_t start, uint8_t *data, uint64_t size, bint out) except False
    cdef tuple views(self, uint32_t start, uint32_t count)

cdef RingChain new_chain(table, const Taken *taken, const Piece *pieces, bint guarded)


cdef inline object number(field):
    """A number that a device left: what Python takes for an index."""
    return field if PyLong_CheckExact(field) else PyNumber_Index(field)


cdef inline object held(PyObject *field):
    """What is in a field, or AttributeError."""
    if field == NULL:
        raise AttributeError("a field of a chain was deleted")
    return <object>field
