"""What messages say of guest memory and rings, and the watch over each ring that runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from ..errors import MemoryFault, QueueBroken, RemoteProtocolError
from ..protocol.framing import decode_payload
from ..protocol.layout import Payload
from ..protocol.numbers import MAX_QUEUE_SIZE, VRING_INDEX_MASK, ProtocolFeature
from ..protocol.numbers import FrontendRequest as Q
from ..protocol.payloads import U64, MemoryRegion, MemoryTable, SingleRegion, VringAddr, VringState
from ..protocol.rules import FRONTEND
from ..transport.fds import OwnedFd
from . import clock
from .event import Event, Message, Remark, Remarkable
from .packed_watch import PackedWatch
from .ring_memory import RingMemory, SeenRegion
from .ring_place import RingPlace
from .split_watch import SplitWatch

REMARK_EVERY: Final = 1_000_000_000
"""Nanoseconds between two remarks about what was lost."""
Sink = Callable[[Event], None]
Fds = Sequence[OwnedFd]


@dataclass(slots=True)
class _Ring:
    """One ring, as far as it was described."""

    size: int = 0
    base: int | None = None
    addresses: VringAddr | None = None
    kicked: bool = False
    watch: SplitWatch | PackedWatch | None = None
    given_up: bool = False
    """It is not followed until it is started anew."""
    lost: int = 0
    remarked: int = 0
    """When it was last said how many were lost."""


class RingStates:
    """Guest memory and rings of one connection. Not for several threads at once."""

    def __init__(self, sink: Sink, connection: int) -> None:
        self._sink, self._connection = sink, connection
        self._memory = RingMemory()
        self._features = self._protocol = 0
        self._rings: dict[int, _Ring] = {}
        self._blind = False
        self._handlers: dict[int, Callable[[Payload | None, Fds], None]] = {
            Q.SET_FEATURES: self._set_features,
            Q.SET_PROTOCOL_FEATURES: self._set_protocol_features,
            Q.SET_MEM_TABLE: self._set_mem_table,
            Q.ADD_MEM_REG: self._add_mem_reg,
            Q.REM_MEM_REG: self._rem_mem_reg,
            Q.SET_VRING_NUM: self._set_vring_num,
            Q.SET_VRING_ADDR: self._set_vring_addr,
            Q.SET_VRING_BASE: self._set_vring_base,
            Q.SET_VRING_KICK: self._set_vring_kick,
            Q.VRING_KICK: self._vring_kick,
            Q.GET_VRING_BASE: self._get_vring_base,
            Q.RESET_DEVICE: self._stop_all,
            Q.RESET_OWNER: self._stop_all,
            Q.SET_STATUS: self._set_status,
            Q.POSTCOPY_LISTEN: self._postcopy,
        }
        self.requests = frozenset(self._handlers)
        """The requests that mean something here."""

    @property
    def following(self) -> bool:
        """Some ring is looked at."""
        return any(ring.watch for ring in self._rings.values())

    def apply(self, message: Message, fds: Fds) -> None:
        """Take what a message says. One that is wrong says nothing: its receiver refuses it."""
        rule = FRONTEND[message.request]
        if not message.asks and message.request != Q.GET_VRING_BASE:
            return
        payload = rule.payload_under(self._protocol) if message.asks else rule.answer
        try:
            body = decode_payload(rule.name, payload, message.payload)
        except RemoteProtocolError:
            return
        if message.request == Q.GET_VRING_BASE and message.asks:
            return
        self._handlers[message.request](body, fds)

    def look(self) -> bool:
        """Look at every ring; whether there was something to see."""
        now, seen = clock.now(), False
        for index, ring in self._rings.items():
            seen |= self._look(index, ring, now)
        fresh = {index: ring.watch.flights.fresh for index, ring in self._rings.items() if ring.watch}
        for index, ring in self._rings.items():
            if ring.watch:
                others = [place for other, places in fresh.items() if other != index for place in places]
                seen |= self._tell(ring.watch.flights.settle(others))
        return seen

    def finish(self) -> None:
        """Say what is left to say."""
        self._stop_all(None, ())

    def close(self) -> None:
        """Let go of guest memory."""
        self._rings.clear()
        self._memory = RingMemory()

    # Looking

    def _start(self, index: int, ring: _Ring) -> None:
        if not ring.addresses or not 0 < ring.size <= MAX_QUEUE_SIZE or not self._memory.regions:
            return
        try:
            place = self._place(index, ring, ring.addresses)
            ring.watch = (PackedWatch if place.is_packed else SplitWatch)(place, self._memory)
        except (QueueBroken, MemoryFault, OSError) as error:
            self._give_up(index, ring, error)

    def _place(self, index: int, ring: _Ring, addresses: VringAddr) -> RingPlace:
        by_guest = bool(self._protocol >> ProtocolFeature.GPA_ADDRESSES & 1)
        return RingPlace(self._connection, index, ring.size, addresses, ring.base, self._features, by_guest)

    def _look(self, index: int, ring: _Ring, now: int) -> bool:
        """Look at one ring, which may have to be found first."""
        if ring.kicked and not ring.watch and not ring.given_up:
            self._start(index, ring)
        seen, watch = False, ring.watch
        if watch is None:
            return False
        try:
            watch.look(self._memory, now)
        except (QueueBroken, MemoryFault, OSError) as error:
            seen = self._tell(watch.flights.flush())
            self._give_up(index, ring, error)
        ring.lost, watch.lost = ring.lost + watch.lost, 0
        if ring.lost and now - ring.remarked >= REMARK_EVERY:
            self._say_lost(index, ring, now)
        return seen

    def _tell(self, events: list[Event]) -> bool:
        """Hand events on; whether there were any."""
        for event in events:
            self._sink(event)
        return bool(events)

    def _give_up(self, index: int, ring: _Ring, error: Exception) -> None:
        ring.watch, ring.given_up = None, True
        self._remark(Remarkable.NOTE, f"queue {index} is not followed until it is started anew: {error}")

    def _say_lost(self, index: int, ring: _Ring, now: int) -> None:
        more = " or more" if ring.watch and ring.watch.place.is_packed else ""
        self._remark(Remarkable.LOST, f"queue {index}: {ring.lost} requests{more} came and went between two looks")
        ring.lost, ring.remarked = 0, now

    def _remark(self, about: Remarkable, text: str) -> None:
        self._sink(Remark(clock.now(), self._connection, about, text))

    # Messages

    def _ring(self, index: int) -> _Ring:
        return self._rings.setdefault(index & VRING_INDEX_MASK, _Ring())

    def _set_features(self, body: Payload | None, fds: Fds) -> None:
        if isinstance(body, U64):
            self._features = body.value

    def _set_protocol_features(self, body: Payload | None, fds: Fds) -> None:
        if isinstance(body, U64):
            self._protocol = body.value

    def _set_mem_table(self, body: Payload | None, fds: Fds) -> None:
        if isinstance(body, MemoryTable):
            self._memory = RingMemory()
            for region, fd in zip(body.regions, fds, strict=False):
                self._add(region, fd)
        else:
            self._remark(Remarkable.NOTE, "rings are not followed: memory is granted by Xen")

    def _add_mem_reg(self, body: Payload | None, fds: Fds) -> None:
        if isinstance(body, SingleRegion) and fds:
            self._add(body.region, fds[0])

    def _add(self, region: MemoryRegion, fd: OwnedFd) -> None:
        if self._blind:
            return
        try:
            self._memory = self._memory.plus(SeenRegion(region, fd.fileno()))
        except (MemoryFault, OSError, OverflowError) as error:
            self._remark(Remarkable.NOTE, f"guest memory at {region.guest_addr:#x} can't be followed: {error}")

    def _rem_mem_reg(self, body: Payload | None, fds: Fds) -> None:
        if isinstance(body, SingleRegion):
            self._memory = self._memory.minus(body.guest_addr)

    def _set_vring_num(self, body: Payload | None, fds: Fds) -> None:
        if isinstance(body, VringState):
            self._ring(body.index).size = body.num

    def _set_vring_base(self, body: Payload | None, fds: Fds) -> None:
        if isinstance(body, VringState):
            ring = self._ring(body.index)
            ring.base, ring.given_up = body.num, False

    def _set_vring_addr(self, body: Payload | None, fds: Fds) -> None:
        """A ring that runs lies elsewhere from now on, as when QEMU begins to log writes to it."""
        if isinstance(body, VringAddr):
            ring = self._ring(body.index)
            ring.addresses = body
            if ring.watch:
                ring.watch.move(replace(ring.watch.place, addresses=body))

    def _set_vring_kick(self, body: Payload | None, fds: Fds) -> None:
        if isinstance(body, U64):
            self._ring(body.value).kicked = True

    def _vring_kick(self, body: Payload | None, fds: Fds) -> None:
        if isinstance(body, VringState):
            self._ring(body.index).kicked = True

    def _get_vring_base(self, body: Payload | None, fds: Fds) -> None:
        """The reply: the ring has stopped, with all that it did in memory."""
        if isinstance(body, VringState) and body.index in self._rings:
            self._stop(body.index, base=body.num)

    def _set_status(self, body: Payload | None, fds: Fds) -> None:
        if isinstance(body, U64) and not body.value:
            self._stop_all(body, fds)

    def _stop_all(self, body: Payload | None, fds: Fds) -> None:
        for index in self._rings:
            self._stop(index, base=None)

    def _stop(self, index: int, *, base: int | None) -> None:
        """Look once more, and no more then."""
        ring, now = self._rings[index], clock.now()
        self._look(index, ring, now)
        if ring.watch:
            self._tell(ring.watch.flights.flush())
        if ring.lost:
            self._say_lost(index, ring, now)
        ring.watch, ring.kicked, ring.given_up, ring.base = None, False, False, base

    def _postcopy(self, body: Payload | None, fds: Fds) -> None:
        """A page that the migration has not brought yet must not be read: it would be taken for one that is there."""
        self._stop_all(body, fds)
        self._blind, self._memory = True, RingMemory()
        self._remark(Remarkable.NOTE, "rings are not followed any more: the guest's memory is being migrated (post-copy)")
