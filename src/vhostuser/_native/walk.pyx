"""What both formats of a ring share, compiled: where guest memory lies, and how a chain is made of what was found there.

The twin of `virtio.walk`, without its texts. `DeviceRing` is what a loop without Python works on, whatever the format: it
takes a chain into `pieces`, keeps it, gives it back and shows all of them to the driver.
"""

cimport cython
from cpython.memoryview cimport PyMemoryView_FromObject, PyMemoryView_GET_BUFFER
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc

from ..errors import QueueBroken
from .chain cimport Piece, RingChain, Taken, held, new_chain, number
from .guard cimport Guard, new_guard, ready_guard, vhu_enter, vhu_exit
from .live cimport *


def fence():
    """A full memory fence: what was stored before it is seen by whoever loads behind a fence of his own."""
    vhu_fence()


@cython.final
cdef class RegionTable:
    """Guest memory as `virtio.split.Memory` has it: (guest address, view) of each region, by rising address.

    A region whose file may shrink has a `memory.fragile.FragileView` in place of a view.
    """

    def __cinit__(self, regions):
        cdef Py_buffer *buffer
        cdef Region *region
        self.views = []
        self.regions = <Region *>calloc(max(1, len(regions)), sizeof(Region))
        if self.regions == NULL:
            raise MemoryError("no memory for a table of regions")
        self.last = self.regions
        for start, given in regions:
            view = own(given if isinstance(given, memoryview) else given.bare)
            home = view if isinstance(given, memoryview) else given
            self.fragile |= home is not view
            self.views.append((view, home))
            buffer = PyMemoryView_GET_BUFFER(view)
            region = &self.regions[self.count]
            region.start, region.len, region.at = start, buffer.len, <uint8_t *>buffer.buf
            region.view, region.readonly = <void *>home, buffer.readonly
            region.plain = 0 if region.readonly else region.len
            if self.count and (region.start < self.last.start or region.start - self.last.start < self.last.len):
                raise ValueError("regions must be sorted by guest address, and not overlap")
            self.last = region
            self.count += 1

    def __dealloc__(self):
        free(self.regions)


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


cdef int lay_pieces(DeviceRing ring, uint64_t addr, uint64_t len, bint writable, int count) noexcept nogil:
    """`lay` for any buffer that may follow what was laid."""
    cdef Region *region
    cdef Piece *piece
    cdef uint64_t skip, part
    while len:
        region = find(ring.table, addr)
        if region == NULL or count >= <int>ring.room or (writable and region.readonly):
            return -1
        skip = addr - region.start
        part = min(len, region.len - skip)
        piece = &ring.pieces[count]
        piece.at, piece.len, piece.view = region.at + skip, <uint32_t>part, region.view
        count, len, addr = count + 1, len - part, addr + part
        if addr == 0 and len:
            return -1
    return count


cdef class DeviceRing:
    """A virtqueue as its device sees it; `SplitRing` and `PackedRing` fill in what their formats do differently."""

    def __dealloc__(self):
        free(self.pieces)
        free(self.copy)

    cdef bint prepare(
        self, uint32_t size, tuple parts, memory, RegionTable table, bint indirect, bint event_idx, pure
    ) except False:
        """Room for the largest chain, and views of our own of the ring's parts.

        With `pure`, a queue of `memory.fragile` over them, the ring and the regions may lie in memory that may shrink.
        """
        if table.fragile and pure is None:
            raise ValueError("a region may shrink: a queue that survives this is needed as well")
        self.guarded, self.pure = pure is not None, pure
        self.size, self.indirect, self.event_idx = size, indirect, event_idx
        self.memory, self.table, self.fresh = memory, table, True
        self.parts = tuple([own(part) for part in parts])
        self.room = size + SPARE
        self.pieces = <Piece *>malloc((self.room + size) * sizeof(Piece))
        self.copy = <uint8_t *>malloc(size * ENTRY)
        if self.pieces == NULL or self.copy == NULL:
            raise MemoryError("no memory for a ring")
        return True

    def pop(self):
        """The next request, or None; QueueBroken if the driver left nonsense."""
        cdef int waiting = self.safely(LOOK, NULL, 0)
        if waiting > 0:
            return self.next_chain()
        return self.explain() if waiting else None

    def pop_many(self, uint32_t most):
        """The next requests, at most that many. QueueBroken only where the first of them is broken."""
        chains = []
        if self.safely(LOOK, NULL, 0) < 0:
            chain = self.explain()
            return [] if chain is None else [chain]
        while self.left > 0 and len(chains) < most:
            try:
                chain = self.next_chain()
            except QueueBroken:
                if not chains:
                    raise
                break
            if chain is None:
                break
            chains.append(chain)
        return chains

    def again(self, head, rows=()):
        """The chain of a head that was taken before ("Inflight I/O tracking")."""
        return self.pure.again(head, rows)

    def push(self, chain):
        """Give a request back; the driver sees it at the next `publish`."""
        cdef Taken taken
        taken.readable = taken.count = 0
        if type(chain) is RingChain:
            taken.head = number(held((<RingChain>chain).head))
            taken.entries = number(held((<RingChain>chain).entries))
            self.safely(FINISH, &taken, number(held((<RingChain>chain).written)))
        else:
            taken.head, taken.entries = number(chain.head), number(chain.entries)
            self.safely(FINISH, &taken, number(chain.written))

    def publish(self):
        """Show the driver all that was pushed; whether to notify it."""
        if self.guarded:
            new_guard()  # once a batch: somebody may have asked for SIGBUS meanwhile
        return self.safely(SHOW, NULL, 0) != 0

    def enable_kicks(self):
        """Ask the driver for a kick at the next request; whether one came before it could know, and waits."""
        if self.guarded:
            new_guard()
        self.resting = False
        return self.safely(ASK, NULL, 0) != 0

    def disable_kicks(self):
        """Tell the driver that nobody needs a kick, until `enable_kicks`: a hint ("Available Buffer Notification Suppression")."""
        if self.guarded:
            new_guard()
        self.resting = True
        self.safely(REST, NULL, 0)

    cdef object next_chain(self):
        """The chain that waits next."""
        cdef Taken taken
        if not self.safely(TAKE, &taken, 0):
            return self.explain()
        chain = new_chain(self.table, &taken, self.pieces, self.guarded)
        self.safely(KEEP, &taken, 0)
        return chain

    cdef int safely(self, int what, Taken *taken, uint32_t written) except -2:
        """A step, within a guard if memory may be gone. QueueBroken if it is."""
        cdef Guard *guard
        cdef int result
        if not self.guarded:
            return self.step(what, taken, written)
        guard = ready_guard()
        if vhu_enter(guard):
            raise QueueBroken("guest memory is gone: its file was truncated")
        result = self.step(what, taken, written)
        vhu_exit(guard)
        return result

    cdef int step(self, int what, Taken *taken, uint32_t written) noexcept nogil:
        """One of those that follow."""
        cdef int result = 0
        if what == LOOK:
            result = self.waiting()
        elif what == TAKE:
            result = self.take(taken)
        elif what == KEEP:
            result = self.keep(taken)
        elif what == FINISH:
            self.finish(taken, written)
        elif what == SHOW:
            result = self.show()
        elif what == ASK:
            result = self.ask()
        else:
            self.rest()
        return result

    cdef int waiting(self) noexcept nogil:
        """How many chains wait, at least, which is `left`, too; -1 if that can't be.

        With none, and EVENT_IDX, the driver is asked for a kick, and looked at again.
        """
        return 0

    cdef bint take(self, Taken *taken) noexcept nogil:
        """Follow the next chain, which waits, into `pieces`; false, and nothing has changed, if anything is unusual."""
        return False

    cdef int keep(self, Taken *taken) noexcept nogil:
        """The chain that was taken is the device's: go on behind it. How many more wait, at least, as far as was seen."""
        return 0

    cdef void finish(self, Taken *taken, uint32_t written) noexcept nogil:
        """Give a chain back; the driver sees it at the next `show`."""

    cdef bint show(self) noexcept nogil:
        """Show the driver all that was given back; whether to notify it."""
        return False

    cdef bint ask(self) noexcept nogil:
        """Ask for a kick at the next request, and look once more: whether one came before the driver could know."""
        return False

    cdef void rest(self) noexcept nogil:
        """Tell the driver that nobody needs a kick."""

    cdef object explain(self):
        """The next chain from the pure queue: it raises what is wrong, or takes what is only out of the ordinary."""
        return None
