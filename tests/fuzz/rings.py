"""Any image of a ring gives the same chains, the same fault and the same memory in every implementation of either half."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Final

from tests.fuzz.taking import Dice, Taker
from tests.fuzz.watching import check, outcome_of, watched
from tests.halves import HALVES
from tests.ring_images import Area, Device, Image, one, packed_image_of, split_image_of
from vhostuser.errors import QueueBroken
from vhostuser.memory.fragile import FragilePackedQueue, FragileQueue, RingPart
from vhostuser.memory.mapping import address_of
from vhostuser.virtio.chain import DescriptorChain
from vhostuser.virtio.formats import PACKED, SPLIT
from vhostuser.virtqueue import DeviceQueue

STEPS: Final = 40
Pop = Callable[[DeviceQueue], list[DescriptorChain]]


def one_input(data: bytes) -> None:
    """A ring that a driver has spoilt, seen by devices; then one that a device has spoilt, seen by a driver."""
    taker = Taker(data)
    how = taker.byte()
    with watched():
        if how % 4 == 3:
            _driver(taker, packed=bool(how & 4))
        else:
            image = _image(taker, how)
            used = bytes(2) + image.used[2:]  # what a device had asked for before says nothing: it wants every notification
            _devices(taker, replace(image, used=used))


def _image(taker: Taker, how: int) -> Image:
    """One that is mostly sane, or of any bytes."""
    if how % 4 < 2:
        return (packed_image_of if how & 4 else split_image_of)(Dice(taker))
    packed = bool(how & 4)
    size = 1 + taker.below(9) if packed else 1 << taker.below(4)
    halves = [taker.below(size) | taker.below(2) << 15 for _ in range(2)]
    base = halves[0] | halves[1] << 16 if packed else taker.number(2)
    image = Image(size, base, taker.flag(), (Area(0, 160, False), Area(160, 64, taker.flag())), b"", b"", b"", b"", packed)
    parts = [taker.take(part) for part in (PACKED if packed else SPLIT).sizes(size)]
    rest = taker.rest() or b"\0"
    return replace(image, content=rest[:64], descriptors=parts[0], available=parts[1], used=parts[2])


def _devices(taker: Taker, image: Image) -> None:
    """The device halves, one chain at a time and many at once, and those of memory that may shrink."""
    results = [_drained(lambda half=half: Device(half, image)) for half in HALVES]  # type: ignore[misc]  # of it
    check(results == results[:1] * len(HALVES), "the implementations differ", image, results)
    if "compiled" in HALVES:
        many = 1 + taker.below(9)
        batch = _drained(lambda: Device("compiled", image), lambda queue: queue.pop_many(many))  # type: ignore[union-attr]  # it has it
        check(batch == results[0], "many at a time are others", image, batch, results[0])
    check(_drained(lambda: Fragile(image)) == results[0], "in memory that may shrink they are others", image, results[0])


def _drained(make: Callable[[], Device], pop: Pop = one) -> object:
    """All that comes of it, or why there is no such queue."""
    try:
        device = make()
    except QueueBroken as error:
        return str(error)
    outcome = device.drain(pop)
    check(len(outcome.chains) <= device.image.size + 9, "more chains than entries", device.image)
    return outcome


class Fragile(Device):
    """A queue that works on a copy of its ring."""

    def __init__(self, image: Image) -> None:
        super().__init__("python", image)
        views = [memoryview(part) for part in self.parts]
        first, second, third = (RingPart(address_of(view), view.nbytes, view) for view in views)
        kind = FragilePackedQueue if image.packed else FragileQueue
        memory = self.queue.memory  # type: ignore[union-attr]  # no tracked one
        self.queue: DeviceQueue = kind(image.size, first, second, third, memory, base=image.base, indirect=image.indirect)


def _driver(taker: Taker, *, packed: bool) -> None:
    """The driver half: what it is given back it has offered, or the queue is broken; and it ends."""
    form, size, in_order = PACKED if packed else SPLIT, 1 << taker.below(4), taker.flag()
    parts = [memoryview(bytearray(part)) for part in form.sizes(size)]
    driver = form.driver(size, *parts, in_order=in_order)
    offered: dict[int, int] = {}
    for _ in range(STEPS):
        if not taker.left:
            break
        what = taker.byte()
        if what % 4 == 0:
            buffers = [(0x1000, taker.below(64)) for _ in range(1 + taker.below(3))]
            head, why = outcome_of(lambda given=buffers: driver.add([], given), BufferError)  # type: ignore[misc]  # of it
            if isinstance(head, int):
                check(head not in offered and head < size, "a head is given out twice", head, why)
                offered[head] = sum(length for _, length in buffers)
        elif what % 4 == 1:
            done, _ = outcome_of(driver.collect, QueueBroken)
            if isinstance(done, tuple):
                check(done[0] in offered, "what was not offered came back", done)
                del offered[done[0]]
            elif done == "QueueBroken":
                return
        else:
            part = parts[2 if what & 4 and not packed else 0]
            at = taker.below(part.nbytes)
            new = taker.take(1 + taker.below(8))[: part.nbytes - at]
            part[at : at + len(new)] = new
