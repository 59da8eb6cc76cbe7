"""What was negotiated, the state of every ring, what is legal now, and what reply is owed.

Theory. A connection is in one state, a value (`State`). A request of either side is admitted if four things hold, tested in
this order: its number is known; what gates it was negotiated; its payload and fds are as declared in `rules`; its fields
make sense in this state (`_MOVES`). Then, and only then, the state is replaced by the one that the request leads to. So a
request either moves the whole session or leaves no trace.

Rings ("Ring states"). A ring is started or stopped, and enabled or disabled: two bits that know nothing of each other.
SET_VRING_KICK starts it, GET_VRING_BASE stops it. SET_FEATURES without PROTOCOL_FEATURES (bit 30) enables every ring, for
then there is no SET_VRING_ENABLE; with it rings begin disabled. A ring that is both started and enabled is active: the
back-end processes it. A reset (RESET_DEVICE, status 0) stops and disables all of them; what was negotiated stays.

Shared memory ("SHMEM_MAP"). A mapping has a meaning only while a driver runs the device: from the first started ring until
the last one stops. Mapping ends earlier, when the first started ring is disabled on purpose: a front-end that stops disables
its rings one by one and stops them next, and QEMU 11.1 dies of a SHMEM_MAP that it has not read before.

Replies ("Communication", "REPLY_ACK"). Some requests are always answered by a reply of their own; the others by an
acknowledgement, if REPLY_ACK was negotiated and the request has need_reply set. `reply_owed` is all that knows this.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any, Final, NamedTuple

from ..errors import LocalProtocolError, ProtocolError, RemoteProtocolError
from .dialects import RELEASED, Dialect
from .framing import Frame, decode_payload
from .layout import Payload
from .numbers import (
    END_OF_ADDRESSES,
    MAX_QUEUE_SIZE,
    REPLY,
    VERSION,
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
from .rules import RULES, Channel, Fds, Gate, Reply, Rule

F = ProtocolFeature
Q = FrontendRequest
RING_PACKED: Final = 34
ACCESS_PLATFORM: Final = 33


class Role(Enum):
    """Which end of the connection this process is."""

    FRONTEND = "front-end"
    BACKEND = "back-end"


class Owed(Enum):
    """What answers a request."""

    NOTHING = "nothing"
    ACK = "an acknowledgement"
    OWN = "a reply of its own"


@dataclass(frozen=True, slots=True)
class Ring:
    """One ring as the protocol sees it."""

    size: int = 0
    base: int = 0
    addresses: VringAddr | None = None
    started: bool = False
    enabled: bool = False
    quiesced: bool = False
    """It was disabled on purpose since it started."""

    @property
    def active(self) -> bool:
        """Requests are taken from it."""
        return self.started and self.enabled


@dataclass(frozen=True, slots=True)
class State:
    """All that one connection has agreed on. Masks are in the released numbering."""

    offered: int = 0
    acknowledged: int = 0
    protocol_offered: int = 0
    protocol_acknowledged: int = 0
    rings: tuple[Ring, ...] = ()
    regions: tuple[MemoryRegion | XenMemoryRegion, ...] = ()
    backend_channel: bool = False
    asked_config: bool = False
    postcopy: bool = False
    status: int = 0

    def has(self, feature: ProtocolFeature) -> bool:
        """A protocol feature was negotiated."""
        return bool(self.protocol_acknowledged >> feature & 1)

    @property
    def running(self) -> bool:
        """A driver runs the device: shared memory may be mapped and unmapped now."""
        started = [ring for ring in self.rings if ring.started]
        return bool(started) and not any(ring.quiesced for ring in started)


class Message(NamedTuple):
    """A request that was admitted: its row, its body, and the fds, which now belong to whoever performs it."""

    rule: Rule
    body: Payload | None
    fds: tuple[Any, ...]
    need_reply: bool


def reply_owed(rule: Rule, state: State, need_reply: bool) -> Owed:
    """What answers the request of `rule` in `state` ("Communication", "REPLY_ACK")."""
    own = rule.reply is Reply.OWN
    own |= rule.reply is Reply.OWN_IN_POSTCOPY and state.postcopy
    own |= rule.reply is Reply.OWN_WITH_LOG_SHMFD and state.has(F.LOG_SHMFD)
    if own:
        return Owed.OWN
    return Owed.ACK if need_reply and state.has(F.REPLY_ACK) else Owed.NOTHING


class Session:
    """One connection, seen from one of its ends.

    The two ends run the same tables. Who sends a request asks `admit` first and gets a LocalProtocolError; who receives one
    gets a RemoteProtocolError from it.
    """

    def __init__(self, role: Role, state: State, *, queue_sizes: Sequence[int] = (), dialect: Dialect = RELEASED) -> None:
        self.role = role
        self.state = state
        self.dialect = dialect
        self._queue_sizes = tuple(queue_sizes)

    def largest_queue(self, index: int) -> int:
        """The most entries that ring `index` may have: what the device says, or VIRTIO's limit."""
        return self._queue_sizes[index] if index < len(self._queue_sizes) else MAX_QUEUE_SIZE

    def error(self, channel: Channel) -> type[ProtocolError]:
        """The exception for a wrong request on `channel`: ours or theirs."""
        ours = channel.value == self.role.value
        return LocalProtocolError if ours else RemoteProtocolError

    def rule(self, channel: Channel, request: int) -> Rule:
        """The row of a request number; the error of an unknown one."""
        rule = RULES[channel].get(request)
        if rule is None:
            raise self.error(channel)(
                f"request {request} is unknown on the {channel.value} channel",
                request=str(request),
                field="request",
                value=request,
                limit=max(RULES[channel]),
            )
        return rule

    def admit(self, channel: Channel, frame: Frame[Any]) -> Message:
        """The request in `frame`, if it is legal now; the session has moved. Else a ProtocolError and nothing has."""
        refusal = self.error(channel)
        if frame.is_reply:
            raise refusal(
                f"request {frame.request} has the reply flag set, flags {frame.flags:#x} must be without {REPLY:#x}",
                request=str(frame.request),
                field="flags",
                value=frame.flags,
                limit=REPLY,
                fatal=True,
            )
        rule = self.rule(channel, frame.request)
        state = self.state
        check_gate(rule, state, refusal)
        body = self._body(rule, frame, refusal)
        _check_fds(rule, state, body, len(frame.fds), refusal)
        move = _MOVES[channel].get(rule.id)
        if move is not None:
            self.state = move(_Step(rule.name, state, self, refusal), body)
        return Message(rule, body, frame.fds, frame.need_reply)

    def admit_reply(self, rule: Rule, frame: Frame[Any], owed: Owed) -> Payload | None:
        """The body of the reply to `rule`; the session has taken it in. A fatal RemoteProtocolError if it is no such."""
        for field, value, limit in (("request", frame.request, rule.id), ("flags", frame.flags, VERSION | REPLY)):
            if value != limit:
                raise RemoteProtocolError(
                    f"expected the reply to {rule.name}, request {rule.id}: {field} is {value:#x}, must be {limit:#x}",
                    request=rule.name,
                    field=field,
                    value=value,
                    limit=limit,
                    fatal=True,
                )
        answer = U64 if owed is Owed.ACK else rule.answer
        fds = rule.answer_fds if owed is Owed.OWN else range(1)
        try:
            body = decode_payload(f"{rule.name} reply", answer, frame.payload)
        except RemoteProtocolError as error:
            if _says_no(rule, frame):
                return None
            error.fatal = True
            raise
        if len(frame.fds) not in fds:
            raise RemoteProtocolError(
                f"{rule.name} reply came with {len(frame.fds)} fds, must be {_span(fds)}",
                request=rule.name,
                field="fds",
                value=len(frame.fds),
                limit=_span(fds),
                fatal=True,
            )
        if owed is Owed.OWN and rule.channel is Channel.FRONTEND and (learn := _ANSWERS.get(rule.id)):
            self.state = learn(self, body)
        return body

    def _body(self, rule: Rule, frame: Frame[Any], refusal: type[ProtocolError]) -> Payload | None:
        payload = rule.payload_under(self.state.protocol_acknowledged)
        if rule.request is Q.SET_MEM_TABLE and self.state.postcopy and not frame.payload:
            return None
        try:
            return decode_payload(rule.name, payload, frame.payload)
        except RemoteProtocolError as error:
            if refusal is RemoteProtocolError:
                raise
            raise refusal(
                str(error), request=error.request, field=error.field, value=error.value, limit=error.limit
            ) from None


def _says_no(rule: Rule, frame: Frame[Any]) -> bool:
    """GET_CONFIG's way to say no is an empty payload ("GET_CONFIG")."""
    return rule.request is Q.GET_CONFIG and not frame.payload


def _span(counts: range) -> str:
    return str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"


def check_gate(rule: Rule, state: State, refusal: type[ProtocolError]) -> None:
    """What gates the request was negotiated ("Protocol features")."""
    gate = rule.gate
    if gate is None:
        return
    if isinstance(gate, ProtocolFeature):
        open_, name = state.has(gate), f"protocol feature {gate.name} (bit {int(gate)})"
    elif gate is Gate.IOMMU_PLATFORM:
        open_, name = bool(state.acknowledged >> ACCESS_PLATFORM & 1), "VIRTIO_F_ACCESS_PLATFORM"
    else:
        mask = state.offered if gate is Gate.PROTOCOL_FEATURES_OFFERED else state.acknowledged
        open_, name = bool(mask >> VhostFeature.PROTOCOL_FEATURES & 1), "VHOST_USER_F_PROTOCOL_FEATURES (bit 30)"
    if not open_:
        text = f"{rule.name} (request {rule.id}) needs {name}, which was not negotiated"
        raise refusal(text, request=rule.name, field="request", value=rule.id, limit=name)


def _fds_wanted(rule: Rule, state: State, body: Payload | None) -> range:
    """How many fds this request has to bring."""
    kind, one = rule.fds, range(1, 2)
    if kind is Fds.PER_REGION:
        count = len(body.regions) if isinstance(body, MemoryTable | XenMemoryTable) else 0
        return range(count, count + 1)
    if kind is Fds.UNLESS_NO_FD and isinstance(body, U64):
        return range(1) if body.value & VRING_NO_FD else one
    if kind is Fds.IF_LOG_SHMFD:
        return one if state.has(F.LOG_SHMFD) else range(1)
    return {Fds.NONE: range(1), Fds.ONE: one}.get(kind, range(2))


def _check_fds(rule: Rule, state: State, body: Payload | None, count: int, refusal: type[ProtocolError]) -> None:
    wanted = _fds_wanted(rule, state, body)
    if count not in wanted:
        raise refusal(
            f"{rule.name} came with {count} fds, must be {_span(wanted)}",
            request=rule.name,
            field="fds",
            value=count,
            limit=_span(wanted),
        )


# Moves: what each request does to the state. A request without one leaves it as it is.


class _Step(NamedTuple):
    """What a move may look at."""

    name: str
    state: State
    session: Session
    refusal: type[ProtocolError]

    def refuse(self, field: str, value: int, limit: int | str, text: str) -> ProtocolError:
        shown = limit if isinstance(limit, str) else hex(limit)
        return self.refusal(
            f"{self.name} {field} {value:#x} {text} {shown}", request=self.name, field=field, value=value, limit=limit
        )

    def ring(self, index: int) -> Ring:
        if index >= len(self.state.rings):
            raise self.refuse("index", index, len(self.state.rings), "is not below the number of queues,")
        return self.state.rings[index]

    def with_ring(self, index: int, ring: Ring) -> State:
        rings = self.state.rings
        return replace(self.state, rings=(*rings[:index], ring, *rings[index + 1 :]))


def _set_features(step: _Step, body: U64) -> State:
    state = step.state
    if body.value & ~state.offered:
        raise step.refuse("features", body.value, state.offered, "has bits that were not offered;")
    rings = state.rings
    if not body.value >> VhostFeature.PROTOCOL_FEATURES & 1:
        rings = tuple(replace(ring, enabled=True, quiesced=False) for ring in rings)
    return replace(state, acknowledged=body.value, rings=rings)


def _set_protocol_features(step: _Step, body: U64) -> State:
    offered_wire = step.session.dialect.to_wire(step.state.protocol_offered)
    if body.value & ~offered_wire:
        raise step.refuse("features", body.value, offered_wire, "has bits that were not offered;")
    value = step.session.dialect.from_wire(body.value)
    for feature, needed in missing_requirements(value):
        text = f"has {feature.name} without what it requires,"
        raise step.refuse("features", body.value, needed.name, text)
    return replace(step.state, protocol_acknowledged=value)


def _set_mem_table(step: _Step, body: MemoryTable | XenMemoryTable | None) -> State:
    if body is None:
        return step.state
    taken: list[MemoryRegion | XenMemoryRegion] = []
    for region in body.regions:
        _check_region(step, region, taken)
        taken.append(region)
    return replace(step.state, regions=tuple(taken))


def _add_mem_reg(step: _Step, body: SingleRegion | XenSingleRegion) -> State:
    _check_region(step, body.region, step.state.regions)
    return replace(step.state, regions=(*step.state.regions, body.region))


def _rem_mem_reg(step: _Step, body: SingleRegion | XenSingleRegion) -> State:
    """A region is "identified by guest address, user address and size. The mmap offset is ignored" ("REM_MEM_REG")."""
    key = (body.guest_addr, body.size, body.user_addr)
    left = tuple(r for r in step.state.regions if (r.guest_addr, r.size, r.user_addr) != key)
    if len(left) == len(step.state.regions):
        raise step.refuse("guest_addr", body.guest_addr, body.size, "is no region of that user address and size")
    return replace(step.state, regions=left)


def _check_region(step: _Step, region: Any, others: Any) -> None:
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


def _set_vring_num(step: _Step, body: VringState) -> State:
    ring, limit = step.ring(body.index), step.session.largest_queue(body.index)
    if not 0 < body.num <= limit:
        raise step.refuse("num", body.num, limit, "is not a queue size between 1 and")
    if body.num & (body.num - 1) and not step.state.acknowledged >> RING_PACKED & 1:
        raise step.refuse("num", body.num, limit, "is not a power of two up to")
    _check_stopped(step, ring, body.index)
    return step.with_ring(body.index, replace(ring, size=body.num))


def _set_vring_addr(step: _Step, body: VringAddr) -> State:
    ring = step.ring(body.index)
    for field, alignment in (("descriptor", 16), ("used", 4), ("available", 2)):
        if getattr(body, field) % alignment:
            raise step.refuse(field, getattr(body, field), alignment, "is not aligned to")
    return step.with_ring(body.index, replace(ring, addresses=body))


def _set_vring_base(step: _Step, body: VringState) -> State:
    ring = step.ring(body.index)
    if body.num > 0xFFFF and not step.state.acknowledged >> RING_PACKED & 1:
        raise step.refuse("num", body.num, 0xFFFF, "is not an available index up to")
    _check_stopped(step, ring, body.index)
    return step.with_ring(body.index, replace(ring, base=body.num))


def _check_stopped(step: _Step, ring: Ring, index: int) -> None:
    """A ring that runs keeps its size and base; one that was kicked before it had any may still get them."""
    if ring.started and ring.size and ring.addresses:
        raise step.refuse("index", index, "stopped", "is a ring that is started, must be")


def _get_vring_base(step: _Step, body: VringState) -> State:
    return step.with_ring(body.index, replace(step.ring(body.index), started=False, quiesced=False))


def _set_vring_kick(step: _Step, body: U64) -> State:
    index = _file_index(step, body)
    return step.with_ring(index, replace(step.ring(index), started=True, quiesced=False))


def _set_vring_file(step: _Step, body: U64) -> State:
    step.ring(_file_index(step, body))
    return step.state


def _file_index(step: _Step, body: U64) -> int:
    known = VRING_INDEX_MASK | VRING_NO_FD
    if body.value & ~known:
        raise step.refuse("index", body.value, known, "has bits beyond")
    return body.value & VRING_INDEX_MASK


def _set_vring_enable(step: _Step, body: VringState) -> State:
    ring, enabled = step.ring(body.index), _switch(step, body)
    return step.with_ring(body.index, replace(ring, enabled=enabled, quiesced=ring.started and not enabled))


def _set_vring_endian(step: _Step, body: VringState) -> State:
    _switch(step, body)
    return _vring_of(step, body)


def _switch(step: _Step, body: VringState) -> bool:
    """What a ring's number says that is either 0 or 1."""
    if body.num > 1:
        raise step.refuse("num", body.num, 1, "is not 0 or")
    return body.num == 1


def _vring_of(step: _Step, body: VringState) -> State:
    step.ring(body.index)
    return step.state


def _stop_rings(step: _Step, body: object) -> State:
    return replace(step.state, rings=tuple(replace(ring, enabled=False, quiesced=ring.started) for ring in step.state.rings))


def _reset_device(step: _Step, body: object) -> State:
    return replace(step.state, rings=tuple(Ring() for _ in step.state.rings), status=0, postcopy=False)


def _set_status(step: _Step, body: U64) -> State:
    if body.value > 0xFF:
        raise step.refuse("status", body.value, 0xFF, "is not a device status up to")
    return replace(step.state, status=body.value) if body.value else _reset_device(step, body)


def _config(step: _Step, body: Config) -> State:
    if body.flags > 1:
        raise step.refuse("flags", body.flags, 1, "is not 0 (writable) or")
    return step.state


def _iotlb(step: _Step, body: Iotlb) -> State:
    if not 1 <= body.type <= 4:
        raise step.refuse("type", body.type, 4, "is not a type between 1 and")
    return step.state


def _backend_channel(step: _Step, body: object) -> State:
    return replace(step.state, backend_channel=True)


def _asked_config(step: _Step, body: object) -> State:
    return replace(step.state, asked_config=True)


def _postcopy(listening: bool) -> Callable[[_Step, Any], State]:
    return lambda step, body: replace(step.state, postcopy=listening)


_FRONTEND_MOVES: Final[dict[int, Callable[[_Step, Any], State]]] = {
    Q.SET_FEATURES: _set_features,
    Q.SET_PROTOCOL_FEATURES: _set_protocol_features,
    Q.RESET_OWNER: _stop_rings,
    Q.SET_MEM_TABLE: _set_mem_table,
    Q.ADD_MEM_REG: _add_mem_reg,
    Q.REM_MEM_REG: _rem_mem_reg,
    Q.SET_VRING_NUM: _set_vring_num,
    Q.SET_VRING_ADDR: _set_vring_addr,
    Q.SET_VRING_BASE: _set_vring_base,
    Q.GET_VRING_BASE: _get_vring_base,
    Q.SET_VRING_KICK: _set_vring_kick,
    Q.SET_VRING_CALL: _set_vring_file,
    Q.SET_VRING_ERR: _set_vring_file,
    Q.SET_VRING_ENABLE: _set_vring_enable,
    Q.SET_VRING_ENDIAN: _set_vring_endian,
    Q.VRING_KICK: _vring_of,
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
_BACKEND_MOVES: Final[dict[int, Callable[[_Step, Any], State]]] = {
    BackendRequest.IOTLB_MSG: _iotlb,
    BackendRequest.VRING_CALL: _vring_of,
    BackendRequest.VRING_ERR: _vring_of,
}
_MOVES: Final = {Channel.FRONTEND: _FRONTEND_MOVES, Channel.BACKEND: _BACKEND_MOVES}


# Answers: what a front-end learns from the back-end's own replies.


def _learn_features(session: Session, body: U64) -> State:
    return replace(session.state, offered=body.value)


def _learn_protocol_features(session: Session, body: U64) -> State:
    return replace(session.state, protocol_offered=session.dialect.from_wire(body.value))


def _learn_queue_num(session: Session, body: U64) -> State:
    rings = session.state.rings
    return replace(session.state, rings=rings + tuple(Ring() for _ in range(len(rings), min(body.value, 256))))


def _learn_shmem_config(session: Session, body: ShmemConfig) -> State:
    check_sizes(body, RemoteProtocolError)
    return session.state


_ANSWERS: Final[dict[int, Callable[[Session, Any], State]]] = {
    Q.GET_FEATURES: _learn_features,
    Q.GET_PROTOCOL_FEATURES: _learn_protocol_features,
    Q.GET_QUEUE_NUM: _learn_queue_num,
    Q.GET_SHMEM_CONFIG: _learn_shmem_config,
}
