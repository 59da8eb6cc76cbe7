"""The device half of a packed virtqueue, compiled: what `virtio.packed.PackedQueue` does, with memory fences.

So it honours the driver's event suppression area, and says in its own when it needs no kick ("Event Suppression Structure
Format"); under EVENT_IDX both name a descriptor. As the compiled split ring it takes chains that are entirely right, and
leaves the rest to the pure queue, which explains. Positions count as they do there: modulo twice the size, the second half
of them in rounds of wrap counter 0.
"""

cimport cython
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc

from ..virtio.packed import FIRST_BASE, PackedQueue, read_base
from .chain cimport Taken
from .live cimport *
from .walk cimport ENTRY, INDIRECT, NEXT, WRITE, DeviceRing, Region, RegionTable, enter, lay, start_of

cdef enum:
    # Where a descriptor has these, and an event suppression area.
    LENGTH = 8
    BUFFER_ID = 12
    FLAGS = 14
    EVENT_FLAGS = 2
    EVENT = 4  # bytes of such an area

cdef enum:
    # As in `virtio.numbers`.
    AVAIL = 1 << 7
    USED = 1 << 15
    ENABLE = 0
    DISABLE = 1
    DESC = 2
    WRAP = 1 << 15


@cython.final
cdef class PackedRing(DeviceRing):
    """One packed virtqueue as its device sees it."""

    def __cinit__(
        self,
        uint32_t size,
        descriptors,
        driver_event,
        device_event,
        memory,
        RegionTable table not None,
        *,
        uint32_t base=FIRST_BASE,
        bint indirect=True,
        bint event_idx=False,
        pure=None,
    ):
        if not 0 < size <= 1 << 15:
            raise ValueError(f"a queue of {size} entries")
        self.prepare(size, (descriptors, driver_event, device_event), memory, table, indirect, event_idx, pure)
        self.descriptors = start_of(self.parts[0], size * ENTRY)
        self.driver_event = start_of(self.parts[1], EVENT)
        self.device_event = start_of(self.parts[2], EVENT)
        if self.parts[0].readonly or self.parts[2].readonly:
            raise ValueError("the descriptor ring or the device's event area is in read-only memory")
        self.hidden = <uint32_t *>malloc(size * sizeof(uint32_t))
        if self.hidden == NULL:
            raise MemoryError("no memory for a ring")
        self.last = 2 * size
        self.position, self.used = read_base(base, size)
        self.shown = self.used
        if not self.guarded:
            self.pure = PackedQueue(size, *self.parts, memory, base=base, indirect=indirect)

    def __dealloc__(self):
        free(self.hidden)

    @property
    def base(self):
        """Where the next descriptor is taken, and where the driver looks for the next used one, as vhost-user says it."""
        return self.half(self.position) | <uint32_t>self.half(self.shown) << 16

    cdef object explain(self):
        self.pure.resume(self.position, self.shown)
        chain = self.pure.pop()
        if chain is not None:
            self.position = self.behind(self.position, chain.entries)
        self.left = self.offered()
        return chain

    cdef int waiting(self) noexcept nogil:
        self.left = self.offered()
        if not self.left and self.event_idx and not self.resting:
            self.left = self.ask()
        return self.left

    cdef bint offered(self) noexcept nogil:
        """The descriptor at `position` is available."""
        cdef bint first = self.position < self.size
        cdef const uint8_t *entry = self.descriptors + (self.position if first else self.position - self.size) * ENTRY
        return vhu_half_at(entry + FLAGS) & (AVAIL | USED) == (AVAIL if first else USED)

    cdef bint ask(self) noexcept nogil:
        if self.event_idx:
            vhu_set_half(self.device_event, self.half(self.position))
            vhu_release()
        vhu_set_half(self.device_event + EVENT_FLAGS, DESC if self.event_idx else ENABLE)
        vhu_fence()
        return self.offered()

    cdef void rest(self) noexcept nogil:
        vhu_set_half(self.device_event + EVENT_FLAGS, DISABLE)

    cdef bint take(self, Taken *taken) noexcept nogil:
        cdef bint first = self.position < self.size
        cdef uint32_t slot = self.position if first else self.position - self.size, size = self.size, len
        cdef uint32_t room = size - self.distance(self.shown, self.position), entries = 0
        cdef uint32_t mark = AVAIL if first else USED, flags
        cdef uint64_t total = 0
        cdef const uint8_t *entry = self.descriptors + slot * ENTRY
        cdef int readable = 0, count = 0
        cdef Region *here = self.table.last
        while entries < room:
            flags = vhu_half_at(entry + FLAGS)
            if flags & (AVAIL | USED) != mark:
                return False
            vhu_acquire()
            entries += 1
            if flags & INDIRECT:
                return entries == 1 and self.take_table(entry, flags, taken)
            len = vhu_word_at(entry + LENGTH)
            total += len
            count = lay(self, here, vhu_long_at(entry), len, flags & WRITE, readable, count)
            if total > 1ULL << 32 or count < 0:
                return False
            if not flags & WRITE:
                readable = count
            if not flags & NEXT:
                taken.head, taken.entries, taken.readable, taken.count = vhu_half_at(entry + BUFFER_ID), entries, readable, count
                return taken.head < size
            slot, entry = slot + 1, entry + ENTRY
            if slot == size:
                slot, entry, mark = 0, self.descriptors, mark ^ (AVAIL | USED)
        return False

    cdef bint take_table(self, const uint8_t *entry, uint16_t flags, Taken *taken) noexcept nogil:
        """Take the buffers of an indirect table one after another: of the flags in it only WRITE means anything."""
        cdef uint32_t size = vhu_word_at(entry + LENGTH), at = 0, len
        cdef uint64_t total = 0
        cdef uint16_t last = 0
        cdef int readable = 0, count = 0
        cdef Region *here = self.table.last
        if not enter(self, vhu_long_at(entry), size, flags):
            return False
        while at < size:
            len, last = vhu_word_at(self.copy + at + LENGTH), vhu_half_at(self.copy + at + FLAGS)
            total += len
            count = lay(self, here, vhu_long_at(self.copy + at), len, last & WRITE, readable, count)
            if last & INDIRECT or total > 1ULL << 32 or count < 0:
                return False
            if not last & WRITE:
                readable = count
            at += ENTRY
        taken.head, taken.entries, taken.readable, taken.count = vhu_half_at(entry + BUFFER_ID), 1, readable, count
        return not last & NEXT and taken.head < self.size

    cdef int keep(self, Taken *taken) noexcept nogil:
        self.position = self.behind(self.position, taken.entries)
        self.left = self.offered()
        return self.left

    cdef void finish(self, Taken *taken, uint32_t written) noexcept nogil:
        """The id and the length go into the descriptor now, its flags at `show`."""
        cdef bint first = self.used < self.size
        cdef uint32_t slot = self.used if first else self.used - self.size
        cdef uint8_t *entry = self.descriptors + slot * ENTRY
        if self.hidden_count == self.size:  # more than was ever taken
            return
        vhu_set_half(entry + BUFFER_ID, taken.head)
        vhu_set_word(entry + LENGTH, written)
        self.hidden[self.hidden_count] = slot << 16 | (AVAIL | USED if first else 0) | (WRITE if written else 0)
        self.hidden_count += 1
        self.used = self.behind(self.used, taken.entries)

    cdef bint show(self) noexcept nogil:
        """The flags of the first descriptor are written last: the driver, who reads in order, sees none before that one."""
        cdef uint32_t before = self.shown, at = self.hidden_count
        if at == 0:
            return False
        while at > 1:
            at -= 1
            self.mark(self.hidden[at])
        vhu_release()
        self.mark(self.hidden[0])
        self.hidden_count = 0
        self.shown = self.used
        vhu_fence()
        return self.wants(before)

    cdef inline void mark(self, uint32_t row) noexcept nogil:
        vhu_set_half(self.descriptors + (row >> 16) * ENTRY + FLAGS, <uint16_t>row)

    cdef bint wants(self, uint32_t before) noexcept nogil:
        """Whether the driver wants to hear of what was published since position `before`.

        One load takes in its whole area. Where it names a descriptor it hears of the first publication of a ring always.
        """
        cdef uint32_t event = vhu_word_at(self.driver_event), off = event & (WRAP - 1), flags = event >> 16 & 3
        cdef bint first = self.fresh
        self.fresh = False
        if flags == DISABLE:
            return False
        if flags != DESC or not self.event_idx or first or off >= self.size:
            return True
        off = off if event & WRAP else off + self.size
        return self.distance(before, off) < self.distance(before, self.used)

    cdef inline uint32_t behind(self, uint32_t position, uint32_t entries) noexcept nogil:
        position += entries
        while position >= self.last:
            position -= self.last
        return position

    cdef inline uint32_t distance(self, uint32_t start, uint32_t end) noexcept nogil:
        return end - start if end >= start else end + self.last - start

    cdef inline uint16_t half(self, uint32_t position) noexcept nogil:
        """A position as the ring's fields and vhost-user have it: the slot, and the wrap counter in its top bit."""
        return <uint16_t>(position | WRAP if position < self.size else position - self.size)
