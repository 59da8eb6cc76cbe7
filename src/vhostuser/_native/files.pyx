"""What is ordinary of a share of files, compiled: a READ of a file that is open goes straight from the file to guest memory.

Its checks are those of `devices.fs`. Numbers and sizes are those of FUSE: `struct fuse_in_header`, `fuse_read_in`,
`fuse_out_header`.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.object cimport PyObject
from cpython.pythread cimport PyThread_acquire_lock, PyThread_allocate_lock, PyThread_free_lock, PyThread_release_lock
from cpython.pythread cimport PyThread_type_lock, WAIT_LOCK
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.stdint cimport INT64_MAX, UINT32_MAX, int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy

from .chain cimport Piece, Taken
from .guard cimport Guard, ready_guard, vhu_enter, vhu_exit
from .handler cimport Handler, copy, keep, publish, total
from .handover cimport ABANDONED, GONE, LEFT, WORK, Handover, vhu_look, vhu_say
from .transfer cimport Cursor, forward, transfer
from .walk cimport DeviceRing

cdef extern from *:
    """
    #include <stdint.h>
    #include <time.h>

    struct vhu_read
    {
        uint32_t len, opcode;
        uint64_t unique, nodeid;
        uint32_t uid, gid, pid;
        uint16_t total_extlen, padding;
        uint64_t fh, offset;
        uint32_t size, read_flags;
        uint64_t lock_owner;
        uint32_t flags, padding2;
    };
    struct vhu_answer
    {
        uint32_t len;
        int32_t error;
        uint64_t unique;
    };
    _Static_assert(sizeof(struct vhu_read) == 80 && sizeof(struct vhu_answer) == 16, "the layouts of FUSE");

    static inline double vhu_seconds(void)
    {
        struct timespec time;
        clock_gettime(CLOCK_MONOTONIC, &time);
        return time.tv_sec + time.tv_nsec / 1e9;
    }
    """
    ctypedef struct Read "struct vhu_read":
        uint32_t len, opcode, size
        uint64_t unique, nodeid, fh, offset
    ctypedef struct Answer "struct vhu_answer":
        uint32_t len
        int error
        uint64_t unique
    double vhu_seconds() noexcept nogil

cdef enum:
    READ = 15
    WRITE = 16
    INIT = 26
    DESTROY = 38
    SETUPMAPPING = 48
    REMOVEMAPPING = 49
    HEADER = 40
    OPCODE = 4  # where it is in the header
    LONGEST = 4096
    BUCKETS = 256
    TOLD = 64  # files that are being read, at most as many are named

ctypedef struct File:
    # An open file. It stays as long as it is being read, though it was removed.
    uint64_t fh, nodeid
    int fd
    int readers
    double since  # when the first of these began
    bint gone
    PyObject *owner
    File *next

ctypedef struct Busy:
    double since
    uint64_t nodeid


@cython.final
cdef class OpenFiles(Handler):
    """The open files of a share, by the `fh` of each, and how often they were read.

    Whoever owns the fd of one is kept until it is removed and nobody reads it. The lock is held for a few instructions.
    """

    cdef PyThread_type_lock lock
    cdef File **buckets
    cdef uint64_t room, count
    cdef File *removed  # while they are being read
    cdef readonly uint64_t reads, bytes_read

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

    def serve_with(
        self,
        answer,
        dict late not None,
        DeviceRing ring not None,
        Handover handover not None,
        int epoch,
        int kick,
        int waker,
        int64_t spin,
    ):
        """As `serve`, and have `answer` do what is small and no READ: given its bytes, and how many the answer may have.

        So such a request never is a chain. What was abandoned meanwhile is not given back, but will come again: then its
        answer is in `late`, by its bytes.
        """
        cdef int why = WORK
        while why == WORK:
            why = self.serve(ring, handover, epoch, kick, waker, spin)
            if why == LEFT:
                why = self.answered(answer, late, ring, handover, epoch)
        return why

    cdef int answered(self, answer, dict late, DeviceRing ring, Handover handover, int epoch) except -2:
        """Have the request that waits next answered, and give it back: WORK; LEFT, and it waits still, if it is none for this."""
        cdef Guard *guard = ready_guard()
        cdef uint8_t request[LONGEST]
        cdef uint64_t room = 0
        cdef Taken taken
        cdef int64_t size
        cdef bytes made
        cdef int why
        if vhu_enter(guard):
            return GONE
        size = small(ring, &taken, request, &room)
        vhu_exit(guard)
        if size < 0:
            return LEFT
        asked = PyBytes_FromStringAndSize(<char *>request, size)
        made = answer(asked, room)
        size = min(<uint64_t>PyBytes_GET_SIZE(made), room)
        if vhu_enter(guard):
            return handover.gone()
        why = give_back(ring, handover, epoch, &taken, <uint8_t *>PyBytes_AS_STRING(made), <uint32_t>size)
        vhu_exit(guard)
        if why == ABANDONED:
            late[asked] = made
        return why

    cdef int64_t perform(self, Piece *pieces, Taken *taken) noexcept nogil:
        """Do a READ that is right."""
        cdef Cursor data
        cdef Read read
        cdef Answer answer
        cdef File *file
        cdef int64_t done
        cdef uint64_t room = total(pieces + taken.readable, taken.count - taken.readable)
        if total(pieces, taken.readable) != sizeof(Read) or room < sizeof(Answer):
            return -1
        data.piece, data.skip = pieces, 0
        copy(&data, <uint8_t *>&read, sizeof(Read), False)
        if read.opcode != READ or read.len != sizeof(Read):
            return -1
        room = min(<uint64_t>read.size, room - sizeof(Answer))
        if read.offset > <uint64_t>INT64_MAX - room or room > UINT32_MAX - sizeof(Answer):
            return -1
        file = self.begin(read.fh, read.nodeid)
        if file == NULL:
            return -1
        data.piece, data.skip = pieces + taken.readable, 0
        forward(&data, sizeof(Answer))
        done = filled(&data, room, file.fd, <int64_t>read.offset)
        self.end(file, done)
        if done < 0:
            return -1
        answer.len, answer.error, answer.unique = <uint32_t>(sizeof(Answer) + done), 0, read.unique
        data.piece, data.skip = pieces + taken.readable, 0
        copy(&data, <uint8_t *>&answer, sizeof(Answer), True)
        return <int64_t>sizeof(Answer) + done

    cdef bint settle(self) except False:
        """Let go of the files that were removed while they were read."""
        cdef File *done = NULL
        cdef File *file
        cdef File **place
        if not vhu_look(&self.owed):
            return True
        self.hold()
        vhu_say(&self.owed, 0)
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
        return True

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

    cdef void end(self, File *file, int64_t done) noexcept nogil:
        """It was read, or that has failed."""
        self.hold()
        file.readers -= 1
        if file.gone and not file.readers:
            vhu_say(&self.owed, 1)
        if done >= 0:
            self.reads, self.bytes_read = self.reads + 1, self.bytes_read + done
        self.let_go()

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


cdef int64_t small(DeviceRing ring, Taken *taken, uint8_t *request, uint64_t *room) noexcept nogil:
    """Take the next request and copy it: its bytes, and room for those of the answer; -1 if it is none to be answered so."""
    cdef Cursor data
    cdef uint64_t size
    cdef uint32_t opcode
    if ring.waiting() <= 0 or not ring.take(taken):
        return -1
    size = total(ring.pieces, taken.readable)
    room[0] = total(ring.pieces + taken.readable, taken.count - taken.readable)
    if size < HEADER or size > LONGEST or room[0] > UINT32_MAX:
        return -1
    data.piece, data.skip = ring.pieces, 0
    copy(&data, request, <uint32_t>size, False)
    memcpy(&opcode, request + OPCODE, sizeof(opcode))
    return -1 if opcode in (READ, WRITE, INIT, DESTROY, SETUPMAPPING, REMOVEMAPPING) else <int64_t>size


cdef int give_back(
    DeviceRing ring, Handover handover, int epoch, Taken *taken, uint8_t *made, uint32_t size
) noexcept nogil:
    """Write an answer, give its request back, and show it: WORK; or ABANDONED, and nothing was written."""
    cdef Cursor data
    cdef int why = WORK
    handover.hold()
    if handover.epoch == epoch:
        data.piece, data.skip = ring.pieces + taken.readable, 0
        copy(&data, made, size, True)
        keep(ring, taken, size)
    else:
        why = ABANDONED
    handover.let_go()
    if why == WORK:
        publish(ring, handover, epoch, why)
    return why


cdef int64_t filled(Cursor *data, uint64_t size, int fd, int64_t offset) noexcept nogil:
    """Fill buffers with a file's bytes: how many, fewer only at its end; negative if it failed, after a part, too."""
    cdef uint64_t done = 0
    cdef int64_t more
    while done < size:
        more = transfer(data, size - done, fd, offset + <int64_t>done, False)
        if more < 0:
            return more
        if more == 0:
            break
        done += more
    return <int64_t>done


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
