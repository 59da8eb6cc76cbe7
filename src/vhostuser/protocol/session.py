"""What is legal now: the requests and replies of one connection, admitted one by one.

Theory. A connection is in one state, a value (`state`). A request of either side is admitted if four things hold, tested in
this order: its number is known; what gates it was negotiated; its payload and fds are as declared in `rules`; its fields
make sense in this state (`moves`). Then, and only then, the state is replaced by the one that the request leads to. So a
request either moves the whole session or leaves no trace.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Generic, NamedTuple, TypeVar

from ..errors import LocalProtocolError, ProtocolError, RemoteProtocolError
from .dialects import RELEASED, Dialect
from .echoes import check_echo
from .framing import Frame, decode_payload
from .layout import Payload
from .moves import ANSWERS, MOVES, Step
from .numbers import REPLY, VERSION, VRING_NO_FD, FrontendRequest, ProtocolFeature, VhostFeature
from .payloads import U64, MemoryTable, XenMemoryTable
from .rules import RULES, Channel, Fds, Gate, Rule
from .state import Owed, Role, State

ACCESS_PLATFORM: Final = 33
Fd = TypeVar("Fd")


class Message(NamedTuple, Generic[Fd]):
    """A request that was admitted: its row, its body, and the fds, which now belong to whoever performs it."""

    rule: Rule
    body: Payload | None
    fds: tuple[Fd, ...]
    need_reply: bool


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

    def admit(self, channel: Channel, frame: Frame[Fd]) -> Message[Fd]:
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
        if move := MOVES[channel].get(rule.id):
            self.state = move(Step(rule.name, state, self.dialect, self._queue_sizes, refusal), body)
        return Message(rule, body, frame.fds, frame.need_reply)

    def admit_reply(self, rule: Rule, frame: Frame[Fd], owed: Owed, asked: Payload | None = None) -> Payload | None:
        """The body of the reply to `rule`; the session has taken it in. A fatal RemoteProtocolError if it is no such.

        `asked` is the body of the request, parts of which some replies repeat.
        """
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
        answer = U64 if owed is Owed.ACK else rule.answer_of(len(frame.payload))
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
        if owed is Owed.OWN:
            check_echo(rule, asked, body)
        if owed is Owed.OWN and rule.channel is Channel.FRONTEND and (learn := ANSWERS.get(rule.id)):
            self.state = learn(self.state, self.dialect, body)
        return body

    def _body(self, rule: Rule, frame: Frame[Fd], refusal: type[ProtocolError]) -> Payload | None:
        payload = rule.payload_under(self.state.protocol_acknowledged)
        if rule.request is FrontendRequest.SET_MEM_TABLE and self.state.postcopy and not frame.payload:
            return None
        try:
            return decode_payload(rule.name, payload, frame.payload)
        except RemoteProtocolError as error:
            if refusal is RemoteProtocolError:
                raise
            raise refusal(
                str(error), request=error.request, field=error.field, value=error.value, limit=error.limit
            ) from None


def _says_no(rule: Rule, frame: Frame[Fd]) -> bool:
    """GET_CONFIG's way to say no is an empty payload ("GET_CONFIG")."""
    return rule.request is FrontendRequest.GET_CONFIG and not frame.payload


def _span(counts: range) -> str:
    return str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"


def check_gate(rule: Rule, state: State, refusal: type[ProtocolError]) -> None:
    """What gates the request was negotiated ("Protocol features")."""
    gate = rule.gate
    if gate is None:
        return
    if isinstance(gate, ProtocolFeature):
        mask = state.protocol_offered if rule.if_offered else state.protocol_acknowledged
        open_, name = bool(mask >> gate & 1), f"protocol feature {gate.name} (bit {int(gate)})"
    elif gate is Gate.IOMMU_PLATFORM:
        open_, name = bool(state.acknowledged >> ACCESS_PLATFORM & 1), "VIRTIO_F_ACCESS_PLATFORM"
    else:
        mask = state.offered if gate is Gate.PROTOCOL_FEATURES_OFFERED else state.acknowledged
        open_, name = bool(mask >> VhostFeature.PROTOCOL_FEATURES & 1), "VHOST_USER_F_PROTOCOL_FEATURES (bit 30)"
    if not open_:
        was = "offered" if rule.if_offered else "negotiated"
        text = f"{rule.name} (request {rule.id}) needs {name}, which was not {was}"
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
        return one if state.has(ProtocolFeature.LOG_SHMFD) else range(1)
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
