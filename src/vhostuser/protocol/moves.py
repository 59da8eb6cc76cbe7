"""Moves: what each admitted request does to the state, or why its fields make no sense in it.

A move gets the body as its row of `rules` decodes it, and gives the next state. A request without a move leaves the state as
it is. Answers are the other half: what a front-end learns from a back-end's own replies.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Final, NamedTuple, TypeAlias

from ..errors import ProtocolError, RemoteProtocolError
from .dialects import Dialect
from .numbers import (
    END_OF_ADDRESSES,
    MAX_MEM_SLOTS,
    MAX_QUEUE_SIZE,
    VRING_INDEX_MASK,
    VRING_NO_FD,
    BackendRequest,
    FrontendRequest,
    ProtocolFeature,
    VhostFeature,
    missing_requirements,
)
from .payloads import (
    U64,
    Config,
    Inflight,
    Iotlb,
    MemoryRegion,
    MemoryTable,
    ShmemConfig,
    SingleRegion,
    VringAddr,
    VringState,
    XenMemoryRegion,
    XenMemoryTable,
    XenSingleRegion,
)
from .regions import check_sizes
from .rules import Channel
from .state import Ring, State

Q = FrontendRequest
RING_PACKED: Final = 34
LARGEST_STATUS: Final = 0xFF
AnyRegion: TypeAlias = MemoryRegion | XenMemoryRegion


class Step(NamedTuple):
    """What a move may look at."""

    name: str
    state: State
    dialect: Dialect
    queue_sizes: tuple[int, ...]
    refusal: type[ProtocolError]

    def refuse(self, field: str, value: int, limit: int | str, text: str) -> ProtocolError:
        """The error for one field: `<request> <field> <value> <text> <limit>`."""
        shown = limit if isinstance(limit, str) else hex(limit)
        return self.refusal(
            f"{self.name} {field} {value:#x} {text} {shown}", request=self.name, field=field, value=value, limit=limit
        )

    @property
    def packed(self) -> bool:
        """Packed rings were negotiated."""
        return bool(self.state.acknowledged >> RING_PACKED & 1)

    def ring(self, index: int) -> Ring:
        """The ring of that index, or the refusal."""
        if index >= len(self.state.rings):
            raise self.refuse("index", index, len(self.state.rings), "is not below the number of queues,")
        return self.state.rings[index]

    def largest_queue(self, index: int) -> int:
        """The most entries that ring `index` may have: what the device says, or VIRTIO's limit."""
        return self.queue_sizes[index] if index < len(self.queue_sizes) else MAX_QUEUE_SIZE

    def with_ring(self, index: int, ring: Ring) -> State:
        """The state in which ring `index` is `ring`."""
        rings = self.state.rings
        return replace(self.state, rings=(*rings[:index], ring, *rings[index + 1 :]))


Move: TypeAlias = Callable[[Step, Any], State]
"""The body is of the row's payload class: that is what `rules` is for, and what no type can say of a table."""


def _set_features(step: Step, body: U64) -> State:
    state = step.state
    if body.value & ~state.offered:
        raise step.refuse("features", body.value, state.offered, "has bits that were not offered;")
    rings = state.rings
    if not body.value >> VhostFeature.PROTOCOL_FEATURES & 1:
        rings = tuple(replace(ring, enabled=True, quiesced=False) for ring in rings)
    return replace(state, acknowledged=body.value, rings=rings)


def _set_protocol_features(step: Step, body: U64) -> State:
    """Kicks as messages without what they need end the connection: there is no other answer ("In-band notifications")."""
    offered_wire = step.dialect.to_wire(step.state.protocol_offered)
    if body.value & ~offered_wire:
        raise step.refuse("features", body.value, offered_wire, "has bits that were not offered;")
    value = step.dialect.from_wire(body.value)
    for feature, needed in missing_requirements(value):
        text = f"has {feature.name} without what it requires,"
        error = step.refuse("features", body.value, needed.name, text)
        error.fatal = feature is ProtocolFeature.INBAND_NOTIFICATIONS
        raise error
    return replace(step.state, protocol_acknowledged=value)


def _set_mem_table(step: Step, body: MemoryTable | XenMemoryTable | None) -> State:
    if body is None:
        return step.state
    taken: list[AnyRegion] = []
    for region in body.regions:
        _check_region(step, region, taken)
        taken.append(region)
    return replace(step.state, regions=tuple(taken))


def _add_mem_reg(step: Step, body: SingleRegion | XenSingleRegion) -> State:
    if len(step.state.regions) >= step.state.max_slots:
        raise step.refuse("guest_addr", body.guest_addr, step.state.max_slots, "is a region more than the back-end's slots,")
    _check_region(step, body.region, step.state.regions)
    return replace(step.state, regions=(*step.state.regions, body.region))


def _rem_mem_reg(step: Step, body: SingleRegion | XenSingleRegion) -> State:
    """A region is "identified by guest address, user address and size. The mmap offset is ignored" ("REM_MEM_REG")."""
    key = (body.guest_addr, body.size, body.user_addr)
    left = tuple(r for r in step.state.regions if (r.guest_addr, r.size, r.user_addr) != key)
    if len(left) == len(step.state.regions):
        raise step.refuse("guest_addr", body.guest_addr, body.size, "is no region of that user address and size")
    return replace(step.state, regions=left)


def _check_region(step: Step, region: AnyRegion, others: Sequence[AnyRegion]) -> None:
    """A region neither is empty, nor wraps, nor overlaps another in guest addresses ("Memory region description")."""
    if not region.size:
        raise step.refuse("size", 0, 1, "must be at least")
    for field in ("guest_addr", "user_addr", "mmap_offset"):
        start = getattr(region, field)
        if start + region.size > END_OF_ADDRESSES:
            raise step.refuse(field, start, END_OF_ADDRESSES, f"+ size {region.size:#x} wraps past")
    for other in others:
        if region.guest_addr < other.guest_addr + other.size and other.guest_addr < region.guest_addr + region.size:
            text = f"+ size {region.size:#x} overlaps the region at"
            raise step.refuse("guest_addr", region.guest_addr, other.guest_addr, text)


def _inflight(step: Step, body: Inflight) -> State:
    for field, value, most in (
        ("num_queues", body.num_queues, len(step.state.rings)),
        ("queue_size", body.queue_size, MAX_QUEUE_SIZE),
    ):
        if not 0 < value <= most:
            raise step.refuse(field, value, most, "is not between 1 and")
    return step.state


def _set_vring_num(step: Step, body: VringState) -> State:
    ring, limit = step.ring(body.index), step.largest_queue(body.index)
    if not 0 < body.num <= limit:
        raise step.refuse("num", body.num, limit, "is not a queue size between 1 and")
    if body.num & (body.num - 1) and not step.packed:
        raise step.refuse("num", body.num, limit, "is not a power of two up to")
    _check_stopped(step, ring, body.index)
    return step.with_ring(body.index, replace(ring, size=body.num))


def _set_vring_addr(step: Step, body: VringAddr) -> State:
    ring = step.ring(body.index)
    for field, alignment in (("descriptor", 16), ("used", 4), ("available", 4 if step.packed else 2)):
        if getattr(body, field) % alignment:
            raise step.refuse(field, getattr(body, field), alignment, "is not aligned to")
    return step.with_ring(body.index, replace(ring, addresses=body))


def _set_vring_base(step: Step, body: VringState) -> State:
    ring = step.ring(body.index)
    if step.packed:
        _check_packed_base(step, body.num, ring.size)
    elif body.num > 0xFFFF:
        raise step.refuse("num", body.num, 0xFFFF, "is not an available index up to")
    _check_stopped(step, ring, body.index)
    return step.with_ring(body.index, replace(ring, base=body.num))


def _check_packed_base(step: Step, base: int, size: int) -> None:
    """Two indices, each with a wrap counter above it ("Vring descriptor indices for packed virtqueues")."""
    if size and max(base & 0x7FFF, base >> 16 & 0x7FFF) >= size:
        raise step.refuse("num", base, size, "has an index that is not below the ring's size,")


def _check_stopped(step: Step, ring: Ring, index: int) -> None:
    """A ring that runs keeps its size and base; one that was kicked before it had any may still get them."""
    if ring.started and ring.size and ring.addresses:
        raise step.refuse("index", index, "stopped", "is a ring that is started, must be")


def _get_vring_base(step: Step, body: VringState) -> State:
    return step.with_ring(body.index, replace(step.ring(body.index), started=False, quiesced=False))


def _set_vring_kick(step: Step, body: U64) -> State:
    index = _file_index(step, body)
    eventfd = not body.value & VRING_NO_FD
    return step.with_ring(index, replace(step.ring(index), started=True, quiesced=False, eventfd=eventfd))


def _vring_kick(step: Step, body: VringState) -> State:
    """A kick in-band: "the ring is also started on the VRING_KICK message" ("SET_VRING_KICK")."""
    ring = step.ring(body.index)
    return step.state if ring.started else step.with_ring(body.index, replace(ring, started=True, quiesced=False))


def _set_vring_file(step: Step, body: U64) -> State:
    step.ring(_file_index(step, body))
    return step.state


def _file_index(step: Step, body: U64) -> int:
    known = VRING_INDEX_MASK | VRING_NO_FD
    if body.value & ~known:
        raise step.refuse("index", body.value, known, "has bits beyond")
    return body.value & VRING_INDEX_MASK


def _set_vring_enable(step: Step, body: VringState) -> State:
    ring, enabled = step.ring(body.index), _switch(step, body)
    return step.with_ring(body.index, replace(ring, enabled=enabled, quiesced=ring.started and not enabled))


def _set_vring_endian(step: Step, body: VringState) -> State:
    _switch(step, body)
    return _vring_of(step, body)


def _switch(step: Step, body: VringState) -> bool:
    """What a ring's number says that is either 0 or 1."""
    if body.num > 1:
        raise step.refuse("num", body.num, 1, "is not 0 or")
    return body.num == 1


def _vring_of(step: Step, body: VringState) -> State:
    step.ring(body.index)
    return step.state


def _stop_rings(step: Step, body: object) -> State:
    return replace(step.state, rings=tuple(replace(ring, enabled=False, quiesced=ring.started) for ring in step.state.rings))


def _reset_device(step: Step, body: object) -> State:
    return replace(step.state, rings=tuple(Ring() for _ in step.state.rings), status=0, postcopy=False)


def _set_status(step: Step, body: U64) -> State:
    if body.value > LARGEST_STATUS:
        raise step.refuse("status", body.value, LARGEST_STATUS, "is not a device status up to")
    return replace(step.state, status=body.value) if body.value else _reset_device(step, body)


def _config(step: Step, body: Config) -> State:
    if body.flags > 1:
        raise step.refuse("flags", body.flags, 1, "is not 0 (writable) or")
    return step.state


def _iotlb(step: Step, body: Iotlb) -> State:
    if not 1 <= body.type <= 4:
        raise step.refuse("type", body.type, 4, "is not a type between 1 and")
    return step.state


def _backend_channel(step: Step, body: object) -> State:
    return replace(step.state, backend_channel=True)


def _asked_config(step: Step, body: object) -> State:
    return replace(step.state, asked_config=True)


def _postcopy(listening: bool) -> Move:
    return lambda step, body: replace(step.state, postcopy=listening)


_FRONTEND_MOVES: Final[dict[int, Move]] = {
    Q.SET_FEATURES: _set_features,
    Q.SET_PROTOCOL_FEATURES: _set_protocol_features,
    Q.RESET_OWNER: _stop_rings,
    Q.SET_MEM_TABLE: _set_mem_table,
    Q.ADD_MEM_REG: _add_mem_reg,
    Q.REM_MEM_REG: _rem_mem_reg,
    Q.GET_INFLIGHT_FD: _inflight,
    Q.SET_INFLIGHT_FD: _inflight,
    Q.SET_VRING_NUM: _set_vring_num,
    Q.SET_VRING_ADDR: _set_vring_addr,
    Q.SET_VRING_BASE: _set_vring_base,
    Q.GET_VRING_BASE: _get_vring_base,
    Q.SET_VRING_KICK: _set_vring_kick,
    Q.SET_VRING_CALL: _set_vring_file,
    Q.SET_VRING_ERR: _set_vring_file,
    Q.SET_VRING_ENABLE: _set_vring_enable,
    Q.SET_VRING_ENDIAN: _set_vring_endian,
    Q.VRING_KICK: _vring_kick,
    Q.RESET_DEVICE: _reset_device,
    Q.SET_STATUS: _set_status,
    Q.GET_CONFIG: _config,
    Q.SET_CONFIG: _config,
    Q.IOTLB_MSG: _iotlb,
    Q.SET_BACKEND_REQ_FD: _backend_channel,
    Q.GET_SHMEM_CONFIG: _asked_config,
    Q.POSTCOPY_LISTEN: _postcopy(True),
    Q.POSTCOPY_END: _postcopy(False),
}
_BACKEND_MOVES: Final[dict[int, Move]] = {
    BackendRequest.IOTLB_MSG: _iotlb,
    BackendRequest.VRING_CALL: _vring_of,
    BackendRequest.VRING_ERR: _vring_of,
}
MOVES: Final = {Channel.FRONTEND: _FRONTEND_MOVES, Channel.BACKEND: _BACKEND_MOVES}


# Answers: what a front-end learns from the back-end's own replies.


def _learn_features(state: State, dialect: Dialect, body: U64) -> State:
    return replace(state, offered=body.value)


def _learn_protocol_features(state: State, dialect: Dialect, body: U64) -> State:
    return replace(state, protocol_offered=dialect.from_wire(body.value))


def _learn_queue_num(state: State, dialect: Dialect, body: U64) -> State:
    rings = state.rings
    return replace(state, rings=rings + tuple(Ring() for _ in range(len(rings), min(body.value, 256))))


def _learn_max_mem_slots(state: State, dialect: Dialect, body: U64) -> State:
    return replace(state, max_slots=min(body.value, MAX_MEM_SLOTS))


def _learn_status(state: State, dialect: Dialect, body: U64) -> State:
    """A device status is a byte ("GET_STATUS"); what is remembered is what was set."""
    if body.value > LARGEST_STATUS:
        text = f"GET_STATUS reply status {body.value:#x} is not a device status up to {LARGEST_STATUS:#x}"
        raise RemoteProtocolError(
            text, request="GET_STATUS", field="status", value=body.value, limit=LARGEST_STATUS, fatal=True
        )
    return state


def _learn_shmem_config(state: State, dialect: Dialect, body: ShmemConfig) -> State:
    check_sizes(body, RemoteProtocolError)
    return state


ANSWERS: Final[dict[int, Callable[[State, Dialect, Any], State]]] = {
    Q.GET_FEATURES: _learn_features,
    Q.GET_PROTOCOL_FEATURES: _learn_protocol_features,
    Q.GET_QUEUE_NUM: _learn_queue_num,
    Q.GET_MAX_MEM_SLOTS: _learn_max_mem_slots,
    Q.GET_SHMEM_CONFIG: _learn_shmem_config,
    Q.GET_STATUS: _learn_status,
}
