"""The queue of a disk, compiled: its thread stays here, without the GIL, as long as what comes is ordinary.

IN, OUT, FLUSH and GET_ID go straight between guest memory and the file, with the checks of `devices.blk`. A request that is
unusual, wrong or fails is left in the ring, where Python finds it and does it once more, with the texts and statuses.
"""

cimport cython
from cpython.buffer cimport PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.memoryview cimport PyMemoryView_GET_BUFFER
from cpython.pythread cimport PyThread_acquire_lock, PyThread_allocate_lock, PyThread_free_lock, PyThread_release_lock
from cpython.pythread cimport PyThread_type_lock, WAIT_LOCK
from libc.errno cimport EAGAIN, EINTR, EIO, errno
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

from .guard cimport vhu_catch_faults, vhu_enter, vhu_exit
from .ring cimport SplitRing
from .walk cimport DeviceRing, Piece, Taken

cdef extern from *:
    """
    #ifndef _GNU_SOURCE
    #define _GNU_SOURCE
    #endif
    #include <errno.h>
    #include <fcntl.h>
    #include <limits.h>
    #include <poll.h>
    #include <stdint.h>
    #include <sys/uio.h>
    #include <time.h>
    #include <unistd.h>

    static inline int vhu_look(const int *at) { return __atomic_load_n(at, __ATOMIC_ACQUIRE); }
    static inline void vhu_say(int *at, int value) { __atomic_store_n(at, value, __ATOMIC_RELEASE); }

    static __thread volatile int vhu_held __attribute__((tls_model("initial-exec")));
    static inline int vhu_holding(void) { return vhu_held; }
    static inline void vhu_set_holding(int value) { vhu_held = value; }

    static inline void vhu_pause(void)
    {
    #if defined(__x86_64__) || defined(__i386__)
        __builtin_ia32_pause();
    #endif
    }

    static inline int64_t vhu_nanoseconds(void)
    {
        struct timespec time;
        clock_gettime(CLOCK_MONOTONIC, &time);
        return time.tv_sec * 1000000000LL + time.tv_nsec;
    }

    /* Add one to an eventfd, unless it is full, which is as good, or not ready to take it. */
    static inline void vhu_set_eventfd(int fd)
    {
        struct pollfd watched = {.fd = fd, .events = POLLOUT};
        uint64_t one = 1;
        if (poll(&watched, 1, 0) == 1 && write(fd, &one, sizeof(one)) < 0)
            return;
    }

    /* Read an eventfd without waiting, even if its other owner has just made it one that waits, and emptied it. */
    static inline ssize_t vhu_take(int fd, uint64_t *count)
    {
        struct iovec part = {count, sizeof(*count)};
        ssize_t got = preadv2(fd, &part, 1, -1, RWF_NOWAIT);
        return got < 0 && errno == EOPNOTSUPP ? read(fd, count, sizeof(*count)) : got;
    }

    /* Wait for a kick or the waker: 1 a kick, which is taken; 0 the waker; -1 a kick that can't be read. */
    static inline int vhu_sleep(int kick, int waker)
    {
        struct pollfd watched[2] = {{.fd = waker, .events = POLLIN}, {.fd = kick, .events = POLLIN}};
        uint64_t count;
        for (;;) {
            if (poll(watched, 2, -1) < 0)
                continue;
            if (watched[0].revents)
                return 0;
            ssize_t got = vhu_take(kick, &count);
            if (got > 0 || (got < 0 && (errno == EAGAIN || errno == EINTR)))
                return 1;
            return -1;
        }
    }

    /* Do nothing for a millisecond, unless the waker is set: whether it is. */
    static inline int vhu_rest(int waker)
    {
        struct pollfd watched = {.fd = waker, .events = POLLIN};
        return poll(&watched, 1, 1) > 0;
    }

    static inline ssize_t vhu_move(int writes, int fd, struct iovec *parts, int count, off_t offset)
    {
        ssize_t done;
        do
            if (count == 1)
                done = writes ? pwrite(fd, parts->iov_base, parts->iov_len, offset)
                              : pread(fd, parts->iov_base, parts->iov_len, offset);
            else
                done = writes ? pwritev(fd, parts, count, offset) : preadv(fd, parts, count, offset);
        while (done < 0 && errno == EINTR);
        return done;
    }

    static inline int vhu_sync(int fd)
    {
        int result;
        do
            result = fdatasync(fd);
        while (result < 0 && errno == EINTR);
        return result;
    }

    /* Let the kernel copy between two places of this process: the bytes done, or the errno of a page that is not there. */
    static inline ssize_t vhu_copy(int writes, void *ours, uint64_t address, size_t size)
    {
        size_t done = 0;
        while (done < size) {
            struct iovec near = {(char *)ours + done, size - done}, far = {(void *)(uintptr_t)(address + done), size - done};
            ssize_t count = writes ? process_vm_writev(getpid(), &near, 1, &far, 1, 0)
                                   : process_vm_readv(getpid(), &near, 1, &far, 1, 0);
            if (count <= 0)
                return count ? -errno : -EFAULT;
            done += count;
        }
        return 0;
    }

    static inline int vhu_duplicate(int fd) { return fcntl(fd, F_DUPFD_CLOEXEC, 0); }
    """
    cdef struct iovec:
        void *iov_base
        size_t iov_len
    int IOV_MAX
    int close(int fd) nogil
    int vhu_look(const int *at) noexcept nogil
    void vhu_say(int *at, int value) noexcept nogil
    int vhu_holding() noexcept nogil
    void vhu_set_holding(int value) noexcept nogil
    void vhu_pause() noexcept nogil
    int64_t vhu_nanoseconds() noexcept nogil
    void vhu_set_eventfd(int fd) noexcept nogil
    int vhu_sleep(int kick, int waker) noexcept nogil
    int vhu_rest(int waker) noexcept nogil
    ssize_t vhu_move(bint writes, int fd, iovec *parts, int count, int64_t offset) noexcept nogil
    int vhu_sync(int fd) noexcept nogil
    ssize_t vhu_copy(bint writes, void *ours, uint64_t address, size_t size) noexcept nogil
    int vhu_duplicate(int fd) noexcept nogil

cpdef enum:
    # Why a queue's thread comes back to Python.
    WORK = 0  # something waits
    LEFT = 1  # the request that waits next is for Python
    WOKEN = 2  # the waker was set, or `leave` called
    UNREADABLE = 3  # the kick can't be read
    ABANDONED = 4  # a stop did not wait: the ring is not this thread's any more
    GONE = 5  # memory of the driver's is not there any more

cdef enum:
    # As in `virtio.block`.
    IN = 0
    OUT = 1
    FLUSH = 4
    GET_ID = 8
    SECTOR = 512
    HEADER = 16
    ID = 20

cdef enum:
    EMPTY = -1  # nothing waits
    ROUNDS = 16  # looks at a ring between two at the clock
    MOST_EMPTY = 256  # kicks in a row that may find nothing, as in `kick_poller`


@cython.final
cdef class Handover:
    """What a ring's thread and the one that serves the front-end share while the former does not hold the GIL.

    The lock is held for a few instructions and a write to an eventfd, never while a request is in progress.
    """

    cdef PyThread_type_lock lock
    cdef int call, leaving, epoch

    def __cinit__(self):
        self.call = -1
        self.lock = PyThread_allocate_lock()
        if self.lock == NULL:
            raise MemoryError("no memory for a lock")

    def __dealloc__(self):
        if self.lock != NULL:
            PyThread_free_lock(self.lock)

    def point(self, int fd):
        """Signal this eventfd from now on, or none (-1). The one of before is not used any more."""
        with nogil:
            self.hold()
            self.call = fd
            self.let_go()

    def signal(self):
        """Set the eventfd, if there is one."""
        with nogil:
            self.hold()
            self.call_driver()
            self.let_go()

    def leave(self):
        """Have the thread come back to Python soon, once its waker is set as well."""
        vhu_say(&self.leaving, 1)

    def stay(self):
        """It has come."""
        vhu_say(&self.leaving, 0)

    def abandon(self):
        """What is in progress is left to itself: nothing of it reaches the ring from now on."""
        with nogil:
            self.hold()
            self.epoch += 1
            self.let_go()

    def wait(self, DeviceRing ring not None, int epoch, int kick, int waker, int64_t spin):
        """Wait for a request in a ring, `spin` nanoseconds awake: WORK, WOKEN, UNREADABLE, ABANDONED or GONE.

        `epoch` is how often `abandon` had been called when the ring was found active.
        """
        cdef int why
        vhu_catch_faults()
        with nogil:
            if vhu_enter():
                why = self.gone()
            else:
                why = depart(ring, self, epoch, idle(ring, self, kick, waker, spin))
                vhu_exit()
        return why

    cdef inline void hold(self) noexcept nogil:
        PyThread_acquire_lock(self.lock, WAIT_LOCK)
        vhu_set_holding(1)

    cdef inline void let_go(self) noexcept nogil:
        vhu_set_holding(0)
        PyThread_release_lock(self.lock)

    cdef int gone(self) noexcept nogil:
        """The thread has come back to the start of its guard."""
        if vhu_holding():
            self.let_go()
        return GONE

    cdef inline void call_driver(self) noexcept nogil:
        if self.call >= 0:
            vhu_set_eventfd(self.call)


def copy_here(buffer not None, uint64_t address):
    """Fill a writable buffer with the bytes at `address`: 0, or the errno where they are not there."""
    return moved(buffer, address, False)


def copy_there(buffer not None, uint64_t address):
    """Write a writable buffer's bytes to `address`: as `copy_here`."""
    return moved(buffer, address, True)


cdef int moved(buffer, uint64_t address, bint writes) except -1:
    cdef Py_buffer given
    cdef ssize_t result
    PyObject_GetBuffer(buffer, &given, PyBUF_WRITABLE)
    try:
        result = vhu_copy(writes, given.buf, address, given.len)
    finally:
        PyBuffer_Release(&given)
    return <int>-result


cdef uint8_t *start_of(view):
    return <uint8_t *>PyMemoryView_GET_BUFFER(view).buf


def relay(SplitRing ring not None, descriptors, available, used):
    """Move a ring that was made over parts of our own to the memory itself, which its file may have lost.

    From then on only what is guarded may touch it: `serve`, `serve_waiting`, `Handover.wait`.
    """
    cdef int extra = 2 if ring.event_idx else 0
    if len(descriptors) < 16 * ring.size or len(available) < 4 + 2 * ring.size + extra or len(used) < 4 + 8 * ring.size + extra:
        raise ValueError(f"a part of the ring is too short for {ring.size} entries")
    ring.parts = memoryview(descriptors), memoryview(available), memoryview(used)
    ring.descriptors, ring.available, ring.used = start_of(ring.parts[0]), start_of(ring.parts[1]), start_of(ring.parts[2])


def progress(SplitRing ring not None):
    """The next available index that is not done and shown, and the used index that the driver sees."""
    return <uint16_t>(ring.base - <uint16_t>(ring.next - ring.shown)), ring.shown


cdef int idle(DeviceRing ring, Handover handover, int kick, int waker, int64_t spin) noexcept nogil:
    """Look for a request without pause, then ask for a kick, look once more and sleep. With WORK no kicks are wanted."""
    cdef int why = awake(ring, handover, spin) if spin > 0 else EMPTY
    cdef int empty = 0
    while why == EMPTY:
        if empty > MOST_EMPTY and vhu_rest(waker):  # a kick that is set without end: a look a millisecond is enough
            why = WOKEN
            break
        empty += 1
        ring.resting = False
        if ring.ask():
            why = quiet(ring)
        elif vhu_look(&handover.leaving):
            why = WOKEN
        else:
            why = asleep(ring, kick, waker)
    return why


cdef inline int quiet(DeviceRing ring) noexcept nogil:
    """There is work: no kicks are wanted until it is done."""
    ring.resting = True
    ring.rest()
    return WORK


cdef inline int depart(DeviceRing ring, Handover handover, int epoch, int why) noexcept nogil:
    """Go with kicks wanted, if it is to rest; find out whether the ring is this thread's still."""
    if why == WORK:
        return why
    handover.hold()
    if handover.epoch != epoch:
        why = ABANDONED
    else:
        ring.resting = False
        ring.ask()
    handover.let_go()
    return why


cdef inline int awake(DeviceRing ring, Handover handover, int64_t spin) noexcept nogil:
    """Look at the ring until something waits there, or the time has passed. Kicks are not wanted meanwhile."""
    cdef int64_t end = vhu_nanoseconds() + spin
    cdef int at
    quiet(ring)
    while True:
        for at in range(ROUNDS):
            if vhu_look(&handover.leaving):
                return WOKEN
            if ring.waiting():
                return WORK
            vhu_pause()
        if vhu_nanoseconds() >= end:
            return EMPTY


cdef inline int asleep(DeviceRing ring, int kick, int waker) noexcept nogil:
    cdef int woken_by = vhu_sleep(kick, waker)
    if woken_by <= 0:
        return WOKEN if woken_by == 0 else UNREADABLE
    return quiet(ring) if ring.waiting() else EMPTY


cdef struct Cursor:
    # Where in the buffers of a request it goes on.
    Piece *piece
    uint32_t skip


cdef inline void forward(Cursor *at, uint64_t size) noexcept nogil:
    """Go on behind `size` bytes, which are there."""
    while size and size >= at.piece.len - at.skip:
        size -= at.piece.len - at.skip
        at.piece, at.skip = at.piece + 1, 0
    at.skip += <uint32_t>size


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
        vhu_catch_faults()
        with nogil:
            if vhu_enter():
                why = handover.gone()
            else:
                why = stay(ring, self, handover, epoch, kick, waker, spin)
                vhu_exit()
        return why

    def serve_waiting(self, DeviceRing ring not None, Handover handover not None, int epoch):
        """Serve what waits in a ring, and come back: WORK if all is done."""
        cdef int why
        vhu_catch_faults()
        with nogil:
            if vhu_enter():
                why = handover.gone()
            else:
                why = batch(ring, self, handover, epoch)
                vhu_exit()
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
        cdef iovec parts[1024]
        cdef int64_t offset
        cdef ssize_t done
        cdef int count
        if size % SECTOR or sector > self.sectors or size // SECTOR > self.sectors - sector:
            return False
        offset = <int64_t>(sector * SECTOR)
        while size:
            count = lay_out(data, size, parts, min(IOV_MAX, 1024))
            done = vhu_move(writes, self.fd, parts, count, offset)
            if done <= 0:
                return False
            size, offset = size - done, offset + done
            if size:
                forward(data, done)
        return True

    cdef bint sync(self) noexcept nogil:
        """Make durable what was written, if that has not failed before: the kernel says it once."""
        if vhu_look(&self.lost):
            return False
        if vhu_sync(self.fd) < 0:
            vhu_say(&self.lost, errno or EIO)
            return False
        return True


cdef inline int lay_out(Cursor *data, uint64_t size, iovec *parts, int most) noexcept nogil:
    """The next `size` bytes of the buffers as parts, or as many of them as there may be."""
    cdef Piece *piece = data.piece
    cdef uint32_t skip = data.skip
    cdef int count = 0
    while size and count < most:
        if piece.len > skip:
            parts[count].iov_base = piece.at + skip
            parts[count].iov_len = min(size, <uint64_t>(piece.len - skip))
            size -= parts[count].iov_len
            count += 1
        piece, skip = piece + 1, 0
    return count


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
