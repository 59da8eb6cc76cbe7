"""A request as a compiled ring gives it: a `virtio.chain.DescriptorChain` to whoever asks, with no views that nobody wants.

It knows where its buffers lie, and makes views of them at the first look; `read` and `write` copy without any. What is not
plain (views that a device has replaced or released, a `written` that is no number) goes to the methods of the pure class,
which treat this one as one of theirs. Where memory may shrink its views are of private copies, which are made at the first
look and count from then on; until then `read` and `write` copy within a guard.
"""

cimport cython
from cpython.bytearray cimport PyByteArray_AS_STRING, PyByteArray_GET_SIZE
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from cpython.memoryview cimport PyMemoryView_FromObject, PyMemoryView_GET_BUFFER
from cpython.object cimport PyObject
from cpython.ref cimport Py_INCREF
from cpython.tuple cimport PyTuple_New, PyTuple_SET_ITEM
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memmove

from ..errors import MemoryFault
from ..virtio.chain import DescriptorChain
from .guard cimport Guard, ready_guard, vhu_enter, vhu_exit

cdef extern from *:
    """
    #include <structmember.h>

    /* Let Python have the object pointer at `offset` as the field `name`, as it has a slot of a class of its own. */
    static int vhu_add_field(PyObject *type, const char *name, Py_ssize_t offset, const char *doc)
    {
        static PyMemberDef fields[3];
        static int count;
        PyMemberDef *field = &fields[count++];
        PyObject *descriptor;
        int failed;
        field->name = name, field->type = T_OBJECT_EX, field->offset = offset, field->doc = doc;
        if (!(descriptor = PyDescr_NewMember((PyTypeObject *)type, field)))
            return -1;
        failed = PyDict_SetItemString(((PyTypeObject *)type)->tp_dict, name, descriptor);
        Py_DECREF(descriptor);
        PyType_Modified((PyTypeObject *)type);
        return failed;
    }
    static inline int vhu_released(PyObject *view)
    { return ((PyMemoryViewObject *)view)->flags & _Py_MEMORYVIEW_RELEASED; }
    /* A number of a field that is a plain one and not negative, or -1. */
    static inline long long vhu_plain(PyObject *field)
    {
        int overflow;
        long long value = field && PyLong_CheckExact(field) ? PyLong_AsLongLongAndOverflow(field, &overflow) : -1;
        return value < 0 ? -1 : value;
    }
    """
    int vhu_add_field(object type, const char *name, Py_ssize_t offset, const char *doc) except -1
    bint vhu_released(object view)
    long long vhu_plain(PyObject *field)
    void Py_XDECREF(PyObject *field)
    PyObject *vhu_long "PyLong_FromLong"(long value) except NULL

cdef object READABLE_SIZE = DescriptorChain.readable_size.fget, WRITABLE_SIZE = DescriptorChain.writable_size.fget
cdef object READ = DescriptorChain.read, WRITE = DescriptorChain.write, REPR = DescriptorChain.__repr__, ALL = -1
cdef str GONE = "memory of a request is gone: its file was truncated"


cdef object view_of(Piece *piece):
    """A view of a piece of a region: what slicing the region's view gives, without making a slice object first."""
    cdef Py_buffer *buffer
    if type(<object>piece.view) is not memoryview:
        return (<object>piece.view).copy_at(<uint64_t>piece.at, piece.len)
    view = PyMemoryView_FromObject(<object>piece.view)
    buffer = PyMemoryView_GET_BUFFER(view)
    buffer.buf, buffer.len = piece.at, piece.len
    buffer.shape[0] = piece.len
    return view


cdef tuple views_of(Piece *pieces, uint32_t count):
    cdef uint32_t at
    cdef tuple views = PyTuple_New(count)
    for at in range(count):
        view = view_of(&pieces[at])
        Py_INCREF(view)  # for the tuple, which takes it over
        PyTuple_SET_ITEM(views, at, view)
    return views


cdef uint64_t size_of(Piece *pieces, uint32_t count) noexcept:
    cdef uint64_t size = 0
    cdef uint32_t at
    for at in range(count):
        size += pieces[at].len
    return size


cdef void copy(Piece *piece, uint64_t start, uint8_t *data, uint64_t size, bint out) noexcept:
    """Copy `size` bytes, which are there, between `data` and the pieces from `start` on."""
    cdef uint64_t part
    while size:
        if start < piece.len:
            part = min(size, piece.len - start)
            if out:
                memmove(piece.at + start, data, part)
            else:
                memcpy(data, piece.at + start, part)
            data, size, start = data + part, size - part, start + part
        start -= piece.len
        piece += 1


cdef Py_ssize_t bytes_of(data, uint8_t **start) noexcept:
    """How many plain bytes `data` is, and where; -1 if it is anything else."""
    cdef Py_buffer *buffer
    if type(data) is bytes:
        start[0] = <uint8_t *>PyBytes_AS_STRING(data)
        return PyBytes_GET_SIZE(data)
    if type(data) is bytearray:
        start[0] = <uint8_t *>PyByteArray_AS_STRING(data)
        return PyByteArray_GET_SIZE(data)
    if type(data) is not memoryview or vhu_released(data):
        return -1
    buffer = PyMemoryView_GET_BUFFER(data)
    if buffer.ndim != 1 or buffer.format[0] != c"B" or buffer.format[1] or buffer.strides[0] != 1:
        return -1
    start[0] = <uint8_t *>buffer.buf
    return buffer.len


cdef bint kept(views) noexcept:
    """All views of a tuple, if there is one, are still open."""
    if views is not None:
        for view in <tuple>views:
            if vhu_released(view):
                return False
    return True


cdef RingChain new_chain(table, const Taken *taken, const Piece *pieces, bint guarded):
    """A request of pieces in the regions of `table`, some of which may shrink if it is to be `guarded`."""
    cdef RingChain chain = RingChain.__new__(RingChain)
    chain.pieces = chain.few
    if taken.count > FEW:
        chain.pieces = <Piece *>PyMem_Malloc(taken.count * sizeof(Piece))
        if chain.pieces == NULL:
            raise MemoryError("no memory for a chain")
    memcpy(chain.pieces, pieces, taken.count * sizeof(Piece))
    chain.count, chain.readable_count, chain.table, chain.guarded = taken.count, taken.readable, table, guarded
    chain.head = vhu_long(taken.head)
    chain.entries, chain.written = vhu_long(taken.entries), vhu_long(0)
    return chain


def made_views(chain):
    """What a request has to be written back from: its writable views, if a device has looked at them. MemoryFault if it is lost."""
    if type(chain) is not RingChain:
        return chain.writable
    if (<RingChain>chain).lost:
        raise MemoryFault(GONE)
    return (<RingChain>chain).writable_views or ()


@cython.final
@cython.no_gc
@cython.freelist(64)
cdef class RingChain:
    """One request: its bytes to read in order, then its bytes to write in order. Rings make it, nobody else.

    The garbage collector knows nothing of it, so nothing takes its memory away before it is gone itself; a device that puts a
    request into a field of its own makes it stay for good.
    """

    def __init__(self):
        raise TypeError("requests come from rings")

    def __dealloc__(self):
        Py_XDECREF(self.head)
        Py_XDECREF(self.entries)
        Py_XDECREF(self.written)
        if self.pieces != self.few:
            PyMem_Free(self.pieces)

    def __reduce__(self):
        fields = {"written": held(self.written), "_read": self._read}
        return DescriptorChain, (held(self.head), self.readable, self.writable, held(self.entries)), (None, fields)

    def __repr__(self):
        return REPR(self)

    @property
    def __class__(self):
        """What it is to `isinstance`."""
        return DescriptorChain

    @property
    def readable(self):
        """Views of what the driver gives to read."""
        if self.readable_views is None and not self.replaced:
            self.readable_views = self.views(0, self.readable_count)
        return self.readable_views

    @readable.setter
    def readable(self, views):
        self.readable_views, self.writable_views, self.replaced = views, self.writable, True

    @property
    def writable(self):
        """Views of where the driver wants the answer."""
        if self.writable_views is None and not self.replaced:
            self.writable_views = self.views(self.readable_count, self.count - self.readable_count)
        return self.writable_views

    @writable.setter
    def writable(self, views):
        self.readable_views, self.writable_views, self.replaced = self.readable, views, True

    @property
    def readable_size(self):
        """All bytes that the driver gives."""
        return size_of(self.pieces, self.readable_count) if self.untouched() else READABLE_SIZE(self)

    @property
    def writable_size(self):
        """All bytes that the driver takes."""
        cdef uint32_t readable = self.readable_count
        return size_of(self.pieces + readable, self.count - readable) if self.untouched() else WRITABLE_SIZE(self)

    def read(self, size=-1):
        """The next `size` readable bytes, or all that are left; fewer at the end. Copied: the guest can't change them."""
        cdef Py_ssize_t left = size_of(self.pieces, self.readable_count) - self._read, wanted = vhu_plain(<PyObject *>size)
        if self._read < 0 or left < 0 or not self.plain(self.readable_views) or wanted < 0 and size is not ALL:
            return READ(self, size)
        if 0 <= wanted < left:
            left = wanted
        data = PyBytes_FromStringAndSize(NULL, left)
        self.move(self.pieces, self._read, <uint8_t *>PyBytes_AS_STRING(data), left, False)
        self._read += left
        return data

    def write(self, data):
        """Append to the writable bytes; the number that fitted."""
        cdef Piece *pieces = self.pieces + self.readable_count
        cdef PyObject *now
        cdef uint8_t *start = NULL
        cdef long long done = vhu_plain(self.written)
        cdef Py_ssize_t size = bytes_of(data, &start)
        cdef Py_ssize_t left = size_of(pieces, self.count - self.readable_count) - done
        if done < 0 or size < 0 or left < 0 or not self.plain(self.writable_views):
            return WRITE(self, data)
        size = min(size, left)
        self.move(pieces, done, start, size, True)
        now = vhu_long(done + size)
        Py_XDECREF(self.written)
        self.written = now
        return size

    cdef bint untouched(self):
        """Its views are its own, and open."""
        return not self.replaced and kept(self.readable_views) and kept(self.writable_views)

    cdef bint plain(self, views):
        """The same, and `views`, if there are any, are no copies, which count in memory's place."""
        return self.untouched() and (views is None or not self.guarded)

    cdef bint move(self, Piece *piece, uint64_t start, uint8_t *data, uint64_t size, bint out) except False:
        """`copy`. MemoryFault if memory is gone: the request is lost then."""
        cdef Guard *guard
        if not self.guarded:
            copy(piece, start, data, size, out)
            return True
        guard = ready_guard()
        if vhu_enter(guard):
            self.lost = True
            raise MemoryFault(GONE)
        copy(piece, start, data, size, out)
        vhu_exit(guard)
        return True

    cdef tuple views(self, uint32_t start, uint32_t count):
        """Views of pieces, or of copies of them. MemoryFault if those can't be made."""
        try:
            return views_of(self.pieces + start, count)
        except MemoryFault:
            self.lost = True
            raise


cdef bint add_fields() except False:
    cdef RingChain chain = RingChain.__new__(RingChain)
    cdef char *start = <char *><PyObject *>chain
    vhu_add_field(RingChain, b"head", <char *>&chain.head - start, "What names it to the driver.")
    vhu_add_field(RingChain, b"entries", <char *>&chain.entries - start, "The descriptors of a packed ring that it takes up.")
    vhu_add_field(RingChain, b"written", <char *>&chain.written - start, "Bytes that the device has written.")
    return True


add_fields()
