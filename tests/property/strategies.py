"""Everything that the protocol knows, as Hypothesis strategies made from its own declarations."""

from __future__ import annotations

from hypothesis import strategies as st

from vhostuser.protocol import payloads
from vhostuser.protocol.framing import Frame
from vhostuser.protocol.layout import Payload
from vhostuser.protocol.numbers import MAX_CONFIG, MAX_REGIONS, MAX_SHMIDS, VERSION, ProtocolFeature, mask
from vhostuser.protocol.rules import RULES, Channel
from vhostuser.protocol.state import Ring, State

WORD = (1 << 64) - 1
EDGES = (0, 1, 2, 7, 0xFF, 0x100, 0xFFF, 0x1000, 0xFFFF, 0x10000, 1 << 31, (1 << 32) - 1, 1 << 63, WORD - 0xFFF, WORD)
QUEUES = 2


def integers(size: int) -> st.SearchStrategy[int]:
    """Integers of `size` bytes, those at the edges more often."""
    limit = (1 << 8 * size) - 1
    return st.one_of(st.sampled_from([edge for edge in EDGES if edge <= limit]), st.integers(0, limit))


def plain(cls: type[Payload]) -> st.SearchStrategy[Payload]:
    """Payloads of fixed size, from the fields that they declare."""
    parts = [st.binary(min_size=f.size, max_size=f.size) if "[" in f.type else integers(f.size) for f in cls.FIELDS]
    return st.tuples(*parts).map(lambda values: cls(*values))


def _tables(cls: type[Payload], region: type[Payload]) -> st.SearchStrategy[Payload]:
    return st.lists(plain(region), min_size=1, max_size=MAX_REGIONS).map(cls)


configs: st.SearchStrategy[Payload] = st.tuples(integers(4), integers(4), st.binary(max_size=MAX_CONFIG)).map(
    lambda parts: payloads.Config(parts[0], len(parts[2]), parts[1], parts[2])
)
shmem_configs: st.SearchStrategy[Payload] = st.dictionaries(st.integers(0, MAX_SHMIDS - 1), integers(8), max_size=4).map(
    payloads.ShmemConfig
)
SPECIAL: dict[type[Payload], st.SearchStrategy[Payload]] = {
    payloads.MemoryTable: _tables(payloads.MemoryTable, payloads.MemoryRegion),
    payloads.XenMemoryTable: _tables(payloads.XenMemoryTable, payloads.XenMemoryRegion),
    payloads.Config: configs,
    payloads.ShmemConfig: shmem_configs,
    payloads.CryptoSession: st.binary(max_size=100).map(payloads.CryptoSession),
}
CLASSES: dict[str, type[Payload]] = {
    name: cls
    for name, cls in vars(payloads).items()
    if isinstance(cls, type) and issubclass(cls, Payload) and hasattr(cls, "SIZES")
}


def bodies(cls: type[Payload] | None) -> st.SearchStrategy[Payload | None]:
    """Any payload of a class."""
    if cls is None:
        return st.none()
    return SPECIAL[cls] if cls in SPECIAL else plain(cls)


small = st.integers(0, QUEUES + 1)
sane_states = st.builds(payloads.VringState, small, st.sampled_from([0, 1, 2, 3, 256, 0xFFFF, 0x10000]))
sane_files = st.builds(payloads.U64, st.sampled_from([0, 1, 2, 0x100, 0x101, 0x200]))
features = st.sets(st.sampled_from(ProtocolFeature)).map(mask)
sane_masks = st.one_of(features, st.sampled_from([0, 1 << 30, 1 << 33, 1 << 33 | 1 << 30])).map(payloads.U64)
pages = st.integers(0, 8).map(lambda page: page << 12)
sane_regions = st.builds(payloads.SingleRegion, pages, pages, pages, pages)
sane_tables = st.lists(st.builds(payloads.MemoryRegion, pages, pages, pages, pages), min_size=1, max_size=3).map(
    payloads.MemoryTable
)
sane = st.one_of(sane_states, sane_files, sane_masks, sane_regions, sane_tables)
"""Bodies that have a chance: small indices, sizes and addresses."""


@st.composite
def frames(draw: st.DrawFn, channel: Channel) -> Frame[int]:
    """Any request: mostly a known one with a body of its kind, now and then nonsense."""
    request = draw(st.one_of(st.sampled_from(sorted(RULES[channel])), integers(4)))
    rule = RULES[channel].get(request)
    kinds = [rule.payload, *(payload for _, payload in rule.variants)] if rule else [None]
    body = draw(st.one_of([bodies(kind) for kind in kinds]))
    hopeful = draw(sane)
    if type(hopeful) in kinds and draw(st.booleans()):
        body = hopeful
    payload = draw(st.binary(max_size=48)) if draw(st.integers(0, 9)) == 0 else body.pack() if body else b""
    flags = VERSION | draw(st.sampled_from([0, 0, 8, 8, 4]))
    regions = getattr(body, "regions", ())
    return Frame(request, flags, payload, tuple(range(draw(st.sampled_from([0, 1, len(regions), 2])))))


rings = st.builds(
    Ring,
    size=st.sampled_from([0, 1, 256]),
    base=st.integers(0, 0xFFFF),
    addresses=st.one_of(st.none(), st.just(payloads.VringAddr(0, 0, 0, 0, 0, 0))),
    started=st.booleans(),
    enabled=st.booleans(),
)
virtio_masks = st.sets(st.sampled_from([0, 26, 28, 30, 32, 33, 34])).map(mask)


@st.composite
def states(draw: st.DrawFn) -> State:
    """Any state that a connection can be in."""
    offered, protocol = draw(virtio_masks), draw(features)
    return State(
        offered=offered,
        acknowledged=offered & draw(virtio_masks),
        protocol_offered=protocol,
        protocol_acknowledged=protocol & draw(st.one_of(features, st.just(WORD))),
        rings=tuple(draw(st.lists(rings, max_size=QUEUES))),
        regions=draw(sane_tables).regions if draw(st.booleans()) else (),
        backend_channel=draw(st.booleans()),
        postcopy=draw(st.booleans()),
        status=draw(st.sampled_from([0, 15])),
    )
