"""Rules about rings that make no sense: the back-end lives, and can be stopped, and nobody else is hurt."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from ...protocol.numbers import FrontendRequest, ProtocolFeature
from ...protocol.payloads import VringState
from ...testing.raw_frontend import MEMORY
from ...transport.fds import close_all
from ...virtio.formats import PACKED, SPLIT, Format
from ...virtio.numbers import DESC_AVAIL, DESC_INDIRECT, DESC_NEXT, DESC_WRITE, Feature
from ..backend_bench import BACK_END, BackendBench
from ..family import declare
from ..outcome import Deviation
from ..ring import DATA, ROOM, SIZE, TABLE, Ring, begin
from ..rule import Level

F, Q = ProtocolFeature, FrontendRequest
INDIRECT: Final = Feature.RING_INDIRECT_DESC
AVAIL: Final = DESC_AVAIL
NOWHERE: Final = 1 << 40
"""A guest address where there is no memory."""
Fill = Callable[[Ring], None]


def _chain(*descriptors: tuple[int, int, int, int], head: int = 0, index: int = 1) -> Fill:
    """Descriptors from slot 0 on, of a space that begins at 0; and the head in the ring."""

    def fill(ring: Ring) -> None:
        for slot, (address, length, flags, following) in enumerate(descriptors):
            ring.describe(slot, address + (ring.at if address < MEMORY else 0), length, flags, following)
        ring.make_available(head, index)

    return fill


def _table(*descriptors: tuple[int, int, int, int], length: int = 0, flags: int = DESC_INDIRECT) -> Fill:
    """The same in a table, to which descriptor 0 refers."""

    def fill(ring: Ring) -> None:
        for slot, (address, size, bits, following) in enumerate(descriptors):
            fields = zip((address + ring.at, size, bits, following), (8, 4, 2, 2), strict=True)
            entry = b"".join(value.to_bytes(width, "little") for value, width in fields)
            ring.view[TABLE + 16 * slot : TABLE + 16 * (slot + 1)] = entry
        ring.describe(0, ring.at + TABLE, length or 16 * len(descriptors), flags, 1)
        ring.make_available(0)

    return fill


def _packed(*descriptors: tuple[int, int, int, int]) -> Fill:
    """Descriptors of a packed ring: address, length, id, flags."""

    def fill(ring: Ring) -> None:
        for slot, (address, length, number, flags) in reversed([*enumerate(descriptors)]):
            ring.describe(slot, address + (ring.at if address < MEMORY else 0), length, number, flags)

    return fill


SPLIT_RINGS: Final[tuple[tuple[str, str, Fill], ...]] = (
    ("a_chain_that_loops_on_itself", "A descriptor that is its own next.", _chain((DATA, 4, DESC_NEXT, 0))),
    (
        "a_chain_that_loops",
        "Two descriptors that are each other's next.",
        _chain((DATA, 4, DESC_NEXT, 1), (DATA, 4, DESC_NEXT, 0)),
    ),
    ("a_next_behind_the_ring", "A next that is no descriptor.", _chain((DATA, 4, DESC_NEXT, SIZE))),
    ("a_next_of_65535", "A next that is no descriptor.", _chain((DATA, 4, DESC_NEXT, 0xFFFF))),
    ("a_head_behind_the_ring", "A head that is no descriptor.", _chain((DATA, 4, 0, 0), head=SIZE)),
    ("a_head_of_65535", "A head that is no descriptor.", _chain((DATA, 4, 0, 0), head=0xFFFF)),
    ("an_available_index_that_jumps", "More chains than the ring has entries.", _chain((DATA, 4, 0, 0), index=SIZE + 1)),
    ("an_available_index_that_goes_back", "One chain fewer than before.", _chain((DATA, 4, 0, 0), index=0xFFFF)),
    ("a_buffer_to_read_outside_memory", "An address where there is no memory.", _chain((NOWHERE, 4, 0, 0))),
    ("a_buffer_to_write_outside_memory", "An address where there is no memory.", _chain((NOWHERE, 4, DESC_WRITE, 0))),
    ("a_buffer_that_passes_the_end_of_memory", "A buffer that ends behind memory.", _chain((MEMORY - 4, MEMORY, 0, 0))),
    ("a_buffer_that_wraps", "A buffer that ends behind 2^64.", _chain(((1 << 64) - 4, 8, 0, 0))),
    ("a_buffer_of_four_gigabytes", "A buffer longer than memory.", _chain((DATA, (1 << 32) - 1, DESC_WRITE, 0))),
    ("a_buffer_of_no_bytes", "A buffer of no bytes.", _chain((DATA, 0, 0, 0))),
    (
        "a_buffer_to_read_after_one_to_write",
        "What is to be read comes first.",
        _chain((ROOM, 4, DESC_WRITE | DESC_NEXT, 1), (DATA, 4, 0, 0)),
    ),
    ("an_indirect_table_that_was_not_agreed_on", "INDIRECT without its feature.", _table((DATA, 4, 0, 0))),
)
"""What a driver must not do: how the rule's name begins, what it is, and what does it."""
INDIRECT_RINGS: Final[tuple[tuple[str, str, Fill], ...]] = (
    ("an_indirect_table_of_eight_bytes", "A table of half a descriptor.", _table((DATA, 4, 0, 0), length=8)),
    ("an_indirect_table_of_no_bytes", "A table of no descriptor.", _chain((TABLE, 0, DESC_INDIRECT, 0))),
    ("an_indirect_table_of_four_gigabytes", "A table longer than memory.", _table((DATA, 4, 0, 0), length=0xFFFFFFF0)),
    ("an_indirect_table_outside_memory", "A table where there is no memory.", _chain((NOWHERE, 16, DESC_INDIRECT, 0))),
    ("an_indirect_table_in_a_table", "A table in a table.", _table((TABLE, 16, DESC_INDIRECT, 0))),
    ("an_indirect_table_that_loops", "A descriptor of a table that is its own next.", _table((DATA, 4, DESC_NEXT, 0))),
    ("an_indirect_table_that_leads_out", "A next behind the table.", _table((DATA, 4, DESC_NEXT, 7))),
    (
        "an_indirect_descriptor_with_next",
        "INDIRECT and NEXT in one descriptor.",
        _table((DATA, 4, 0, 0), flags=DESC_INDIRECT | DESC_NEXT),
    ),
)
"""The same where INDIRECT was agreed on."""
PACKED_RINGS: Final[tuple[tuple[str, str, Fill], ...]] = (
    ("a_packed_buffer_outside_memory", "An address where there is no memory.", _packed((NOWHERE, 4, 0, AVAIL))),
    ("a_packed_buffer_that_wraps", "A buffer that ends behind 2^64.", _packed(((1 << 64) - 4, 8, 0, AVAIL))),
    ("a_packed_id_behind_the_ring", "A buffer id that is none.", _packed((DATA, 4, 0xFFFF, AVAIL))),
    (
        "a_packed_chain_longer_than_the_ring",
        "A chain that has no end in the ring.",
        _packed(*((DATA, 1, 0, AVAIL | DESC_NEXT) for _ in range(SIZE))),
    ),
    (
        "a_packed_chain_whose_end_is_not_there",
        "A chain whose end is not available.",
        _packed((DATA, 1, 0, AVAIL | DESC_NEXT)),
    ),
    (
        "a_packed_table_that_was_not_agreed_on",
        "INDIRECT without its feature.",
        _packed((TABLE, 16, 0, AVAIL | DESC_INDIRECT)),
    ),
)
"""The same of packed rings."""


def hostile_rule(begins: str) -> str:
    """The name of the rule about that."""
    return f"{begins}_is_survived"


def _hostile(begins: str, text: str, fill: Fill, bits: tuple[Feature, ...], form: Format) -> None:
    def check(bench: BackendBench) -> None:
        begin(bench, features=sum(1 << bit for bit in bits))
        ring = Ring(bench, form=form)
        fill(ring)
        ring.kick()
        stopped_or_ended(bench, ring)

    section = "VIRTIO: Packed Virtqueues" if form.is_packed else "VIRTIO: Split Virtqueues"
    sentence = f"{text} The back-end neither dies nor hangs of it: the ring can be stopped, or the connection ends."
    declare(BACK_END, section, hostile_rule(begins), sentence, check, level=Level.SHOULD, features=bits)


for _row in SPLIT_RINGS:
    _hostile(*_row, (), SPLIT)
for _row in INDIRECT_RINGS:
    _hostile(*_row, (INDIRECT,), SPLIT)
for _row in PACKED_RINGS:
    _hostile(*_row, (Feature.RING_PACKED,), PACKED)


def stopped_or_ended(bench: BackendBench, ring: Ring) -> None:
    """The ring can be stopped, or the back-end has ended the connection."""
    bench.request(Q.GET_VRING_BASE, VringState(ring.index, 0))
    frame = bench.receive_or_end()
    if frame is not None:
        close_all(frame.fds)
        if frame.request != Q.GET_VRING_BASE:
            raise Deviation("the reply to GET_VRING_BASE, or the end", f"request {frame.request}")


@BACK_END.rule("VHOST_USER_SET_VRING_ERR", level=Level.SHOULD)
def a_broken_ring_is_told_of(bench: BackendBench) -> None:
    """When a ring can't be used any more, its error eventfd is set, or the connection ends."""
    begin(bench)
    ring = Ring(bench)
    _break(ring)
    if bench.err is None or not ring.set_or_ended(bench.err.fileno()):
        raise Deviation("the error eventfd set, or the end of the connection", "neither")


@BACK_END.rule("VHOST_USER_SET_VRING_ERR", level=Level.ADVICE)
def a_broken_ring_leaves_the_connection(bench: BackendBench) -> None:
    """A ring that is broken is no reason to end the connection: other rings go on, and this one may be set up anew."""
    begin(bench)
    ring = Ring(bench)
    _break(ring)
    if bench.comes_within(_MOMENT):
        raise Deviation("silence on the main channel", "a message, or the end")
    bench.alive()


@BACK_END.rule("VHOST_USER_SET_VRING_ERR", level=Level.ADVICE)
def a_broken_ring_may_be_set_up_anew(bench: BackendBench) -> None:
    """A ring that was broken works once it was stopped and set up anew."""
    begin(bench)
    broken = Ring(bench)
    _break(broken)
    bench.comes_within(_MOMENT)
    bench.replied(Q.GET_VRING_BASE, VringState(broken.index, 0))
    Ring(bench).exchange()


@BACK_END.rule("Ring states", level=Level.ADVICE, queues=2)
def a_broken_ring_leaves_the_others(bench: BackendBench) -> None:
    """A ring that is broken does not keep another from working."""
    begin(bench)
    ring = Ring(bench)
    _break(Ring(bench, index=0 if ring.index else 1))
    bench.comes_within(_MOMENT)
    ring.exchange()


_MOMENT: Final = 0.05


def _break(ring: Ring) -> None:
    """Put a head into a ring that is no descriptor."""
    ring.make_available(0xFFFF)
    ring.kick()
