"""Rules about rings that are in order: requests come back, once, and the driver is told."""

from __future__ import annotations

from collections.abc import Callable
from struct import Struct
from typing import Final

from ...protocol.numbers import FrontendRequest, ProtocolFeature
from ...protocol.payloads import U64, VringState
from ...virtio.formats import PACKED, SPLIT, Format
from ...virtio.numbers import AVAIL_NO_INTERRUPT, DESC_INDIRECT, DESC_NEXT, DESC_WRITE, Feature
from ..backend_bench import BACK_END, BackendBench
from ..family import declare
from ..outcome import Deviation, NotApplicable
from ..ring import SIZE, TABLE, Ring, begin
from ..rule import Level

F, Q = ProtocolFeature, FrontendRequest
_DESCRIPTOR: Final = Struct("<QIHH")
FORMS: Final = {"a_split_ring": SPLIT, "a_packed_ring": PACKED}
_WAIT: Final = 0.05
"""Seconds in which nothing has to happen."""


def comes_back(bench: BackendBench, ring: Ring) -> None:
    """One request after the other."""
    for _ in range(3):
        ring.exchange()


def wraps(bench: BackendBench, ring: Ring) -> None:
    """More requests than the ring has entries."""
    for _ in range(3 * SIZE + 1):
        ring.exchange()


def framed(bench: BackendBench, ring: Ring) -> None:
    """A request whose buffers are as small as there are descriptors for."""
    readable, writable = ring.buffers(SIZE // 2)
    if len(readable) + len(writable) < 3:
        raise NotApplicable("its request is too short to be in pieces")
    ring.exchange(SIZE // 2)


def full(bench: BackendBench, ring: Ring) -> None:
    """As many requests at once as the ring has room for."""
    readable, writable = ring.buffers()
    count = SIZE // (len(readable) + len(writable))
    heads = {ring.driver.add(readable, writable) for _ in range(count)}
    ring.kick()
    while heads:
        head, _ = ring.collect(f"chains {sorted(heads)} given back")
        if head not in heads:
            raise Deviation(f"one of the chains {sorted(heads)} given back", f"chain {head}")
        heads.remove(head)


def spurious(bench: BackendBench, ring: Ring) -> None:
    """Kicks with nothing to do."""
    for _ in range(3):
        ring.kick()
    ring.exchange()
    ring.kick()
    ring.exchange()
    ring.stop()
    if ring.collected() is not None:
        raise Deviation("nothing given back that was not offered", "a chain")


def told(bench: BackendBench, ring: Ring) -> None:
    """The driver is notified."""
    head = ring.offer(*ring.buffers())
    ring.call_comes("a notification of what was given back")
    ring.comes_back(head)


def indirect(bench: BackendBench, ring: Ring) -> None:
    """A request in a table of its own."""
    ring.exchange(table=True)


GOOD: Final[tuple[tuple[str, str, Callable[[BackendBench, Ring], None], int | None], ...]] = (
    ("requests_come_back_in", "A request is given back, once, with the bytes that were written.", comes_back, None),
    ("requests_go_round_in", "Positions wrap: a ring takes more requests than it has entries.", wraps, None),
    (
        "requests_may_be_in_pieces_in",
        "A device makes no assumption about how a request is divided into buffers.",
        framed,
        None,
    ),
    ("requests_may_fill", "As many requests as there is room for may wait at once.", full, None),
    ("kicks_may_be_spurious_in", "A device handles spurious notifications: nothing happens.", spurious, None),
    ("the_driver_is_notified_of", "When a request is given back the driver is notified.", told, None),
    ("indirect_tables_work_in", "A request may be in a table.", indirect, Feature.RING_INDIRECT_DESC),
)
"""What is done with a ring: how the rule's name begins, its sentence, what does it, and the feature it needs."""


def _good(
    begins: str, text: str, act: Callable[[BackendBench, Ring], None], need: int | None, kind: str, form: Format
) -> None:
    bits = [bit for bit in (need, Feature.RING_PACKED if form.is_packed else None) if bit is not None]

    def check(bench: BackendBench) -> None:
        begin(bench, features=sum(1 << bit for bit in bits))
        act(bench, Ring(bench, form=form))

    name = f"{begins}_{kind}"
    declare(BACK_END, _EXACTLY.get(name, _SECTIONS[kind]), name, text, check, features=bits)


_SECTIONS: Final = {"a_split_ring": "VIRTIO: Split Virtqueues", "a_packed_ring": "VIRTIO: Packed Virtqueues"}
_EXACTLY: Final = {
    "requests_may_be_in_pieces_in_a_split_ring": "VIRTIO: Message Framing",
    "requests_may_be_in_pieces_in_a_packed_ring": "VIRTIO: Message Framing",
    "kicks_may_be_spurious_in_a_split_ring": "VIRTIO: Available Buffer Notification Suppression",
    "the_driver_is_notified_of_a_split_ring": "VIRTIO: Used Buffer Notification Suppression",
    "indirect_tables_work_in_a_split_ring": "VIRTIO: Indirect Descriptors",
}
"""Where a section below says it. That of framing lies among those of the split ring, and is for both."""
for _kind, _form in FORMS.items():
    for _row in GOOD:
        _good(*_row, _kind, _form)


@BACK_END.rule("VIRTIO: The Virtqueue Available Ring")
def available_indices_wrap_at_sixteen_bits(bench: BackendBench) -> None:
    """The available index of a split ring goes from 65535 to 0."""
    begin(bench)
    ring = Ring(bench, base=0xFFFE)
    for _ in range(4):
        ring.exchange()


@BACK_END.rule("VIRTIO: Indirect Descriptors", features=[Feature.RING_INDIRECT_DESC])
def an_indirect_table_may_follow_descriptors(bench: BackendBench) -> None:
    """A device handles ordinary descriptors that are followed by a single one with INDIRECT."""
    begin(bench, features=1 << Feature.RING_INDIRECT_DESC)
    ring = Ring(bench)
    readable, writable = ring.buffers()
    if not (readable and writable):
        raise NotApplicable("its request has no two parts")
    ring.view[TABLE : TABLE + 16] = _entry(*writable[0], DESC_WRITE)
    ring.describe(0, *readable[0], DESC_NEXT, 1)
    ring.describe(1, ring.at + TABLE, 16, DESC_INDIRECT, 0)
    ring.make_available(0)
    ring.kick()
    ring.first_comes_back("a request given back whose end is in a table")


@BACK_END.rule("VIRTIO: Indirect Descriptors", features=[Feature.RING_INDIRECT_DESC])
def the_write_flag_of_an_indirect_descriptor_is_ignored(bench: BackendBench) -> None:
    """A device ignores the WRITE flag of a descriptor that refers to a table."""
    begin(bench, features=1 << Feature.RING_INDIRECT_DESC)
    ring = Ring(bench)
    given = [(*each, 0) for each in ring.buffers()[0]] + [(*each, DESC_WRITE) for each in ring.buffers()[1]]
    for at, (address, length, flags) in enumerate(given):
        last = at + 1 == len(given)
        entry = _entry(address, length, flags | (0 if last else DESC_NEXT), 0 if last else at + 1)
        ring.view[TABLE + 16 * at : TABLE + 16 * (at + 1)] = entry
    ring.describe(0, ring.at + TABLE, 16 * len(given), DESC_INDIRECT | DESC_WRITE, 0)
    ring.make_available(0)
    ring.kick()
    ring.first_comes_back("a request given back that is in a table")


@BACK_END.rule("VIRTIO: Used Buffer Notification Suppression", level=Level.SHOULD)
def the_driver_is_not_notified_if_it_does_not_want_to_be(bench: BackendBench) -> None:
    """A device does not notify a driver that has set NO_INTERRUPT."""
    begin(bench)
    ring = Ring(bench)
    head = ring.offer(*ring.buffers())
    ring.call_comes("a notification while NO_INTERRUPT is not set")
    ring.comes_back(head)
    ring.available[0:2] = AVAIL_NO_INTERRUPT.to_bytes(2, "little")
    ring.offer(*ring.buffers())
    ring.polled(lambda: ring.used_index == 2, "the second request given back")
    ring.stop()
    if ring.wait(ring.call.fileno(), 0):
        raise Deviation("no notification while NO_INTERRUPT is set", "one")


@BACK_END.rule("VHOST_USER_GET_VRING_BASE")
def a_stopped_ring_tells_how_many_requests_were_taken(bench: BackendBench) -> None:
    """GET_VRING_BASE of a split ring answers with the available index where the ring goes on."""
    begin(bench)
    ring = Ring(bench)
    for _ in range(3):
        ring.exchange()
    base = VringState.unpack(bench.replied(Q.GET_VRING_BASE, VringState(ring.index, 0)).payload).num
    if base != 3:
        raise Deviation("base 3 after three requests", f"base {base}")


@BACK_END.rule("VHOST_USER_SET_VRING_CALL")
def calls_go_to_the_eventfd_that_was_set_last(bench: BackendBench) -> None:
    """The eventfd of a ring that runs may be replaced: notifications go to the new one."""
    begin(bench)
    ring = Ring(bench)
    ring.exchange()
    ring.call = bench.eventfd()
    bench.accepted(Q.SET_VRING_CALL, U64(ring.index), fds=[ring.call])
    ring.drain()
    head = ring.offer(*ring.buffers())
    ring.call_comes("a notification at the eventfd that was set last")
    ring.comes_back(head)


@BACK_END.rule("VHOST_USER_SET_VRING_CALL")
def a_ring_works_without_an_eventfd_for_calls(bench: BackendBench) -> None:
    """With bit 8 set in SET_VRING_CALL the driver polls: requests are given back without notification."""
    begin(bench)
    ring = Ring(bench)
    ring.exchange()
    bench.accepted(Q.SET_VRING_CALL, U64(ring.index | 0x100))
    ring.offer(*ring.buffers())
    ring.polled(lambda: ring.used_index == 2, "the second request given back")


@BACK_END.rule("VHOST_USER_SET_MEM_TABLE")
def a_ring_goes_on_after_a_new_memory_table(bench: BackendBench) -> None:
    """Memory may be set anew while rings run, as it is when a guest's memory grows: they go on."""
    begin(bench)
    ring = Ring(bench)
    ring.exchange()
    bench.share_again()
    ring.exchange()


@BACK_END.rule("VIRTIO: Used Buffer Notification Suppression")
def each_request_is_notified_without_event_idx(bench: BackendBench) -> None:
    """What was not acknowledged does not count: without EVENT_IDX each request is notified."""
    begin(bench)
    ring = Ring(bench)
    for _ in range(4):
        ring.drain()
        head = ring.offer(*ring.buffers())
        ring.call_comes("a notification for each request")
        ring.comes_back(head)


def _entry(address: int, length: int, flags: int, following: int = 0) -> bytes:
    return _DESCRIPTOR.pack(address, length, flags, following)
