"""Mappings and windows, compiled: what `protocol.regions` and `memory.window` do, for requests in which all is right.

Nothing here says no in words. A function that meets anything unusual changes nothing and returns false; its caller then goes
the way through Python, where the same checks have their texts. So each rule has one place that explains it.
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memmove

from ..protocol.regions import Mapping

cdef extern from "<sys/mman.h>" nogil:
    void *mmap(void *address, size_t len, int prot, int flags, int fd, long offset)
    int munmap(void *address, size_t len)
    enum: PROT_NONE, PROT_READ, PROT_WRITE
    enum: MAP_SHARED, MAP_PRIVATE, MAP_ANONYMOUS, MAP_NORESERVE, MAP_FIXED, MAP_POPULATE
    void *MAP_FAILED

cdef extern from *:
    """
    #include <sys/mman.h>
    #include <sys/stat.h>
    #include <sys/vfs.h>
    #include <fcntl.h>
    #ifndef F_GET_SEALS
    #define F_GET_SEALS 1034
    #define F_SEAL_SHRINK 2
    #endif
    static inline void *vhu_move(void *from, size_t len, void *to)
    { return mremap(from, len, len, MREMAP_MAYMOVE | MREMAP_FIXED, to); }
    /* On hugetlbfs the kernel rounds a length up, and would map and move more than was asked for. */
    static inline int vhu_huge(int fd)
    { struct statfs s; return fstatfs(fd, &s) != 0 || (uint32_t)s.f_type == 0x958458f6u; }
    static inline int vhu_holds(int fd, unsigned long long end)
    {
        struct stat s;
        return fstat(fd, &s) == 0 && S_ISREG(s.st_mode) && end <= (unsigned long long)s.st_size
            && !(s.st_blksize > 4096 && vhu_huge(fd));
    }
    static inline int vhu_sealed(int fd)
    { int seals = fcntl(fd, F_GET_SEALS); return seals > 0 && (seals & F_SEAL_SHRINK); }
    static inline long vhu_add(long *value, long step) { return __atomic_add_fetch(value, step, __ATOMIC_RELAXED); }
    static inline int vhu_swap(int *value, int next) { return __atomic_exchange_n(value, next, __ATOMIC_ACQUIRE); }
    static inline void vhu_clear(int *value) { __atomic_store_n(value, 0, __ATOMIC_RELEASE); }
    """
    void *vhu_move(void *source, size_t len, void *target) nogil
    int vhu_holds(int fd, uint64_t end) nogil
    int vhu_sealed(int fd) nogil
    long vhu_add(long *value, long step) nogil
    int vhu_swap(int *value, int next) nogil
    void vhu_clear(int *value) nogil

cdef enum:
    PAGE_MASK = 4095
    MAP_RW = 1


cdef class Quota:
    """A number of live mappings that may not be passed, within another one; see `protocol.regions.Quota`."""

    def __init__(self, str name, long limit, Quota parent=None):
        self.name, self.parent = name, parent
        self.count.used, self.count.limit = 0, limit
        self.count.parent = &parent.count if parent is not None else NULL

    @property
    def limit(self):
        return self.count.limit

    @property
    def used(self):
        return self.count.used

    def exhausted(self):
        if self.count.used >= self.count.limit:
            return self
        return self.parent.exhausted() if self.parent is not None else None

    def add(self, long number):
        cdef Count *count = &self.count
        while count != NULL:
            vhu_add(&count.used, number)
            count = count.parent


cdef bint take(Count *count) noexcept nogil:
    """Count one mapping in, unless that passes a limit."""
    cdef Count *above = count
    cdef Count *undo = count
    while above != NULL:
        if vhu_add(&above.used, 1) > above.limit:
            while undo != above:
                vhu_add(&undo.used, -1)
                undo = undo.parent
            vhu_add(&above.used, -1)
            return False
        above = above.parent
    return True


cdef void give(Count *count) noexcept nogil:
    """Count one mapping out."""
    while count != NULL:
        vhu_add(&count.used, -1)
        count = count.parent


cdef object mapping_of(Entry *entry):
    """An entry for Python. Never while a table is held: this runs Python code, which may let another thread run."""
    return Mapping(entry.start, entry.len, entry.fd_offset, bool(entry.writable))


cdef class MappingTable:
    """Disjoint mappings in order of their offset; see `protocol.regions.MappingTable`.

    Entries lie in a pool; `order` names them by rising offset, and behind the used ones the free ones. So a mapping comes and
    goes with one move of four bytes for each that lies behind it.
    """

    def __dealloc__(self):
        free(self.pool)
        free(self.order)

    cdef void acquire(self) noexcept nogil:
        while vhu_swap(&self.busy, 1):
            pass

    cdef void release(self) noexcept nogil:
        vhu_clear(&self.busy)

    cdef Entry *at(self, uint32_t place) noexcept nogil:
        return &self.pool[self.order[place]]

    cdef uint32_t locate(self, uint64_t offset) noexcept nogil:
        """The place of the first mapping that starts at `offset` or behind it."""
        cdef uint32_t low = 0, high = self.used, middle
        while low < high:
            middle = (low + high) >> 1
            if self.at(middle).start < offset:
                low = middle + 1
            else:
                high = middle
        return low

    cdef bint fits(self, uint64_t start, uint64_t len) noexcept nogil:
        """No mapping shares a byte with the range."""
        cdef uint32_t place = self.locate(start + len)
        cdef Entry *before
        if place == 0:
            return True
        before = self.at(place - 1)
        return before.start + before.len <= start

    cdef bint has(self, uint64_t start, uint64_t len) noexcept nogil:
        """The range is one whole mapping."""
        cdef uint32_t place = self.locate(start)
        return place < self.used and self.at(place).start == start and self.at(place).len == len

    cdef bint grow(self) noexcept nogil:
        cdef uint32_t capacity = self.capacity * 2 if self.capacity else 64
        cdef Entry *pool = <Entry *>realloc(self.pool, capacity * sizeof(Entry))
        cdef uint32_t *order
        if pool == NULL:
            return False
        self.pool = pool
        order = <uint32_t *>realloc(self.order, capacity * sizeof(uint32_t))
        if order == NULL:
            return False
        self.order = order
        while self.capacity < capacity:
            self.order[self.capacity] = self.capacity
            self.capacity += 1
        return True

    cdef bint add(self, uint64_t start, uint64_t len, uint64_t fd_offset, bint writable, bint sealed) noexcept nogil:
        """Add a mapping that fits; false if there is no memory for it."""
        cdef uint32_t place, fresh
        cdef Entry *entry
        if self.used == self.capacity and not self.grow():
            return False
        place = self.locate(start)
        fresh = self.order[self.used]
        memmove(&self.order[place + 1], &self.order[place], (self.used - place) * sizeof(uint32_t))
        self.order[place] = fresh
        self.used += 1
        entry = &self.pool[fresh]
        entry.start, entry.len, entry.fd_offset = start, len, fd_offset
        entry.writable, entry.sealed = writable, sealed
        return True

    cdef bint drop(self, uint64_t start, uint64_t len) noexcept nogil:
        """Take out the mapping that is exactly the range."""
        cdef uint32_t place = self.locate(start)
        cdef uint32_t gone
        if not self.has(start, len):
            return False
        gone = self.order[place]
        self.used -= 1
        memmove(&self.order[place], &self.order[place + 1], (self.used - place) * sizeof(uint32_t))
        self.order[self.used] = gone
        return True

    def overlapping(self, offset, len):
        found = self.covering(offset, len) if len else []
        return found[0] if found else None

    def exact(self, uint64_t offset, uint64_t len):
        cdef Entry entry
        cdef bint found
        self.acquire()
        found = self.has(offset, len)
        if found:
            entry = self.at(self.locate(offset))[0]
        self.release()
        return mapping_of(&entry) if found else None

    def covering(self, offset, len):
        cdef uint64_t start = offset, end
        cdef uint32_t first, last, at
        cdef Entry *entries = NULL
        end = min(offset + len, 0xFFFFFFFFFFFFFFFF)
        self.acquire()
        first = self.locate(start)
        if first and self.at(first - 1).start + self.at(first - 1).len > start:
            first -= 1
        last = max(first, self.locate(end))
        if last > first:
            entries = <Entry *>malloc((last - first) * sizeof(Entry))
        if entries != NULL:
            for at in range(last - first):
                entries[at] = self.at(first + at)[0]
        self.release()
        if last > first and entries == NULL:
            raise MemoryError("no memory for a copy of the mappings")
        result = []
        try:
            for at in range(last - first):
                result.append(mapping_of(&entries[at]))
        finally:
            free(entries)
        return result

    def insert(self, mapping, *, sealed=False):
        cdef uint64_t start = mapping.shm_offset, len = mapping.len, fd_offset = mapping.fd_offset
        cdef bint writable = mapping.writable, is_sealed = sealed, done
        self.acquire()
        done = self.add(start, len, fd_offset, writable, is_sealed)
        self.release()
        if not done:
            raise MemoryError("no memory for another mapping")

    def is_sealed(self, mapping):
        cdef uint64_t start = mapping.shm_offset
        cdef uint32_t place
        cdef bint result
        self.acquire()
        place = self.locate(start)
        result = place < self.used and self.at(place).start == start and self.at(place).sealed
        self.release()
        return result

    def remove(self, mapping):
        cdef uint64_t start = mapping.shm_offset, len = mapping.len
        self.acquire()
        self.drop(start, len)
        self.release()

    def clear(self):
        self.acquire()
        self.used = 0
        self.release()

    def __len__(self):
        return self.used

    def __iter__(self):
        return iter(self.covering(0, 0xFFFFFFFFFFFFFFFF))


cdef bint plain_range(uint64_t size, uint64_t shm_offset, uint64_t len) noexcept nogil:
    """The range is not empty, made of whole pages, and inside a region of `size` bytes."""
    return len != 0 and not (shm_offset | len) & PAGE_MASK and len <= size and shm_offset <= size - len


cdef bint plain_file(uint64_t fd_offset, uint64_t len) noexcept nogil:
    """The range of a file starts at a page and ends where files can."""
    return not fd_offset & PAGE_MASK and fd_offset < (1ULL << 63) and len < (1ULL << 63) - fd_offset


cdef class WindowCore:
    """The map and unmap of one `memory.window.Window`, for the receiving loop and for Python."""

    def __init__(self, uint64_t base, uint64_t size, MappingTable table, Quota quota, bint populate):
        self.base, self.size, self.table, self.quota = base, size, table, quota
        self.flags = MAP_SHARED | (MAP_POPULATE if populate else 0)

    cdef bint place(self, int fd, uint64_t shm_offset, uint64_t len, uint64_t fd_offset, uint64_t flags) noexcept nogil:
        """SHMEM_MAP. Map at an address of the kernel's choice, then move: there is no hole at any moment."""
        cdef void *scratch
        cdef bint fits, sealed
        if flags & ~<uint64_t>MAP_RW or not plain_range(self.size, shm_offset, len) or not plain_file(fd_offset, len):
            return False
        if not vhu_holds(fd, fd_offset + len) or not self.table.fits(shm_offset, len) or not take(&self.quota.count):
            return False
        scratch = mmap(NULL, len, PROT_READ | (PROT_WRITE if flags & MAP_RW else 0), self.flags, fd, <long>fd_offset)
        if scratch == MAP_FAILED:
            give(&self.quota.count)
            return False
        if vhu_move(scratch, len, <void *>(self.base + shm_offset)) == MAP_FAILED:
            munmap(scratch, len)
            self.restore(shm_offset, len)
            give(&self.quota.count)
            return False
        sealed = vhu_sealed(fd) and vhu_holds(fd, fd_offset + len)  # it may have shrunk before it was sealed
        self.table.acquire()
        fits = self.table.add(shm_offset, len, fd_offset, flags & MAP_RW, sealed)
        self.table.release()
        if not fits:
            self.restore(shm_offset, len)
            give(&self.quota.count)
        return fits

    cdef bint lift(self, uint64_t shm_offset, uint64_t len) noexcept nogil:
        """SHMEM_UNMAP of one whole mapping."""
        if not plain_range(self.size, shm_offset, len) or not self.table.has(shm_offset, len):
            return False
        if not self.restore(shm_offset, len):
            return False
        self.table.acquire()
        self.table.drop(shm_offset, len)
        self.table.release()
        give(&self.quota.count)
        return True

    cdef bint forget(self, uint64_t shm_offset, uint64_t len, Entry *gone) noexcept nogil:
        """Take one whole mapping out of the table, into `gone`; its pages stay until `restore`."""
        cdef bint found
        if not plain_range(self.size, shm_offset, len):
            return False
        self.table.acquire()
        found = self.table.has(shm_offset, len)
        if found:
            gone[0] = self.table.at(self.table.locate(shm_offset))[0]
            self.table.drop(shm_offset, len)
        self.table.release()
        if found:
            give(&self.quota.count)
        return found

    cdef void remember(self, Entry *gone) noexcept nogil:
        """Put back what `forget` took; there is room for it in the table."""
        take(&self.quota.count)
        self.table.acquire()
        self.table.add(gone.start, gone.len, gone.fd_offset, gone.writable, gone.sealed)
        self.table.release()

    cdef bint restore(self, uint64_t shm_offset, uint64_t len) noexcept nogil:
        cdef int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED
        return mmap(<void *>(self.base + shm_offset), len, PROT_NONE, flags, -1, 0) != MAP_FAILED

    def map(self, int fd, uint64_t shm_offset, uint64_t len, uint64_t fd_offset, uint64_t flags):
        """SHMEM_MAP as Python asks for it: false if it is not done, and nothing has changed."""
        cdef bint done
        with nogil:
            done = self.place(fd, shm_offset, len, fd_offset, flags)
        return done

    def unmap(self, uint64_t shm_offset, uint64_t len):
        """SHMEM_UNMAP as Python asks for it: false if it is not done, and nothing has changed."""
        cdef bint done
        with nogil:
            done = self.lift(shm_offset, len)
        return done
