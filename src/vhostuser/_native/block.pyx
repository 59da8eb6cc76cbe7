"""The queue of a disk, compiled: its thread stays here, without the GIL, as long as what comes is ordinary.

IN, OUT, FLUSH and GET_ID go straight between guest memory and the file, with the checks of `devices.blk`. A request that is
unusual, wrong or fails is left in the ring, where Python finds it and does it once more, with the texts and statuses.
"""

cimport cython
from libc.errno cimport EIO, errno
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

from .guard cimport Guard, new_guard, vhu_enter, vhu_exit
from .handover cimport ABANDONED, EMPTY, LEFT, WOKEN, WORK, Handover, depart, idle, quiet, vhu_look, vhu_say
from .transfer cimport Cursor, forward, transfer
from .walk cimport DeviceRing, Piece, Taken

cdef extern from *:
    """
    #ifndef _GNU_SOURCE
    #define _GNU_SOURCE
    #endif
    #include <errno.h>
    #include <fcntl.h>
    #include <stdint.h>
    #include <unistd.h>

    static inline int vhu_sync(int fd)
    {
        int result;
        do
            result = fdatasync(fd);
        while (result < 0 && errno == EINTR);
        return result;
    }

    static inline int vhu_duplicate(int fd) { return fcntl(fd, F_DUPFD_CLOEXEC, 0); }
    """
    int close(int fd) nogil
    int vhu_sync(int fd) noexcept nogil
    int vhu_duplicate(int fd) noexcept nogil

cdef enum:
    # As in `virtio.block`.
    IN = 0
    OUT = 1
    FLUSH = 4
    GET_ID = 8
    SECTOR = 512
    HEADER = 16
    ID = 20


cdef inline void copy(Cursor *at, uint8_t *bytes, uint32_t size, bint writes) noexcept nogil:
    """Bytes out of the buffers, or into them."""
    cdef uint32_t part
    while size:
        part = min(size, at.piece.len - at.skip)
        if writes:
            memcpy(at.piece.at + at.skip, bytes, part)
        else:
            memcpy(bytes, at.piece.at + at.skip, part)
        size, bytes = size - part, bytes + part
        forward(at, part)


cdef inline uint64_t total(Piece *pieces, uint32_t count) noexcept nogil:
    cdef uint64_t size = 0
    cdef uint32_t at
    for at in range(count):
        size += pieces[at].len
    return size


cdef packed struct Header:
    uint32_t kind
    uint32_t reserved
    uint64_t sector


@cython.final
cdef class BlockFile:
    """The file of a disk as compiled code uses it: an fd of its own, which is open as long as anybody is in here."""

    cdef int fd
    cdef uint64_t sectors
    cdef bint read_only
    cdef uint8_t name[ID]
    cdef public int lost
    cdef public bint durable

    def __cinit__(self, int fd, uint64_t sectors, bint read_only, bytes name not None):
        self.fd = -1
        if len(name) != ID:
            raise ValueError(f"the id of a disk has {ID} bytes, not {len(name)}")
        self.sectors, self.read_only = sectors, read_only
        memcpy(self.name, <const uint8_t *>name, ID)
        self.fd = vhu_duplicate(fd)
        if self.fd < 0:
            raise OSError(errno, "the file of a disk can't be duplicated")

    def __dealloc__(self):
        if self.fd >= 0:
            close(self.fd)

    def serve(self, DeviceRing ring not None, Handover handover not None, int epoch, int kick, int waker, int64_t spin):
        """Serve a ring until something is wanted of Python: LEFT, WOKEN, UNREADABLE, ABANDONED or GONE.

        `epoch` and `spin` are as in `Handover.wait`.
        """
        cdef int why
        cdef Guard *guard = new_guard()
        with nogil:
            if vhu_enter(guard):
                why = handover.gone()
            else:
                why = stay(ring, self, handover, epoch, kick, waker, spin)
                vhu_exit(guard)
        return why

    def serve_waiting(self, DeviceRing ring not None, Handover handover not None, int epoch):
        """Serve what waits in a ring, and come back: WORK if all is done."""
        cdef int why
        cdef Guard *guard = new_guard()
        with nogil:
            if vhu_enter(guard):
                why = handover.gone()
            else:
                why = batch(ring, self, handover, epoch)
                vhu_exit(guard)
        return WORK if why == EMPTY else why

    cdef int64_t perform(self, Piece *pieces, Taken *taken) noexcept nogil:
        """Do a request; the bytes that the driver is told of, or -1 if that is Python's to do."""
        cdef Cursor data
        cdef Header header
        cdef uint64_t given = total(pieces, taken.readable)
        cdef uint64_t room = total(pieces + taken.readable, taken.count - taken.readable)
        cdef uint32_t size
        if room == 0 or given < HEADER:
            return -1
        data.piece, data.skip = pieces, 0
        copy(&data, <uint8_t *>&header, HEADER, False)
        if header.kind == OUT:
            if self.read_only or not self.move(&data, header.sector, given - HEADER, True):
                return -1
            return 1 if not self.durable or self.sync() else -1
        if header.kind == FLUSH:
            return 1 if self.sync() else -1
        data.piece, data.skip = pieces + taken.readable, 0
        if header.kind == IN:
            return <int64_t>room if self.move(&data, header.sector, room - 1, False) else -1
        if header.kind == GET_ID:
            size = <uint32_t>min(room - 1, <uint64_t>ID)
            copy(&data, self.name, size, True)
            return size + 1
        return -1

    cdef bint move(self, Cursor *data, uint64_t sector, uint64_t size, bint writes) noexcept nogil:
        """Read or write whole sectors of the disk, all of them or false."""
        if size % SECTOR or sector > self.sectors or size // SECTOR > self.sectors - sector:
            return False
        return transfer(data, size, self.fd, <int64_t>(sector * SECTOR), writes) == <int64_t>size

    cdef bint sync(self) noexcept nogil:
        """Make durable what was written, if that has not failed before: the kernel says it once."""
        if vhu_look(&self.lost):
            return False
        if vhu_sync(self.fd) < 0:
            vhu_say(&self.lost, errno or EIO)
            return False
        return True


cdef int stay(
    DeviceRing ring, BlockFile file, Handover handover, int epoch, int kick, int waker, int64_t spin
) noexcept nogil:
    cdef int why = quiet(ring)
    while why == WORK:
        why = batch(ring, file, handover, epoch)
        if why == EMPTY:
            why = idle(ring, handover, kick, waker, spin)
    return why if why == LEFT else depart(ring, handover, epoch, why)


cdef int batch(DeviceRing ring, BlockFile file, Handover handover, int epoch) noexcept nogil:
    """Do what waits, and show it in one go: WORK or EMPTY, or why Python is wanted."""
    cdef int left = ring.waiting(), why = WORK if left > 0 else EMPTY if left == 0 else LEFT
    cdef Taken taken
    cdef int64_t written
    while left > 0 and why == WORK:
        if vhu_look(&handover.leaving):
            why = WOKEN
        elif not ring.take(&taken):
            why = LEFT
        else:
            written = file.perform(ring.pieces, &taken)
            handover.hold()
            if handover.epoch != epoch:
                why = ABANDONED
            elif written < 0:
                why = LEFT
            else:
                left = give_back(ring, &taken, written)
            handover.let_go()
    if why != ABANDONED and why != EMPTY:
        why = publish(ring, handover, epoch, why)
    return why


cdef inline int give_back(DeviceRing ring, Taken *taken, int64_t written) noexcept nogil:
    """Say that a request went well; how many more wait."""
    cdef Piece *last = &ring.pieces[taken.count - 1]
    cdef int left
    last.at[last.len - 1] = 0  # before anything is said of the request: the memory may be gone
    left = ring.keep(taken)
    ring.finish(taken, <uint32_t>min(written, <int64_t>0xFFFFFFFF))
    return left


cdef inline int publish(DeviceRing ring, Handover handover, int epoch, int why) noexcept nogil:
    """Show the driver what is done, and call it if it wants that."""
    handover.hold()
    if handover.epoch != epoch:
        why = ABANDONED
    elif ring.show():
        handover.call_driver()
    handover.let_go()
    return why
