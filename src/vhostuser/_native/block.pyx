"""What is ordinary of a disk, compiled: IN, OUT, FLUSH and GET_ID go straight between guest memory and the file, with the
checks of `devices.blk`.
"""

cimport cython
from libc.errno cimport EIO, errno
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

from .chain cimport Piece, Taken
from .handler cimport Handler, copy, total
from .handover cimport vhu_look, vhu_say
from .transfer cimport Cursor, transfer

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


cdef packed struct Header:
    uint32_t kind
    uint32_t reserved
    uint64_t sector


@cython.final
cdef class BlockFile(Handler):
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

    cdef void seal(self, Piece *pieces, Taken *taken) noexcept nogil:
        """Its status is the last byte."""
        cdef Piece *last = &pieces[taken.count - 1]
        last.at[last.len - 1] = 0

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
