"""A device's map and unmap of a region, compiled: checked, asked for over the back-end channel, and put into the books.

It handles what is entirely right, and nothing else: what is not it leaves unsent.
"""

cimport cython
from cpython.long cimport PyLong_Check
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memset

from .line cimport REST, STALE, UNSENT, Line
from .window cimport MappingTable, Quota, give, plain_file, plain_range, take
from .wire cimport *

cdef extern from *:
    """
    /* Is it an fd that may be sent? One of O_PATH costs QEMU 11.1 its channel. */
    static inline int vhu_sendable(int fd)
    { int flags = fcntl(fd, F_GETFL); return flags >= 0 && !(flags & O_PATH); }
    """
    int vhu_sendable(int fd) nogil


cdef bint number(object value, uint64_t *result):
    """Take an int of 64 bits, and nothing else that could be made one."""
    if not PyLong_Check(value):
        return False
    try:
        result[0] = value
    except OverflowError:
        return False
    return True


@cython.final
cdef class Caller:
    """The back-end's map and unmap of one region."""

    cdef Line line
    cdef MappingTable table
    cdef Quota quota
    cdef uint8_t shmid
    cdef uint64_t size
    cdef readonly long epoch
    cdef readonly long maps, unmaps

    def __init__(self, Line line, uint8_t shmid, uint64_t size, MappingTable table, Quota quota):
        self.line, self.shmid, self.size, self.table, self.quota = line, shmid, size, table, quota

    def map(self, int fd, start, size, file_start, bint writable):
        """SHMEM_MAP: the status that came back, UNSENT (ask Python), REST or STALE (a reset came between).

        With REST the lock stays held: `Line.take` says what came, and nobody may change the channel before.
        """
        cdef vhu_request request
        cdef uint64_t shm_offset = 0, len = 0, fd_offset = 0, refusal = 0
        cdef long epoch = self.epoch
        cdef int status = UNSENT
        if not number(start, &shm_offset) or not number(size, &len) or not number(file_start, &fd_offset):
            return UNSENT
        if not self.line.running or self.line.fd < 0 or not self.line.lock.acquire(False):
            return UNSENT
        try:
            if not vhu_sendable(fd) or not plain_range(self.size, shm_offset, len) or not plain_file(fd_offset, len):
                return UNSENT
            if not self.table.fits(shm_offset, len) or not take(&self.quota.count):
                return UNSENT
            self.fill(&request, SHMEM_MAP, shm_offset, len, fd_offset, writable)
            with nogil:
                status = self.line.ask(&request, fd, &refusal)
            if status == 0 and epoch != self.epoch:
                status = STALE
            if status == 0 and self.table.add(shm_offset, len, fd_offset, writable, False):
                self.maps += 1
            else:
                give(&self.quota.count)
            return refusal if status > 0 else status
        finally:
            if status != REST:
                self.line.lock.release()

    def unmap(self, start, size):
        """SHMEM_UNMAP: as `map`."""
        cdef vhu_request request
        cdef uint64_t shm_offset = 0, len = 0, refusal = 0
        cdef long epoch = self.epoch
        cdef int status = UNSENT
        if not number(start, &shm_offset) or not number(size, &len):
            return UNSENT
        if not self.line.running or self.line.fd < 0 or not self.line.lock.acquire(False):
            return UNSENT
        try:
            if not self.table.has(shm_offset, len):
                return UNSENT
            self.fill(&request, SHMEM_UNMAP, shm_offset, len, 0, False)
            with nogil:
                status = self.line.ask(&request, -1, &refusal)
            if status == 0 and epoch != self.epoch:
                status = STALE
            if status == 0:
                self.table.drop(shm_offset, len)
                give(&self.quota.count)
                self.unmaps += 1
            return refusal if status > 0 else status
        finally:
            if status != REST:
                self.line.lock.release()

    def map_many(self, list requests, list files):
        """SHMEM_MAP for each of `requests` (MapRequest) with its fd of `files`, for SharedMemory, which holds the lock.

        The statuses that came back, fewer if the channel was lost; None, with nothing sent, if anything is not plain.
        """
        cdef int total = len(requests), at = 0, done
        cdef long epoch = self.epoch
        cdef uint64_t shm_offset = 0, length = 0, fd_offset = 0
        cdef bint writable
        for request in requests:
            if not number(request[1], &shm_offset) or not number(request[2], &length) or not number(request[3], &fd_offset):
                break
            if not plain_range(self.size, shm_offset, length) or not plain_file(fd_offset, length):
                break
            if not self.table.fits(shm_offset, length) or not take(&self.quota.count):
                break
            writable = request[4]
            self.table.add(shm_offset, length, fd_offset, writable, False)
            at += 1
        if at < total:
            self.take_back(requests, 0, at)
            return None
        statuses = self.exchange(SHMEM_MAP, requests, files)
        if epoch == self.epoch:
            done = len(statuses)
            self.take_back(requests, done, total)
            for at in range(done):
                if statuses[at]:
                    self.take_back(requests, at, at + 1)
                else:
                    self.maps += 1
        return statuses

    def unmap_many(self, list ranges):
        """SHMEM_UNMAP for each (shm_offset, len) of `ranges`: as `map_many`."""
        cdef int total = len(ranges), at = 0
        cdef long epoch = self.epoch
        cdef uint64_t shm_offset = 0, length = 0
        known = []
        for start, size in ranges:
            mapping = self.table.exact(start, size) if number(start, &shm_offset) and number(size, &length) else None
            if mapping is None or not self.table.drop(shm_offset, length):
                break
            known.append(mapping)
            at += 1
        statuses = self.exchange(SHMEM_UNMAP, [(None, *each, 0, 0) for each in ranges], None) if at == total else None
        for at in range(len(known)):
            if epoch != self.epoch:
                give(&self.quota.count)  # a reset counts out what is in the table, and these were not
            elif statuses is None or at >= len(statuses) or statuses[at]:
                self.table.insert(known[at])
            else:
                give(&self.quota.count)
                self.unmaps += 1
        return statuses

    def forget(self):
        """The front-end has dropped every mapping: requests that are under way are STALE."""
        self.epoch += 1
        self.quota.add(-<long>self.table.used)
        self.table.clear()

    cdef void take_back(self, list requests, int start, int end):
        """Those mappings were not made after all."""
        cdef int at
        for at in range(start, end):
            if self.table.drop(requests[at][1], requests[at][2]):
                give(&self.quota.count)

    cdef list exchange(self, uint32_t number, list rows, list files):
        """Send requests, some at a time, and read their answers; fewer statuses if the channel is lost."""
        cdef int total = len(rows), done = 0, batch, at, sent, got
        cdef uint64_t status = 0
        cdef int fds[BATCH]
        cdef vhu_request requests[BATCH]
        statuses = []
        while done < total:
            batch = min(total - done, BATCH)
            for at in range(batch):
                row = rows[done + at]
                self.fill(&requests[at], number, row[1], row[2], row[3], 1 if row[4] else 0)
                fds[at] = files[done + at] if files is not None else -1
            with nogil:
                sent = self.line.send(requests, fds, batch, done > 0)
                got = self.line.answers(sent) if sent > 0 else 0
            for at in range(got):
                if not self.line.is_answer(at, number, &status):
                    return statuses
                statuses.append(status)
            done += got
            if sent <= 0 or got < sent:
                return statuses
            self.line.size = 0
        return statuses

    cdef void fill(
        self, vhu_request *request, uint32_t number, uint64_t shm_offset, uint64_t len, uint64_t fd_offset, uint64_t flags
    ) noexcept:
        memset(request, 0, sizeof(vhu_request))
        request.header.request, request.header.flags, request.header.size = number, ASKING, BODY_SIZE
        request.body.shmid, request.body.fd_offset = self.shmid, fd_offset
        request.body.shm_offset, request.body.len, request.body.flags = shm_offset, len, flags
