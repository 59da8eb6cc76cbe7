"""The device half of a split virtqueue, compiled: what `virtio.split.SplitQueue` does, with memory fences.

So it may offer EVENT_IDX and leave out notifications that the driver does not want ("Virtqueue Interrupt Suppression").
It takes chains that are entirely right, and nothing else: what is not it leaves where it is, and the pure queue walks it
once more, where the same checks have their texts. Each field in guest memory is read once, into a copy of ours.
Little-endian hosts only.
"""

cimport cython
from cpython.list cimport PyList_New, PyList_SET_ITEM
from cpython.memoryview cimport PyMemoryView_FromObject, PyMemoryView_GET_BUFFER
from cpython.ref cimport Py_INCREF
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy

from ..errors import QueueBroken
from ..virtio.chain import DescriptorChain
from ..virtio.split import SplitQueue

cdef extern from *:
    """
    /* Guest memory: any alignment, each access one load or store that the compiler neither repeats nor leaves out. */
    typedef struct { uint16_t value; } __attribute__((packed, may_alias)) vhu_half;
    typedef struct { uint32_t value; } __attribute__((packed, may_alias)) vhu_word;
    typedef struct { uint64_t value; } __attribute__((packed, may_alias)) vhu_long;
    static inline uint16_t vhu_half_at(const uint8_t *at) { return ((const volatile vhu_half *)at)->value; }
    static inline uint64_t vhu_long_at(const uint8_t *at) { return ((const volatile vhu_long *)at)->value; }
    static inline void vhu_set_half(uint8_t *at, uint16_t value) { ((volatile vhu_half *)at)->value = value; }
    static inline void vhu_set_word(uint8_t *at, uint32_t value) { ((volatile vhu_word *)at)->value = value; }
    static inline void vhu_acquire(void) { __atomic_thread_fence(__ATOMIC_ACQUIRE); }
    static inline void vhu_release(void) { __atomic_thread_fence(__ATOMIC_RELEASE); }
    static inline void vhu_fence(void) { __atomic_thread_fence(__ATOMIC_SEQ_CST); }

    /* Set a slot of an object by its descriptor: what `object.name = value` does, without looking the name up. */
    static inline int vhu_set_slot(PyObject *slot, PyObject *object, PyObject *value)
    { return Py_TYPE(slot)->tp_descr_set(slot, object, value); }
    static inline PyObject *vhu_get_slot(PyObject *slot, PyObject *object)
    { return Py_TYPE(slot)->tp_descr_get(slot, object, (PyObject *)Py_TYPE(object)); }
    static inline PyObject *vhu_new(PyTypeObject *type) { return PyType_GenericNew(type, NULL, NULL); }
    """
    uint16_t vhu_half_at(const uint8_t *at) noexcept nogil
    uint64_t vhu_long_at(const uint8_t *at) noexcept nogil
    void vhu_set_half(uint8_t *at, uint16_t value) noexcept nogil
    void vhu_set_word(uint8_t *at, uint32_t value) noexcept nogil
    void vhu_acquire() noexcept nogil
    void vhu_release() noexcept nogil
    void vhu_fence() noexcept nogil
    int vhu_set_slot(object slot, object object, object value) except -1
    object vhu_get_slot(object slot, object object)
    object vhu_new(type kind)

cdef enum:
    ENTRY = 16  # bytes of a descriptor
    HEADER = 4  # bytes of flags and index, in both rings
    ELEMENT = 8  # bytes of a used element
    SPARE = 16  # pieces beyond one a descriptor, for buffers that cross regions

cdef enum:
    # As in `virtio.numbers`.
    NEXT = 1
    WRITE = 2
    INDIRECT = 4
    NO_INTERRUPT = 1
    NO_NOTIFY = 1

cdef type Chain = DescriptorChain
cdef object HEAD = DescriptorChain.head, READABLE = DescriptorChain.readable, WRITABLE = DescriptorChain.writable
cdef object WRITTEN = DescriptorChain.written
cdef list OTHERS = [
    (getattr(DescriptorChain, name), getattr(DescriptorChain(0, (), ()), name))
    for name in DescriptorChain.__slots__
    if name not in ("head", "readable", "writable")
]  # the slots that begin alike in every chain, and how


def fence():
    """A full memory fence: what was stored before it is seen by whoever loads behind a fence of his own."""
    vhu_fence()


@cython.final
cdef class RegionTable:
    """Guest memory as `virtio.split.Memory` has it: (guest address, view) of each region, by rising address."""

    def __cinit__(self, regions):
        cdef Py_buffer *buffer
        cdef Region *region
        self.views = []
        self.regions = <Region *>calloc(max(1, len(regions)), sizeof(Region))
        if self.regions == NULL:
            raise MemoryError("no memory for a table of regions")
        self.last = self.regions
        for start, given in regions:
            view = own(given)
            self.views.append(view)
            buffer = PyMemoryView_GET_BUFFER(view)
            region = &self.regions[self.count]
            region.start, region.len, region.at = start, buffer.len, <uint8_t *>buffer.buf
            region.view, region.readonly = <void *>view, buffer.readonly
            if self.count and (region.start < self.last.start or region.start - self.last.start < self.last.len):
                raise ValueError("regions must be sorted by guest address, and not overlap")
            self.last = region
            self.count += 1

    def __dealloc__(self):
        free(self.regions)

    cdef inline Region *find(self, uint64_t addr) noexcept nogil:
        """The region that has a byte at `addr`, if one has. Most buffers are where the one before them was."""
        cdef uint32_t low = 0, high = self.count, middle
        if addr - self.last.start < self.last.len:
            return self.last
        while low < high:
            middle = (low + high) >> 1
            if self.regions[middle].start <= addr:
                low = middle + 1
            else:
                high = middle
        if low == 0 or addr - self.regions[low - 1].start >= self.regions[low - 1].len:
            return NULL
        self.last = &self.regions[low - 1]
        return self.last


cdef object own(given):
    """A view of our own of plain bytes, which nobody else can release."""
    cdef Py_buffer *buffer
    view = PyMemoryView_FromObject(given)
    buffer = PyMemoryView_GET_BUFFER(view)
    if buffer.ndim != 1 or buffer.itemsize != 1 or buffer.strides[0] != 1:
        raise ValueError("a part of guest memory must be a view of plain bytes")
    return view


cdef uint8_t *start_of(view, Py_ssize_t needed) except NULL:
    """Where a part of the ring lies, which is long enough."""
    cdef Py_buffer *buffer = PyMemoryView_GET_BUFFER(view)
    if buffer.len < needed:
        raise ValueError(f"a part of the ring has {buffer.len} bytes, {needed} are needed")
    return <uint8_t *>buffer.buf


cdef object view_of(Piece *piece):
    """A view of a piece of a region: what slicing the region's view gives, without making a slice object first."""
    cdef Py_buffer *buffer
    view = PyMemoryView_FromObject(<object>piece.view)
    buffer = PyMemoryView_GET_BUFFER(view)
    buffer.buf, buffer.len = piece.at, piece.len
    buffer.shape[0] = piece.len
    return view


cdef object views_of(Piece *pieces, uint32_t count):
    cdef uint32_t at
    views = PyList_New(count)
    for at in range(count):
        view = view_of(&pieces[at])
        Py_INCREF(view)  # for the list, which takes it over
        PyList_SET_ITEM(views, at, view)
    return views


@cython.final
cdef class SplitRing:
    """One split virtqueue as its device sees it. `base` is the next available index to take."""

    def __cinit__(
        self,
        uint32_t size,
        descriptors,
        available,
        used,
        memory,
        RegionTable table not None,
        *,
        uint16_t base=0,
        bint indirect=True,
        bint event_idx=False,
    ):
        cdef int extra = 2 if event_idx else 0
        if not 0 < size <= 1 << 15 or size & (size - 1):
            raise ValueError(f"a queue of {size} entries")
        self.size, self.base, self.indirect, self.event_idx = size, base, indirect, event_idx
        self.mask = size - 1
        self.memory, self.table = memory, table
        self.parts = own(descriptors), own(available), own(used)
        self.descriptors = start_of(self.parts[0], size * ENTRY)
        self.available = start_of(self.parts[1], HEADER + 2 * size + extra)
        self.used = start_of(self.parts[2], HEADER + ELEMENT * size + extra)
        if self.parts[2].readonly:
            raise ValueError("the used ring is in read-only memory")
        rings = available[:HEADER + 2 * size], used[:HEADER + ELEMENT * size]
        self.pure = SplitQueue(size, descriptors, *rings, memory, base=base, indirect=indirect)
        self.room = size + SPARE
        self.pieces = <Piece *>malloc(self.room * sizeof(Piece))
        if self.pieces == NULL:
            raise MemoryError("no memory for a ring")
        self.next = self.shown = vhu_half_at(self.used + 2)
        self.fresh = True

    def __dealloc__(self):
        free(self.pieces)
        free(self.copy)

    def pop(self):
        """The next request, or None; QueueBroken if the driver left nonsense ("The Virtqueue Available Ring")."""
        cdef int waiting = self.waiting()
        if waiting > 0:
            return self.next_chain()
        return self.explain() if waiting else None

    def pop_many(self, uint32_t most):
        """The next requests, at most that many. QueueBroken only where the first of them is broken."""
        cdef int waiting = self.waiting(), at
        chains = []
        if waiting < 0:
            chain = self.explain()
            return [] if chain is None else [chain]
        for at in range(<int>min(<uint32_t>waiting, most)):
            try:
                chain = self.next_chain()
            except QueueBroken:
                if at == 0:
                    raise
                break
            if chain is None:
                break
            chains.append(chain)
        return chains

    def push(self, chain):
        """Give a request back; the driver sees it at the next `publish`."""
        if type(chain) is Chain:
            self.give(vhu_get_slot(HEAD, chain), vhu_get_slot(WRITTEN, chain))
        else:
            self.give(chain.head, chain.written)

    def publish(self):
        """Show the driver all that was pushed; whether to notify it."""
        return self.show()

    def enable_kicks(self):
        """Ask the driver for a kick at the next request; whether one came before it could know, and waits."""
        self.resting = False
        return self.ask() != 0

    def disable_kicks(self):
        """Tell the driver that nobody needs a kick, until `enable_kicks`: a hint ("Available Buffer Notification Suppression")."""
        self.resting = True
        self.rest()

    cdef object next_chain(self):
        """The chain that waits at `base`."""
        cdef Taken taken
        if not self.take(&taken):
            return self.explain()
        chain = vhu_new(Chain)
        vhu_set_slot(HEAD, chain, taken.head)
        vhu_set_slot(READABLE, chain, views_of(self.pieces, taken.readable))
        vhu_set_slot(WRITABLE, chain, views_of(self.pieces + taken.readable, taken.count - taken.readable))
        for slot, value in OTHERS:
            vhu_set_slot(slot, chain, value)
        self.base += 1
        return chain

    cdef object explain(self):
        """The same from the pure queue: it raises what is wrong here, or takes what is only out of the ordinary."""
        self.pure.base = self.base
        chain = self.pure.pop()
        self.base = self.pure.base
        return chain

    cdef int waiting(self) noexcept nogil:
        """How many chains wait, or -1 if that can't be. With none, the driver is asked for a kick, and looked at again."""
        cdef uint16_t count = vhu_half_at(self.available + 2) - self.base
        if count == 0 and self.event_idx and not self.resting:
            count = self.ask()
        vhu_acquire()
        self.left = count if count <= self.size else -1
        return self.left

    cdef uint16_t ask(self) noexcept nogil:
        """Ask for a kick at the next request, and look once more: how many came before the driver could know."""
        if self.event_idx:
            vhu_set_half(self.used + HEADER + ELEMENT * self.size, self.base)
        else:
            vhu_set_half(self.used, 0)
        vhu_fence()
        return vhu_half_at(self.available + 2) - self.base

    cdef void rest(self) noexcept nogil:
        """Tell the driver that nobody needs a kick."""
        if not self.event_idx:
            vhu_set_half(self.used, NO_NOTIFY)

    cdef bint take(self, Taken *taken) noexcept nogil:
        """Follow the chain at `base` into `pieces`, which waits; false, and nothing has changed, if anything is unusual."""
        cdef const uint8_t *table = self.descriptors
        cdef uint32_t count = self.size, index, steps = 0, len
        cdef uint64_t addr, rest, total = 0
        cdef uint16_t flags
        cdef Taken found
        index = found.head = vhu_half_at(self.available + HEADER + 2 * (self.base & self.mask))
        found.readable = found.count = 0
        while steps < self.size and index < count:
            addr, rest = vhu_long_at(table + index * ENTRY), vhu_long_at(table + index * ENTRY + 8)
            len, flags = <uint32_t>rest, <uint16_t>(rest >> 32)
            if flags & INDIRECT:
                if table == self.copy or not self.enter(addr, len, flags):
                    return False
                table, count, index = self.copy, len // ENTRY, 0
                continue
            steps, total = steps + 1, total + len
            if total > 1ULL << 32 or not self.lay(addr, len, flags & WRITE, &found):
                return False
            if not flags & NEXT:
                taken[0] = found
                return True
            index = <uint16_t>(rest >> 48)
        return False

    cdef bint enter(self, uint64_t addr, uint32_t len, uint16_t flags) noexcept nogil:
        """Copy an indirect table ("Indirect Descriptors"); false if it is not one that may be entered."""
        cdef uint32_t done = 0, part
        cdef Region *region
        if not self.indirect or flags & NEXT or len == 0 or len % ENTRY or len > self.size * ENTRY:
            return False
        if self.copy == NULL:
            self.copy = <uint8_t *>malloc(self.size * ENTRY)
        if self.copy == NULL:
            return False
        while done < len:
            region = self.table.find(addr)
            if region == NULL:
                return False
            part = <uint32_t>min(<uint64_t>(len - done), region.len - (addr - region.start))
            memcpy(self.copy + done, region.at + (addr - region.start), part)
            done, addr = done + part, addr + part
            if addr == 0 and done < len:
                return False
        return True

    cdef inline bint lay(self, uint64_t addr, uint64_t len, bint writable, Taken *taken) noexcept nogil:
        """Add a buffer to `pieces`, one a region that it crosses; false where no memory is, or not of its kind."""
        cdef Region *region
        cdef Piece *piece
        cdef uint64_t skip, part
        if not writable and taken.count > taken.readable:
            return False
        while len:
            region = self.table.find(addr)
            if region == NULL or taken.count == self.room or (writable and region.readonly):
                return False
            skip = addr - region.start
            part = min(len, region.len - skip)
            piece = &self.pieces[taken.count]
            piece.at, piece.len, piece.view = region.at + skip, <uint32_t>part, region.view
            taken.count += 1
            len, addr = len - part, addr + part
            if addr == 0 and len:
                return False
        if not writable:
            taken.readable = taken.count
        return True

    cdef int keep(self, Taken *taken) noexcept nogil:
        """What was taken is ours; how many more wait, at least."""
        self.base += 1
        self.left -= 1
        return self.left

    cdef void finish(self, Taken *taken, uint32_t written) noexcept nogil:
        """Give it back; the driver sees it at the next `show`."""
        self.give(taken.head, written)

    cdef void give(self, uint32_t head, uint32_t written) noexcept nogil:
        cdef uint8_t *element = self.used + HEADER + ELEMENT * (self.next & self.mask)
        vhu_set_word(element, head)
        vhu_set_word(element + 4, written)
        self.next += 1

    cdef bint show(self) noexcept nogil:
        cdef uint16_t before = self.shown
        if vhu_half_at(self.used + 2) == self.next:
            return False
        vhu_release()
        vhu_set_half(self.used + 2, self.next)
        self.shown = self.next
        vhu_fence()
        return self.wants(before)

    cdef bint wants(self, uint16_t before) noexcept nogil:
        """Whether the driver wants to hear of what was published since index `before`; the first time it always hears."""
        cdef uint16_t event
        cdef bint first = self.fresh
        self.fresh = False
        if not self.event_idx:
            return not vhu_half_at(self.available) & NO_INTERRUPT
        event = vhu_half_at(self.available + HEADER + 2 * self.size)
        return first or <uint16_t>(self.next - event - 1) < <uint16_t>(self.next - before)
