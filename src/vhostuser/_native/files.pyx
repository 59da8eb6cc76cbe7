"""What is ordinary of a share of files, compiled: a READ of a file that is open goes straight from the file to guest memory.

Its checks are those of `devices.fs`. Numbers and sizes are those of FUSE: `struct fuse_in_header`, `fuse_read_in`,
`fuse_out_header`.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport INT64_MAX, UINT32_MAX, int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

from .chain cimport Piece, Taken
from .guard cimport Guard, ready_guard, vhu_enter, vhu_exit
from .handler cimport Handler, copy, keep, publish, total
from .handover cimport ABANDONED, GONE, LEFT, WORK, Handover, vhu_look
from .opened cimport File, OpenFiles
from .transfer cimport Cursor, forward, transfer
from .walk cimport DeviceRing

cdef extern from *:
    """
    #include <stdint.h>

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
    """
    ctypedef struct Read "struct vhu_read":
        uint32_t len, opcode, size
        uint64_t unique, nodeid, fh, offset
    ctypedef struct Answer "struct vhu_answer":
        uint32_t len
        int error
        uint64_t unique

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


@cython.final
cdef class ShareRequests(Handler):
    """Serves the queues of a share whose open files these are."""

    cdef OpenFiles files

    def __cinit__(self, OpenFiles files not None):
        self.files = files

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
        file = self.files.begin(read.fh, read.nodeid)
        if file == NULL:
            return -1
        data.piece, data.skip = pieces + taken.readable, 0
        forward(&data, sizeof(Answer))
        done = filled(&data, room, file.fd, <int64_t>read.offset)
        self.files.end(file, done, &self.owed)
        if done < 0:
            return -1
        answer.len, answer.error, answer.unique = <uint32_t>(sizeof(Answer) + done), 0, read.unique
        data.piece, data.skip = pieces + taken.readable, 0
        copy(&data, <uint8_t *>&answer, sizeof(Answer), True)
        return <int64_t>sizeof(Answer) + done

    cdef bint settle(self) except False:
        """Let go of the files that were removed while they were read."""
        if vhu_look(&self.owed):
            self.files.sweep(&self.owed)
        return True


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
