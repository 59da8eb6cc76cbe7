"""Images of rings, mostly sane, and what a device half does with one: the same, whichever half it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import NamedTuple

from tests.halves import using
from tests.virtio_rig import AVAIL, DESCRIPTOR, INDIRECT, NEXT, USED, WRITE
from vhostuser.errors import QueueBroken
from vhostuser.memory.guest import GuestMemory, GuestRegion
from vhostuser.virtio.chain import DescriptorChain
from vhostuser.virtio.numbers import Feature
from vhostuser.virtqueue import DeviceQueue, new_device_queue

Entry = tuple[int, int, int, int]
TOP = 1 << 64


class Area(NamedTuple):
    """A region of guest memory to be made."""

    start: int
    size: int
    read_only: bool


@dataclass(frozen=True)
class Image:
    """All that a device finds in memory."""

    size: int
    base: int
    indirect: bool
    areas: tuple[Area, ...]
    content: bytes
    descriptors: bytes
    available: bytes
    used: bytes
    packed: bool = False

    @property
    def features(self) -> int:
        return self.indirect << Feature.RING_INDIRECT_DESC | self.packed << Feature.RING_PACKED


class Seen(NamedTuple):
    """All that can be seen of a chain."""

    readable: list[tuple[object, ...]]
    writable: list[tuple[object, ...]]
    rest: dict[str, object]

    @classmethod
    def of(cls, chain: DescriptorChain) -> Seen:
        rest = {name: getattr(chain, name) for name in DescriptorChain.__slots__ if name not in ("readable", "writable")}
        return cls(list(map(_look, chain.readable)), list(map(_look, chain.writable)), rest)


def _look(view: memoryview) -> tuple[object, ...]:
    names = ("format", "itemsize", "nbytes", "shape", "strides", "readonly", "c_contiguous")
    return type(view.obj), *(getattr(view, name) for name in names), bytes(view)


class Outcome(NamedTuple):
    """What a device did with an image."""

    chains: list[Seen]
    broken: str
    published: tuple[bool, bool]
    base: int
    parts: list[bytes]


class Device:
    """A queue of one half over its own copy of an image."""

    def __init__(self, half: str, image: Image) -> None:
        self.image = image
        self.memory = [bytearray((image.content * area.size)[: area.size]) for area in image.areas]
        self.parts = [bytearray(part) for part in (image.descriptors, image.available, image.used)]
        regions = []
        for area, data in zip(image.areas, self.memory, strict=True):
            view = memoryview(data)
            regions.append(GuestRegion(area.start, 0, view.toreadonly() if area.read_only else view, ()))
        descriptors, available, used = (memoryview(part) for part in self.parts)
        rest = (GuestMemory(regions), image.features)
        with using(half):
            self.queue: DeviceQueue = new_device_queue(image.size, descriptors, available, used, *rest, base=image.base)

    def drain(self, pop: Callable[[DeviceQueue], list[DescriptorChain]]) -> Outcome:
        """Take all there is, give it back and publish it."""
        chains: list[DescriptorChain] = []
        broken = ""
        try:
            while len(chains) <= self.image.size and (more := pop(self.queue)):
                chains += more
        except QueueBroken as error:
            broken = str(error)
        for number, chain in enumerate(chains):
            chain.written = number * 7
            self.queue.push(chain)
        published = self.queue.publish(), self.queue.publish()
        for number, data in enumerate(self.memory):
            data[:] = bytes((at + 37 * number) % 256 for at in range(len(data)))  # so that a view tells where it lies
        return Outcome(
            [Seen.of(chain) for chain in chains], broken, published, self.queue.base, list(map(bytes, self.parts))
        )


def one(queue: DeviceQueue) -> list[DescriptorChain]:
    """What `pop` gives."""
    chain = queue.pop()
    return [chain] if chain else []


def areas(random: Random) -> tuple[Area, ...]:
    """A few regions, side by side or with gaps, at the bottom or at the very top of the address space, or at both."""
    rows = [(random.choice([0, 0, 16, 4096]), random.choice([16, 40, 160])) for _ in range(random.randint(1, 4))]
    length = sum(map(sum, rows))
    at = random.choice([0, 4096, TOP - length])
    made = [Area(0, 160, False)] if at > 4096 and random.random() < 0.5 else []
    for gap, size in rows:
        made.append(Area(at + gap, size, random.random() < 0.1))
        at += gap + size
    return tuple(made)[random.random() < 0.1 :]


def buffer(random: Random, regions: tuple[Area, ...], oddity: float) -> tuple[int, int, int]:
    """What a descriptor may say: address, length and flags."""
    area = random.choice(regions) if regions else Area(0, 16, False)
    offset = random.choice([0, 0, 1, area.size - 16])
    address = area.start + offset
    length = random.choice([0, 1, 8, 16, 16, 32, area.size - offset, area.size - offset + 8])
    flags = random.choice([0, 0, NEXT, NEXT, WRITE, WRITE | NEXT, INDIRECT])
    if random.random() < oddity:
        address = random.choice([address, area.start + area.size, random.randrange(TOP), TOP - 1])
        length = random.choice([17, 160, 1 << 31, (1 << 32) - 1])
        flags = random.choice([flags, INDIRECT | NEXT, INDIRECT | WRITE, 0xFFFF])
    return address % TOP, length, flags


def packed_image_of(random: Random) -> Image:
    """The same of packed rings, of any size, in either round, with requests in progress."""
    size = random.choice([1, 2, 3, 7, 11])
    regions = areas(random)
    oddity = random.choice([0, 0, 0.02, 0.1, 0.5])
    long = random.random() < 0.3
    progress = random.choice([0, 0, random.randint(0, size)])
    start = random.randrange(2 * size)
    count = size if random.random() < oddity else random.choice([size - progress, random.randint(0, size - progress)])

    def entry(at: int) -> Entry:
        address, length, flags = buffer(random, regions, oddity)
        if long and random.random() > oddity:
            length, flags = min(length, 16), NEXT | (WRITE if at > size // 2 else 0)
        position = (start + at) % (2 * size)
        offered = (AVAIL, USED) if at < count else (AVAIL | USED, 0)
        mark = offered[position >= size]
        if at == count - 1 and random.random() > oddity:
            flags &= ~NEXT
        if random.random() < oddity / 4:
            mark = random.choice([0, AVAIL, USED, AVAIL | USED])
        return address, length, size if random.random() < oddity / 2 else random.randrange(size), flags & 0x7F7F | mark

    def table_entry() -> Entry:
        address, length, flags = buffer(random, regions, oddity)
        return (
            address,
            min(length, 40),
            0,
            flags & WRITE | random.choice([0, 0, NEXT]) if random.random() > oddity else flags,
        )

    entries = [entry(at) for at in range(size)]
    halves = [at % size | (at < size) << 15 for at in (start, (start - progress) % (2 * size))]
    return Image(
        size,
        halves[0] | halves[1] << 16,
        random.random() > oddity,
        regions,
        _packed([table_entry() for _ in range(random.randint(1, 4))]),
        _packed([entries[(slot - start) % size] for slot in range(size)]),
        bytes(4),
        random.randbytes(4),
        packed=True,
    )


def split_image_of(random: Random) -> Image:
    """Rings that are mostly sane, so that a walk gets somewhere before it meets what is not."""
    size = random.choice([1, 2, 8, 8])
    regions = areas(random)
    oddity = random.choice([0, 0, 0.02, 0.1, 0.5])

    def entry(at: int) -> Entry:
        address, length, flags = buffer(random, regions, oddity)
        following = _index(random, size, oddity) if random.random() < oddity else (at + 1) % size
        return address, length, flags, following

    base = random.choice([0, 1, 65530, 65535])
    count = random.choice([size + 1, 65535]) if random.random() < oddity / 4 else random.randint(0, size)
    halves = [0, (base + count) & 0xFFFF, *(_index(random, size, oddity) for _ in range(size))]
    return Image(
        size,
        base,
        random.random() > oddity,
        regions,
        _packed([entry(at) for at in range(random.randint(1, 10))]),
        _packed([entry(at) for at in range(size)]),
        b"".join(half.to_bytes(2, "little") for half in halves),
        bytes(2) + random.choice([0, 65535, base]).to_bytes(2, "little") + bytes(8 * size),
    )


def _index(random: Random, size: int, oddity: float) -> int:
    return random.choice([size, 65535]) if random.random() < oddity / 2 else random.randrange(size)


def _packed(entries: list[Entry]) -> bytes:
    return b"".join(DESCRIPTOR.pack(*entry) for entry in entries)
