"""All rings of one or two descriptors over a small alphabet of fields: a device takes chains or finds the queue broken.

Whatever is in the ring, it ends, shows the driver nothing before it publishes, and looks at nothing but what lies in the
buffers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import product

import pytest

from tests.virtio_rig import (
    AVAIL,
    BUFFERS,
    DESCRIPTOR,
    INDIRECT,
    NEXT,
    PACKED_RIGS,
    SPLIT_RIGS,
    USED,
    WRITE,
    FragilePackedRig,
    PackedRig,
    Rig,
    SplitRig,
)
from vhostuser.errors import QueueBroken
from vhostuser.memory.fragile import FragileQueue, RingPart
from vhostuser.memory.mapping import address_of
from vhostuser.virtqueue import DeviceQueue

KINDS = (0, NEXT, WRITE, NEXT | WRITE, INDIRECT, INDIRECT | NEXT)
PLACES = ((BUFFERS, 16), (BUFFERS + 16, 32), (0, 16), (0, 0))
"""A table of one, a table of two, no memory, an empty buffer."""
QUICK = {name: kind for name, kind in PACKED_RIGS.items() if kind is not FragilePackedRig}
"""Those that make no system calls; the others are the same code over a copy."""
TABLES = b"".join(
    DESCRIPTOR.pack(*fields) for fields in ((BUFFERS, 1, 0, 0), (BUFFERS, 1, NEXT, 0), (BUFFERS, 4, WRITE, WRITE))
)


def attempt(rig: Rig) -> str:
    """Take and give back all that there is; what came of it."""
    rig.steps, taken, before = 0, 0, bytes(rig.descriptors)
    try:
        while chain := rig.device.pop():
            taken += 1
            assert taken <= rig.size
            assert len(chain.read()) == chain.readable_size <= 2 * 32
            assert all(view.obj is rig.buffers.obj for view in (*chain.readable, *chain.writable))
            rig.device.push(chain)
    except QueueBroken:
        return "broken"
    finally:
        assert rig.steps <= rig.size * (rig.size + 1)
        assert before[14::16] == bytes(rig.descriptors)[14::16]
        assert before[15::16] == bytes(rig.descriptors)[15::16]
    return f"{taken} taken"


def fill(rig: Rig, entries: Iterable[bytes]) -> None:
    rig.descriptors[:] = b"".join(entries)
    rig.buffers[: len(TABLES)] = TABLES


def split_rings(size: int, kind: type[SplitRig] = SplitRig) -> Iterator[SplitRig]:
    alphabet = [DESCRIPTOR.pack(*place, *rest) for place, *rest in product(PLACES, KINDS, range(size + 1))]
    heads = list(product(range(size + 1), repeat=size))
    rig = kind(size, buffers=64)
    for entries in product(alphabet, repeat=size):
        for chosen, waiting in product(heads, (1, size, size + 1)):
            fill(rig, entries)
            rig.available[2:] = b"".join(each.to_bytes(2, "little") for each in (waiting, *chosen))
            rig.used[2:4] = b"\0\0"
            rig.device = rig.new_device(0, indirect=True)
            yield rig


def packed_rings(size: int, kind: type[PackedRig] = PackedRig) -> Iterator[PackedRig]:
    marks = (0, AVAIL, USED, AVAIL | USED)
    alphabet = [
        DESCRIPTOR.pack(*place, buffer_id, kind | mark)
        for place, kind, mark, buffer_id in product(PLACES, KINDS, marks, (0, size))
    ]
    rig = kind(size, buffers=64)
    for at, entries in enumerate(product(alphabet, repeat=size)):
        for start in range(2 * size) if size == 1 else (at % 4, (at + 2) % 4):
            fill(rig, entries)
            rig.device = rig.new_device(rig.base_at(start), indirect=True)
            yield rig


COUNTS = {1: 288, 2: 139_968}
"""Split rings of that size: descriptors of 4 places, 6 kinds and size + 1 continuations, as many heads, 3 indices."""


@pytest.mark.parametrize("size", COUNTS)
@pytest.mark.parametrize("half", [*(name for name in SPLIT_RIGS if name != "split"), "fragile"])
def test_both_halves_give_the_same_chains_or_the_same_fault_for_every_split_ring(half: str, size: int) -> None:
    """The pure half, and the compiled one, or the one for memory that may shrink; of the latter every fifth ring."""
    kind, step = (FragileRig, 5) if half == "fragile" else (SPLIT_RIGS[half], 1)
    count = 0
    for expected, rig in zip(split_rings(size), split_rings(size, kind), strict=True):
        if count % step == 0:
            assert taken(rig) == taken(expected), (bytes(rig.descriptors), bytes(rig.available))
        count += 1
    assert count == COUNTS[size]


def taken(rig: Rig) -> list[object]:
    """Take and give back all that there is: each chain as offsets and sizes in the buffers, the fault, and the used ring."""
    came: list[object] = []
    start = address_of(rig.buffers)
    try:
        while chain := rig.device.pop():
            parts = (chain.readable, chain.writable)
            came.append((chain.head, *([(address_of(view) - start, view.nbytes) for view in part] for part in parts)))
            chain.write(b"12")
            rig.device.push(chain)
    except QueueBroken as error:
        came.append(str(error))
    rig.device.publish()
    return [*came, rig.device.base, bytes(rig.used), bytes(rig.buffers)]


class FragileRig(SplitRig):
    """The same with the half for memory whose file may shrink; here it does not."""

    def new_device(self, base: int, *, indirect: bool) -> DeviceQueue:
        parts = [RingPart(address_of(part), part.nbytes, part) for part in self.parts]
        return FragileQueue(self.size, parts[0], parts[1], parts[2], self, base=base, indirect=indirect)


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize(
    "rings",
    [
        *(partial(split_rings, kind=kind) for kind in SPLIT_RIGS.values()),
        *(partial(packed_rings, kind=kind) for kind in QUICK.values()),
    ],
    ids=[*SPLIT_RIGS, *QUICK],
)
def test_all_rings_of_one_or_two_descriptors_end_in_chains_or_a_broken_queue(
    rings: Callable[[int], Iterator[Rig]], size: int
) -> None:
    came = {attempt(rig) for rig in rings(size)}
    assert came >= {"broken", f"{size} taken"}
