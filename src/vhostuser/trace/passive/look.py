"""What a passive rule looks at: an exchange, and what was agreed on before it, as an observer between the two sees it."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Final, NamedTuple

from ...errors import ProtocolError, RemoteProtocolError
from ...protocol.dialects import RELEASED, Dialect
from ...protocol.framing import Frame
from ...protocol.layout import Payload
from ...protocol.numbers import MAX_QUEUES, VRING_INDEX_MASK
from ...protocol.numbers import FrontendRequest as Q
from ...protocol.payloads import U64, Mmap, ShmemConfig, VringAddr, VringState
from ...protocol.regions import Mapping, MappingTable, check_map, check_unmap
from ...protocol.rules import Channel
from ...protocol.session import Session
from ...protocol.state import Owed, Ring, Role, State
from ..conversation import Exchange
from ..event import FdNote, Message
from .pace import Pace

_CHECKS: Final = {"SHMEM_MAP": check_map, "SHMEM_UNMAP": check_unmap}
_REMEMBERED: Final = 256
"""Exchanges on shared memory that a stop may still turn out to have crossed."""


class Stretch(NamedTuple):
    """From this time on a driver runs the device, or none does."""

    at: int
    running: bool


@dataclass(slots=True)
class Watched:
    """One connection, as the tables of the protocol see it."""

    dialect: Dialect = RELEASED
    state: State = field(default_factory=State)
    begun: bool = False
    """Its negotiation was seen: a capture that begins later knows nothing of what was agreed on."""
    over: bool = False
    last: int = -1
    """The event of the latest request."""
    queues: int | None = None
    sizes: dict[int, int] | None = None
    """The regions, once they were told."""
    tables: dict[int, MappingTable] = field(default_factory=dict)
    files: dict[tuple[int, int], FdNote] = field(default_factory=dict)
    """What is behind a mapping, by region and offset."""
    stretches: list[Stretch] = field(default_factory=lambda: [Stretch(0, running=False)])
    mapping: deque[Exchange] = field(default_factory=lambda: deque(maxlen=_REMEMBERED))
    """The latest SHMEM_MAPs and SHMEM_UNMAPs."""
    paces: dict[str, Pace] = field(default_factory=dict)
    told: set[str] = field(default_factory=set)
    """What is said once a connection."""

    def look(self, exchange: Exchange) -> Look:
        """The exchange, and what the tables say to it; the state has moved, unless they refuse it."""
        before, refusal = self.state, None
        if self._can_judge(exchange):
            refusal = self._admitted(exchange) or self._learned(exchange)
        return Look(exchange, self, before, self.state, refusal, self._misplaced(exchange))

    def follow(self, look: Look) -> None:
        """Take in what this exchange did, whether it should have or not."""
        exchange = look.exchange
        self.last = max(self.last, exchange.index)
        if exchange.latency is not None:
            self.paces.setdefault(exchange.request.name, Pace()).add(exchange.latency)
        if exchange.message.channel is Channel.FRONTEND:
            self._main(exchange)
        elif isinstance(exchange.request.body, Mmap) and not exchange.orphan:
            self.mapping.append(exchange)
            self._shmem(exchange, exchange.request.body)

    @property
    def count(self) -> int:
        """How many mappings there are."""
        return sum(len(table) for table in self.tables.values())

    def table(self, shmid: int) -> MappingTable:
        """What is mapped in a region."""
        return self.tables.setdefault(shmid, MappingTable())

    def once(self, text: str) -> Iterator[str]:
        """`text`, the first time."""
        if text not in self.told:
            self.told.add(text)
            yield text

    def _can_judge(self, exchange: Exchange) -> bool:
        if exchange.message.channel is Channel.FRONTEND and exchange.message.request == Q.GET_FEATURES:
            self.begun = True
        return self.begun and not exchange.orphan and exchange.request.rule is not None and not exchange.request.fault

    def _admitted(self, exchange: Exchange) -> ProtocolError | None:
        """Let the tables admit the request; why they do not."""
        self.state = _with_ring(self.state, exchange.request.body, self.queues)
        session = Session(Role.FRONTEND, self.state, dialect=self.dialect)
        try:
            session.admit(exchange.message.channel, _frame(exchange.message))
        except ProtocolError as refusal:
            self._believe(exchange)
            return refusal
        self._move(session.state, exchange.at)
        return None

    def _learned(self, exchange: Exchange) -> ProtocolError | None:
        """Take in the reply; why it is none, where its form alone does not tell."""
        rule, reply = exchange.request.rule, exchange.reply
        if rule is None or reply is None or reply.fault or exchange.owed is Owed.NOTHING:
            return None
        session = Session(Role.FRONTEND, self.state, dialect=self.dialect)
        try:
            body = session.admit_reply(rule, _frame(reply.message), exchange.owed)
        except RemoteProtocolError as refusal:
            return refusal
        self._move(session.state, exchange.at)
        if rule.request is Q.GET_QUEUE_NUM and isinstance(body, U64):
            self.queues = body.value
        return None

    def _misplaced(self, exchange: Exchange) -> ProtocolError | None:
        """Why the bookkeeping of regions refuses a request about shared memory."""
        body = exchange.request.body
        check = _CHECKS.get(exchange.request.name)
        if check is None or not isinstance(body, Mmap) or exchange.orphan or self.sizes is None:
            return None
        try:
            check(body, self.sizes.get(body.shmid, 0), self.table(body.shmid), RemoteProtocolError)
        except ProtocolError as error:
            return error
        return None

    def _believe(self, exchange: Exchange) -> None:
        """A set of features that may not be acknowledged, but was: all that follows is judged by it."""
        body = exchange.request.body
        if exchange.refused or not isinstance(body, U64) or exchange.message.channel is not Channel.FRONTEND:
            return
        if exchange.message.request == Q.SET_FEATURES:
            self.state = replace(self.state, acknowledged=body.value)
        elif exchange.message.request == Q.SET_PROTOCOL_FEATURES:
            self.state = replace(self.state, protocol_acknowledged=self.dialect.from_wire(body.value))

    def _move(self, state: State, at: int) -> None:
        self.state = state
        if state.running != self.stretches[-1].running:
            self.stretches.append(Stretch(at, state.running))

    def _main(self, exchange: Exchange) -> None:
        reply, body = exchange.reply, exchange.request.body
        if reply and isinstance(reply.body, ShmemConfig):
            self.sizes = reply.body.sizes
        reset = exchange.message.request == Q.RESET_DEVICE
        reset |= exchange.message.request == Q.SET_STATUS and isinstance(body, U64) and not body.value
        if reset and not exchange.refused:
            self.tables.clear()
            self.files.clear()

    def _shmem(self, exchange: Exchange, body: Mmap) -> None:
        if exchange.refused or exchange.unanswered or not body.len:
            return
        table = self.table(body.shmid)
        if exchange.request.name == "SHMEM_MAP":
            for gone in table.covering(body.shm_offset, body.len):
                table.remove(gone)
            table.insert(Mapping(body.shm_offset, body.len, body.fd_offset, body.writable))
            if exchange.message.fds:
                self.files[body.shmid, body.shm_offset] = exchange.message.fds[0]
        elif found := table.exact(body.shm_offset, body.len):
            table.remove(found)


class Look(NamedTuple):
    """One exchange in its place."""

    exchange: Exchange
    watched: Watched
    before: State
    after: State
    refusal: ProtocolError | None
    """Why the tables do not admit it."""
    misplaced: ProtocolError | None
    """Why the bookkeeping of regions refuses it."""

    @property
    def odd(self) -> bool:
        """It is not a request of the tables that was admitted, settled, and not refused."""
        exchange = self.exchange
        strange = self.refusal is not None or exchange.orphan or exchange.request.rule is None or not self.watched.begun
        return strange or exchange.unanswered or exchange.refused or bool(exchange.faults)

    @property
    def name(self) -> str:
        """The request's name."""
        return self.exchange.request.name

    @property
    def sender(self) -> str:
        """Who sent the request, in words."""
        return self.exchange.message.sender.value

    @property
    def receiver(self) -> str:
        """Who answers it."""
        return next(role.value for role in Role if role is not self.exchange.message.sender)

    @property
    def shmem(self) -> Mmap | None:
        """The body, if this is about shared memory."""
        body = self.exchange.request.body
        return body if isinstance(body, Mmap) and not self.exchange.orphan else None

    @property
    def maps(self) -> Mmap | None:
        """The body, if this is a SHMEM_MAP."""
        return self.shmem if self.name == "SHMEM_MAP" else None

    @property
    def stops(self) -> bool:
        """No driver runs the device from here on."""
        return self.before.running and not self.after.running

    @property
    def verdict(self) -> str:
        """What the receiver said, where words end."""
        if self.exchange.refused:
            return f"; the {self.receiver} refused it"
        return f"; the {self.receiver} accepted it" if self.exchange.status == 0 else ""

    @property
    def file(self) -> FdNote | None:
        """What the first fd is."""
        return self.exchange.message.fds[0] if self.exchange.message.fds else None

    @property
    def accepted(self) -> bool:
        """Nobody refused it, as far as one can see."""
        return not self.exchange.refused and not self.exchange.unanswered


def _frame(message: Message) -> Frame[FdNote]:
    return Frame(message.request, message.flags, message.payload, message.fds)


def _with_ring(state: State, body: Payload | None, queues: int | None) -> State:
    """The state with the ring that a request is about: how many there are nobody says, unless GET_QUEUE_NUM was asked."""
    index = body.index if isinstance(body, VringState | VringAddr) else -1
    if isinstance(body, U64) and body.value & ~VRING_INDEX_MASK in (0, VRING_INDEX_MASK + 1):
        index = body.value & VRING_INDEX_MASK
    least = MAX_QUEUES if queues is None else queues
    if not len(state.rings) <= index < least:
        return state
    return replace(state, rings=state.rings + tuple(Ring() for _ in range(len(state.rings), index + 1)))
