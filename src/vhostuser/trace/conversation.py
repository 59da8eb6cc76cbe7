"""Requests joined with their replies: what each side said to the other, in the order in which it was settled.

What answers a request depends on what was negotiated before (`reply_owed`), so a conversation follows the negotiation of
each connection. It believes what it sees, right or wrong: a reply that nobody owes, or one that never comes, is shown so.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Final, NamedTuple

from ..protocol.dialects import RELEASED, Dialect
from ..protocol.numbers import NEED_REPLY, ProtocolFeature
from ..protocol.numbers import FrontendRequest as Q
from ..protocol.payloads import U64
from ..protocol.rules import Channel
from ..protocol.state import Owed, State, reply_owed
from .decoded import Decoded, decoded
from .event import Event, Message, Offered, Remark, Remarkable, Used
from .pairing import Pairing

MOST_PENDING: Final = 1024
"""Requests of a channel that are remembered until they are answered; the oldest is given up for one more."""


@dataclass(frozen=True, slots=True)
class Exchange:
    """A request and what came of it."""

    request: Decoded
    reply: Decoded | None = None
    owed: Owed = Owed.NOTHING
    latency: int | None = None
    """Nanoseconds from the request to its reply; None where a clock was set back between them."""
    orphan: bool = False
    """`request` is a reply that answers nothing."""
    waited: int | None = None
    """Nanoseconds until nobody expected the reply any more; None if there is one, or none is owed."""

    @property
    def index(self) -> int:
        """Which event of the capture the request is, from 0."""
        return self.request.index

    @property
    def message(self) -> Message:
        """The request as it came."""
        return self.request.message

    @property
    def at(self) -> int:
        """When the request passed, in nanoseconds since the epoch."""
        return self.request.message.at

    @property
    def settled(self) -> int:
        """When its reply passed; where there is none, when the request did."""
        return self.reply.message.at if self.reply else self.at

    @property
    def unanswered(self) -> bool:
        """A reply is owed and did not come."""
        return self.owed is not Owed.NOTHING and self.reply is None

    @property
    def status(self) -> int | None:
        """The number in an acknowledgement, 0 for success; None if this has no acknowledgement."""
        body = self.reply.body if self.reply else None
        return body.value if self.owed is Owed.ACK and isinstance(body, U64) else None

    @property
    def refused(self) -> bool:
        """The peer said no: by a number that is not 0, or by GET_CONFIG's empty payload."""
        if self.status is not None:
            return self.status != 0
        reply = self.reply
        return reply is not None and not reply.fault and reply.name == "GET_CONFIG" and reply.body is None

    @property
    def faults(self) -> tuple[str, ...]:
        """What is wrong with the form of the request and of its reply."""
        return tuple(each.fault for each in (self.request, self.reply) if each and each.fault)


Item = Exchange | Offered | Used | Remark


class _Asked(NamedTuple):
    request: Decoded
    owed: Owed


@dataclass(slots=True)
class _Side:
    """One connection: what it has agreed on, and what is not answered yet, by channel."""

    state: State = field(default_factory=State)
    pending: dict[Channel, deque[_Asked]] = field(default_factory=lambda: {channel: deque() for channel in Channel})


class Conversation:
    """Takes the events of a capture one by one, and gives them back joined.

    Keeps what is not answered yet, at most MOST_PENDING requests a channel, and what open connections have negotiated.
    """

    def __init__(self, dialect: Dialect = RELEASED, *, kind: str | None = None) -> None:
        """`kind` is of the device, for what is in its rings (trace.requests); it is guessed where it is not told."""
        self._dialect, self._pairing = dialect, Pairing(kind)
        self._sides: dict[int, _Side] = {}
        self._count = 0
        self._now = 0

    def take(self, event: Event) -> list[Item]:
        """What `event` settles: itself, or the request that it answers; before it, what it shows to be left unanswered."""
        index, self._count, self._now = self._count, self._count + 1, max(self._now, event.at)
        if isinstance(event, Message):
            side = self._sides.get(event.connection) or self._sides.setdefault(event.connection, _Side())
            return list(self._asked(side, event, index) if event.asks else self._answered(side, event, index))
        if isinstance(event, Offered | Used):
            return [self._pairing.of(event)]
        if event.about is Remarkable.CLOSED:
            return [*self._given_up(self._sides.pop(event.connection, None)), event]
        return [event]

    def end(self) -> list[Item]:
        """The requests that were never answered: the capture is over."""
        sides, self._sides = self._sides, {}
        return [item for side in sides.values() for item in self._given_up(side)]

    def owed(self, connection: int, channel: Channel) -> int:
        """How many requests of a channel wait for their reply."""
        side = self._sides.get(connection)
        return len(side.pending[channel]) if side else 0

    def state(self, connection: int) -> State:
        """What a connection has agreed on so far; masks in the released numbering."""
        side = self._sides.get(connection)
        return side.state if side else State()

    def _asked(self, side: _Side, message: Message, index: int) -> Iterator[Item]:
        state = side.state
        request = decoded(message, index, features=state.protocol_acknowledged, postcopy=state.postcopy)
        owed = _owed(request, state)
        side.state = self._moved(state, request)
        if owed is Owed.NOTHING:
            yield Exchange(request)
            return
        pending = side.pending[message.channel]
        if len(pending) >= MOST_PENDING:
            yield self._unanswered(pending.popleft())
        pending.append(_Asked(request, owed))

    def _answered(self, side: _Side, message: Message, index: int) -> Iterator[Item]:
        pending = side.pending[message.channel]
        place = next((n for n, asked in enumerate(pending) if asked.request.message.request == message.request), None)
        if place is None or not message.whole:
            yield Exchange(decoded(message, index, features=side.state.protocol_acknowledged), orphan=True)
            return
        for _ in range(place):
            yield self._unanswered(pending.popleft())
        request, owed = pending.popleft()
        reply = decoded(message, index, features=side.state.protocol_acknowledged, owed=owed)
        side.state = self._learned(side.state, reply, owed)
        latency = message.at - request.message.at
        yield Exchange(request, reply, owed, latency if latency >= 0 else None)

    def _given_up(self, side: _Side | None) -> Iterator[Item]:
        for pending in side.pending.values() if side else ():
            yield from map(self._unanswered, pending)

    def _unanswered(self, asked: _Asked) -> Exchange:
        return Exchange(asked.request, None, asked.owed, waited=self._now - asked.request.message.at)

    def _moved(self, state: State, request: Decoded) -> State:
        """What a request of the front-end changes in what later ones mean."""
        if request.message.channel is not Channel.FRONTEND or request.fault:
            return state
        value = request.body.value if isinstance(request.body, U64) else 0
        match request.message.request:
            case Q.SET_FEATURES:
                return replace(state, acknowledged=value)
            case Q.SET_PROTOCOL_FEATURES:
                return replace(state, protocol_acknowledged=self._dialect.from_wire(value))
            case Q.POSTCOPY_LISTEN:
                return replace(state, postcopy=True)
            case Q.POSTCOPY_END:
                return replace(state, postcopy=False)
        return state

    def _learned(self, state: State, reply: Decoded, owed: Owed) -> State:
        """What an answer of the back-end tells."""
        if owed is not Owed.OWN or reply.message.channel is not Channel.FRONTEND or not isinstance(reply.body, U64):
            return state
        match reply.message.request:
            case Q.GET_FEATURES:
                return replace(state, offered=reply.body.value)
            case Q.GET_PROTOCOL_FEATURES:
                return replace(state, protocol_offered=self._dialect.from_wire(reply.body.value))
        return state


def _owed(request: Decoded, state: State) -> Owed:
    """What answers a request; an unknown one is owed an acknowledgement as any other."""
    message = request.message
    need_reply = bool(message.flags & NEED_REPLY)
    if not message.whole:
        return Owed.NOTHING
    if request.rule is None:
        return Owed.ACK if need_reply and state.has(ProtocolFeature.REPLY_ACK) else Owed.NOTHING
    return reply_owed(request.rule, state, need_reply)
