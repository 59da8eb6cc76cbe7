"""The device half of a split virtqueue, compiled: what `virtio.split.SplitQueue` does, with memory fences.

So it may offer EVENT_IDX and leave out notifications that the driver does not want ("Virtqueue Interrupt Suppression").
It takes chains that are entirely right, and nothing else: what is not it leaves where it is, and the pure queue walks it
once more, where the same checks have their texts. Each field in guest memory is read once, into a copy of ours.
Little-endian hosts only.
"""

cimport cython
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from . cimport walk
from ..virtio.split import SplitQueue
from .chain cimport Taken
from .live cimport *
from .walk cimport ENTRY, INDIRECT, NEXT, WRITE, DeviceRing, Region, enter, lay, start_of
from .walk import RegionTable, fence

cdef enum:
    HEADER = 4  # bytes of flags and index, in both rings
    ELEMENT = 8  # bytes of a used element

cdef enum:
    # The inflight area, as in `tracked_split`: a header, and entries, from which the header's fields are counted.
    AREA_HEADER = 16
    AREA_ENTRY = 16
    LAST_BATCH = -4
    USED_INDEX = -2
    BATCH_NEXT = 6

cdef enum:
    # As in `virtio.numbers`.
    NO_INTERRUPT = 1
    NO_NOTIFY = 1


@cython.final
cdef class SplitRing(DeviceRing):
    """One split virtqueue as its device sees it. `base` is the next available index to take."""

    def __cinit__(
        self,
        uint32_t size,
        descriptors,
        available,
        used,
        memory,
        walk.RegionTable table not None,
        *,
        uint16_t base=0,
        bint indirect=True,
        bint event_idx=False,
        pure=None,
    ):
        cdef int extra = 2 if event_idx else 0
        if not 0 < size <= 1 << 15 or size & (size - 1):
            raise ValueError(f"a queue of {size} entries")
        self.base, self.mask = base, size - 1
        self.prepare(size, (descriptors, available, used), memory, table, indirect, event_idx, pure)
        self.descriptors = start_of(self.parts[0], size * ENTRY)
        self.available = start_of(self.parts[1], HEADER + 2 * size + extra)
        self.used = start_of(self.parts[2], HEADER + ELEMENT * size + extra)
        if self.parts[2].readonly:
            raise ValueError("the used ring is in read-only memory")
        rings = available[:HEADER + 2 * size], used[:HEADER + ELEMENT * size]
        if not self.guarded:
            self.pure = SplitQueue(size, descriptors, *rings, memory, base=base, indirect=indirect)
        self.next = self.shown = self.pure.used

    def track(self, part, uint64_t counter, left_over):
        """Keep the books in `part` of an inflight area from now on ("Inflight I/O tracking").

        `left_over` are heads that were taken before: they come first. The next request that is taken gets `counter`.
        """
        self.area = walk.own(part)
        self.entries = start_of(self.area, AREA_HEADER + AREA_ENTRY * self.size) + AREA_HEADER
        self.counter, self.left_over = counter, list(left_over)
        self.behind = len(self.left_over)

    def books(self):
        """What another queue needs to go on with the books: the counter and the heads that are left over, or None."""
        return None if self.entries == NULL else (self.counter, self.left_over)

    cdef object explain(self):
        if self.left_over:
            self.behind -= 1
            return self.pure.again(self.left_over.pop(0))
        self.pure.base = self.base
        chain = self.pure.pop()
        self.base = self.pure.base
        self.left = 0 if chain is None else self.left - 1
        if chain is not None and self.entries != NULL:
            self.enter(chain.head)
        return chain

    cdef void enter(self, uint16_t head) noexcept nogil:
        """A request is in progress: its place in the order first."""
        cdef uint8_t *entry = self.entries + AREA_ENTRY * head
        vhu_set_long(entry + 8, self.counter)
        vhu_set_byte(entry, 1)
        self.counter += 1

    cdef void settle(self, uint16_t count) noexcept nogil:
        """The driver sees that `count` requests are done: they are in progress no more."""
        cdef uint16_t head = vhu_half_at(self.entries + LAST_BATCH)
        while count and head < self.size:
            vhu_set_byte(self.entries + AREA_ENTRY * head, 0)
            head = vhu_half_at(self.entries + AREA_ENTRY * head + BATCH_NEXT)
            count -= 1
        vhu_set_half(self.entries + USED_INDEX, self.shown)

    cdef int waiting(self) noexcept nogil:
        cdef uint16_t count = vhu_half_at(self.available + 2) - self.base
        if count == 0 and self.event_idx and not self.resting:
            self.ask()
            count = vhu_half_at(self.available + 2) - self.base
        vhu_acquire()
        self.left = count if count <= self.size and not self.behind else -1
        return self.left

    cdef bint ask(self) noexcept nogil:
        if self.event_idx:
            vhu_set_half(self.used + HEADER + ELEMENT * self.size, self.base)
        else:
            vhu_set_half(self.used, 0)
        vhu_fence()
        return vhu_half_at(self.available + 2) != self.base

    cdef void rest(self) noexcept nogil:
        if not self.event_idx:
            vhu_set_half(self.used, NO_NOTIFY)

    cdef bint take(self, Taken *taken) noexcept nogil:
        cdef const uint8_t *table = self.descriptors
        cdef uint32_t entries = self.size, index, steps = 0, len
        cdef uint64_t addr, rest, total = 0
        cdef uint32_t flags, head
        cdef int readable = 0, count = 0
        cdef Region *here = self.table.last
        index = head = vhu_half_at(self.available + HEADER + 2 * (self.base & self.mask))
        while steps < self.size and index < entries:
            addr, rest = vhu_long_at(table + index * ENTRY), vhu_long_at(table + index * ENTRY + 8)
            len, flags = <uint32_t>rest, (rest >> 32) & 0xFFFF
            if flags & INDIRECT:
                if table == self.copy or not enter(self, addr, len, flags):
                    return False
                table, entries, index = self.copy, len // ENTRY, 0
                continue
            steps, total = steps + 1, total + len
            count = lay(self, here, addr, len, flags & WRITE, readable, count)
            if total > 1ULL << 32 or count < 0:
                return False
            if not flags & WRITE:
                readable = count
            if not flags & NEXT:
                taken.head, taken.entries, taken.readable, taken.count = head, 1, readable, count
                return True
            index = <uint16_t>(rest >> 48)
        return False

    cdef int keep(self, Taken *taken) noexcept nogil:
        if self.entries != NULL:
            self.enter(taken.head)
        self.base += 1
        self.left -= 1
        return self.left

    cdef void finish(self, Taken *taken, uint32_t written) noexcept nogil:
        self.give(taken.head, written)

    cdef void give(self, uint32_t head, uint32_t written) noexcept nogil:
        cdef uint8_t *element = self.used + HEADER + ELEMENT * (self.next & self.mask)
        vhu_set_word(element, head)
        vhu_set_word(element + 4, written)
        self.next += 1
        if self.entries != NULL and head < self.size:
            vhu_set_half(self.entries + AREA_ENTRY * head + BATCH_NEXT, vhu_half_at(self.entries + LAST_BATCH))
            vhu_set_half(self.entries + LAST_BATCH, head)

    cdef bint show(self) noexcept nogil:
        cdef uint16_t before = self.shown
        if vhu_half_at(self.used + 2) == self.next:
            return False
        vhu_release()
        vhu_set_half(self.used + 2, self.next)
        self.shown = self.next
        vhu_fence()
        if self.entries != NULL:
            self.settle(self.shown - before)
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
