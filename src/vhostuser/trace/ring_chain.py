"""Descriptor chains as a bystander follows them: bounded, by copies of the tables; buffers are not looked into."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from struct import Struct
from typing import Final

from ..errors import MemoryFault, QueueBroken
from ..virtio.numbers import DESC_INDIRECT, DESC_NEXT, DESC_WRITE, DESCRIPTOR_SIZE
from .event import Buffer
from .places import Place, Places

STEPS: Final = 1 << 14
"""Descriptors, about, that one look at a ring follows: it must not take for ever, whatever they are."""
DESCRIPTOR: Final = Struct("<QIHH")
"""Address, length, then flags and next (split), or id and flags (packed)."""
Read = Callable[[int, int], bytes]
"""Bytes of guest memory, by address and length; MemoryFault where there are none."""


@dataclass(frozen=True, slots=True)
class SeenChain:
    """A request as its descriptors were when they were looked at."""

    head: int
    buffers: tuple[Buffer, ...]
    slots: frozenset[int]
    """The descriptors of the ring that it takes up."""
    table: range = range(0)
    """Guest addresses of its indirect table, if it has one."""

    @property
    def granules(self) -> range:
        """Its indirect table in units of a descriptor's size: what two tables share if one was written over the other."""
        return range(self.table.start // DESCRIPTOR_SIZE, -(-self.table.stop // DESCRIPTOR_SIZE))

    @property
    def steps(self) -> int:
        """How much work it was to follow."""
        return len(self.slots) + len(self.buffers)

    @property
    def places(self) -> list[Place]:
        """Address and length of all its buffers."""
        return [(each.address, each.len) for each in self.buffers]

    @property
    def readable(self) -> list[Place]:
        """Address and length of what the device reads."""
        return [(each.address, each.len) for each in self.buffers if not each.writable]

    @property
    def writable(self) -> list[Place]:
        """Address and length of what the device may write."""
        return [(each.address, each.len) for each in self.buffers if each.writable]


class Overlay:
    """What newer requests lie over."""

    def __init__(self) -> None:
        self._slots, self._granules = set[int](), set[int]()
        self._places = Places()

    def add(self, chain: SeenChain) -> None:
        """A request that is newer than all that follow."""
        self._slots |= chain.slots
        self._granules.update(chain.granules)
        self._places.add(chain.places)

    def hides(self, chain: SeenChain) -> bool:
        """Of a request something may be gone: its descriptors, its table, or what is in its buffers."""
        if not (self._slots.isdisjoint(chain.slots) and self._granules.isdisjoint(chain.granules)):
            return True
        return self._places.meet(chain.places)


def split_chain(table: bytes, size: int, head: int, read: Read) -> SeenChain:
    """The chain at `head` of a copied descriptor table. QueueBroken if it is none, MemoryFault if its table is nowhere."""
    if head >= size:
        raise QueueBroken(f"a chain starts at descriptor {head}, the queue has {size}")
    buffers: list[Buffer] = []
    slots, index = set[int](), head
    while True:
        address, length, flags, following = DESCRIPTOR.unpack_from(table, index * DESCRIPTOR_SIZE)
        slots.add(index)
        if flags & DESC_INDIRECT:
            inner = _table(address, length, flags, size, read)
            buffers += _linked(inner, size - len(buffers))
            return SeenChain(head, tuple(buffers), frozenset(slots), range(address, address + length))
        buffers.append(Buffer(address, length, bool(flags & DESC_WRITE)))
        if not flags & DESC_NEXT:
            return SeenChain(head, tuple(buffers), frozenset(slots))
        if following >= size:
            raise QueueBroken(f"descriptor {index} continues at {following}, the queue has {size}")
        if following in slots:
            raise QueueBroken(f"the chain at descriptor {head} loops")
        index = following


def packed_table(head: int, slot: int, descriptor: tuple[int, int, int], size: int, read: Read) -> SeenChain:
    """The chain whose only descriptor (address, length, flags) refers to an indirect table: its entries in their order."""
    address, length, flags = descriptor
    inner = _table(address, length, flags, size, read)
    buffers = tuple(_in_row(inner))
    return SeenChain(head, buffers, frozenset((slot,)), range(address, address + length))


def _table(address: int, length: int, flags: int, size: int, read: Read) -> bytes:
    """A copy of an indirect table ("Indirect Descriptors")."""
    if flags & DESC_NEXT:
        raise QueueBroken("an indirect descriptor has NEXT set")
    if not length or length % DESCRIPTOR_SIZE or length > size * DESCRIPTOR_SIZE:
        raise QueueBroken(f"an indirect table of {length} bytes")
    try:
        return read(address, length)
    except MemoryFault as error:
        raise QueueBroken(f"an indirect table is nowhere: {error}") from None


def _linked(table: bytes, most: int) -> Iterator[Buffer]:
    """The buffers of a split ring's indirect table, `most` at most."""
    count, index = len(table) // DESCRIPTOR_SIZE, 0
    for _ in range(min(count, most)):
        address, length, flags, following = DESCRIPTOR.unpack_from(table, index * DESCRIPTOR_SIZE)
        _check_direct(flags)
        yield Buffer(address, length, bool(flags & DESC_WRITE))
        if not flags & DESC_NEXT:
            return
        if following >= count:
            raise QueueBroken(f"entry {index} of an indirect table continues at {following}, it has {count}")
        index = following
    raise QueueBroken("a chain in an indirect table is longer than the table or the queue, or loops")


def _in_row(table: bytes) -> Iterator[Buffer]:
    for address, length, _, flags in DESCRIPTOR.iter_unpack(table):
        _check_direct(flags)
        yield Buffer(address, length, bool(flags & DESC_WRITE))


def _check_direct(flags: int) -> None:
    if flags & DESC_INDIRECT:
        raise QueueBroken("an indirect descriptor inside an indirect table")
