"""The open files of a share as compiled code reads them."""

cimport cython
from cpython.pythread cimport PyThread_acquire_lock, PyThread_allocate_lock, PyThread_free_lock, PyThread_release_lock
from cpython.pythread cimport WAIT_LOCK
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.stdint cimport int64_t, uint64_t
from libc.stdlib cimport calloc, free

from .handover cimport vhu_say

cdef extern from *:
    """
    #include <time.h>

    static inline double vhu_seconds(void)
    {
        struct timespec time;
        clock_gettime(CLOCK_MONOTONIC, &time);
        return time.tv_sec + time.tv_nsec / 1e9;
    }
    """
    double vhu_seconds() noexcept nogil

cdef enum:
    BUCKETS = 256
    TOLD = 64  # files that are being read, at most as many are named

ctypedef struct Busy:
    double since
    uint64_t nodeid


@cython.final
cdef class OpenFiles:
    """The open files of a share, by the `fh` of each, and how often they were read.

    Whoever owns the fd of one is kept until it is removed and nobody reads it. The lock is held for a few instructions.
    """

    def __cinit__(self):
        self.lock = PyThread_allocate_lock()
        self.buckets, self.room = <File **>calloc(BUCKETS, sizeof(File *)), BUCKETS
        if self.lock == NULL or self.buckets == NULL:
            raise MemoryError("no memory for a table of files")

    def __dealloc__(self):
        if self.buckets != NULL:
            self.empty()
        release(self.removed)
        free(self.buckets)
        if self.lock != NULL:
            PyThread_free_lock(self.lock)

    def add(self, uint64_t fh, uint64_t nodeid, int fd, owner not None):
        """A file was opened; its fd is good as long as there is `owner`."""
        cdef File *file = <File *>calloc(1, sizeof(File))
        cdef File **place
        if file == NULL:
            raise MemoryError("no memory for a file")
        file.fh, file.nodeid, file.fd, file.owner = fh, nodeid, fd, <PyObject *>owner
        Py_INCREF(owner)
        self.hold()
        if self.count == self.room:
            self.grow()
        place = &self.buckets[fh & (self.room - 1)]
        file.next, place[0] = place[0], file
        self.count += 1
        self.let_go()

    def remove(self, uint64_t fh):
        """It is open no more."""
        cdef File *file = NULL
        cdef File **place
        self.hold()
        place = &self.buckets[fh & (self.room - 1)]
        while place[0] != NULL and place[0].fh != fh:
            place = &place[0].next
        if place[0] != NULL:
            file = self.take_out(place)
        self.let_go()
        release(file)

    def clear(self):
        """None is open any more."""
        self.empty()

    def busy(self):
        """Files that are being read: since when (time.monotonic), and the inode of each."""
        cdef Busy rows[TOLD]
        cdef int count, row
        cdef uint64_t at
        self.hold()
        count = note(rows, 0, self.removed)
        for at in range(self.room):
            count = note(rows, count, self.buckets[at])
        self.let_go()
        return [(rows[row].since, rows[row].nodeid) for row in range(count)]

    cdef File *begin(self, uint64_t fh, uint64_t nodeid) noexcept nogil:
        """The open file, which is being read from now on; NULL if there is none."""
        cdef File *file
        cdef double now = vhu_seconds()
        self.hold()
        file = self.buckets[fh & (self.room - 1)]
        while file != NULL and file.fh != fh:
            file = file.next
        if file != NULL and file.nodeid != nodeid:
            file = NULL
        if file != NULL:
            if not file.readers:
                file.since = now
            file.readers += 1
        self.let_go()
        return file

    cdef void end(self, File *file, int64_t done, int *owed) noexcept nogil:
        """It was read, or that has failed (`done` is negative). `owed` is set if it was removed meanwhile: `sweep`."""
        self.hold()
        file.readers -= 1
        if file.gone and not file.readers:
            vhu_say(owed, 1)
        if done >= 0:
            self.reads, self.bytes_read = self.reads + 1, self.bytes_read + done
        self.let_go()

    cdef void sweep(self, int *owed):
        """Let go of the files that were removed while they were read."""
        cdef File *done = NULL
        cdef File *file
        cdef File **place
        self.hold()
        vhu_say(owed, 0)
        place = &self.removed
        while place[0] != NULL:
            file = place[0]
            if file.readers:
                place = &file.next
            else:
                place[0] = file.next
                file.next, done = done, file
        self.let_go()
        release(done)

    cdef File *take_out(self, File **place) noexcept nogil:
        """Take a file out of the table, under the lock: the file, or NULL if it is being read, and stays until it is not."""
        cdef File *file = place[0]
        place[0], self.count = file.next, self.count - 1
        if file.readers:
            file.gone, file.next, self.removed = True, self.removed, file
            return NULL
        file.next = NULL
        return file

    cdef void empty(self):
        cdef File *gone = NULL
        cdef File *file
        cdef uint64_t at
        self.hold()
        for at in range(self.room):
            while self.buckets[at] != NULL:
                file = self.take_out(&self.buckets[at])
                if file != NULL:
                    file.next, gone = gone, file
        self.let_go()
        release(gone)

    cdef void grow(self) noexcept nogil:
        """Have more buckets, if there is memory for them."""
        cdef uint64_t room = self.room * 4, at
        cdef File **buckets = <File **>calloc(room, sizeof(File *))
        cdef File *file
        if buckets == NULL:
            return
        for at in range(self.room):
            while self.buckets[at] != NULL:
                file = self.buckets[at]
                self.buckets[at] = file.next
                file.next, buckets[file.fh & (room - 1)] = buckets[file.fh & (room - 1)], file
        free(self.buckets)
        self.buckets, self.room = buckets, room

    cdef void hold(self) noexcept nogil:
        PyThread_acquire_lock(self.lock, WAIT_LOCK)

    cdef void let_go(self) noexcept nogil:
        PyThread_release_lock(self.lock)


cdef int note(Busy *rows, int count, File *file) noexcept nogil:
    """Add those of a list that are being read; how many rows there are then."""
    while file != NULL and count < TOLD:
        if file.readers:
            rows[count].since, rows[count].nodeid = file.since, file.nodeid
            count += 1
        file = file.next
    return count


cdef void release(File *file):
    """Free a list of files; who owns their fds may close them now."""
    cdef File *next
    while file != NULL:
        next = file.next
        Py_DECREF(<object>file.owner)
        free(file)
        file = next
