"""The requests of a front-end that are about memory and rings; each is performed by the method named after it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

from .driver_watch import DriverWatch
from .errors import QueueBroken, RemoteProtocolError
from .exports import Exports
from .guest_table import GuestTable
from .limited_log import LimitedLog
from .memory.inflight import InflightArea, new_area
from .patience import BROKEN, Patience
from .protocol.dialects import diagnose_front_end
from .protocol.layout import P, Payload
from .protocol.numbers import MAX_MEM_SLOTS, VRING_INDEX_MASK, ProtocolFeature
from .protocol.payloads import U64, Inflight, Log, MemoryTable, SingleRegion, VringAddr, VringState
from .protocol.session import Session
from .rings import Rings
from .shared_memory import SharedMemory
from .transport.channel import OwnedMessage
from .transport.fds import OwnedFd
from .virtio.formats import ring_format
from .virtqueue import Place

log = logging.getLogger(__name__)
F = ProtocolFeature


class RingRequests:
    """Memory and rings of one connection, as its requests set them up."""

    def __init__(
        self,
        session: Session,
        rings: Rings,
        watch: DriverWatch,
        regions: Mapping[int, SharedMemory],
        patience: Patience,
        limited: LimitedLog,
        exports: Exports,
    ) -> None:
        self._session, self._rings, self._watch, self._regions = session, rings, watch, regions
        self._patience, self._log = patience, limited
        self.guest = GuestTable(session, rings, exports if regions else None)
        self._inflight: InflightArea | None = None
        self._diagnosed = False

    def close(self) -> None:
        """Let go of memory."""
        self.guest.close()
        self._inflight = None

    def on_set_mem_table(self, message: OwnedMessage) -> None:
        self.guest.replace(body_of(message, MemoryTable), [fd.fileno() for fd in message.fds])
        self._use_memory()

    def on_get_max_mem_slots(self, message: OwnedMessage) -> Payload:
        return U64(MAX_MEM_SLOTS)

    def on_add_mem_reg(self, message: OwnedMessage) -> None:
        self.guest.add(body_of(message, SingleRegion), message.fds[0].fileno())
        self._use_memory()

    def _use_memory(self) -> None:
        """The memory is taken, whatever keeps a ring from going on with it."""
        try:
            self.refresh()
        except Exception:
            self._log.exception("the rings do not go on after a change of memory")

    def on_rem_mem_reg(self, message: OwnedMessage) -> None:
        self.guest.remove(body_of(message, SingleRegion))

    def on_set_log_base(self, message: OwnedMessage) -> Payload:
        body = body_of(message, Log)
        self.guest.open_log(body, message.fds[0].fileno())
        return body

    def on_set_log_fd(self, message: OwnedMessage) -> None:
        """An eventfd to tell the front-end of changes in the log; optional, and no front-end waits for it: closed."""

    def on_get_inflight_fd(self, message: OwnedMessage) -> WithFd:
        body = body_of(message, Inflight)
        return WithFd(*new_area(body.num_queues, body.queue_size))

    def on_set_inflight_fd(self, message: OwnedMessage) -> None:
        """Rings that start from now on are tracked there, and go on with what is in progress there."""
        self._inflight = InflightArea(body_of(message, Inflight), message.fds[0].fileno())

    def on_set_vring_num(self, message: OwnedMessage) -> None:
        self._diagnose()
        self._bind_active(body_of(message, VringState).index, "SET_VRING_NUM")
        self.refresh()

    def on_set_vring_addr(self, message: OwnedMessage) -> None:
        """A ring that is at work stays where it lies; only what is about the log may change. One that rests may move."""
        body = body_of(message, VringAddr)
        ring, place = self._session.state.rings[body.index], self._rings.vrings[body.index].place
        moves = place is not None and parts_of(place.addresses) != parts_of(body)
        if moves and ring.active:
            text = f"SET_VRING_ADDR index {body.index} is a ring that is at work: its addresses may not change"
            raise RemoteProtocolError(
                text, request="SET_VRING_ADDR", field="addresses", value=body.descriptor, limit="the ring's own"
            )
        self._bind_active(body.index, "SET_VRING_ADDR")
        self.guest.set_logging()
        self.refresh()
        if moves:  # it is laid there once it is to be at work
            self._set_base(body.index, self._rings.stop(body.index))

    def on_set_vring_base(self, message: OwnedMessage) -> None:
        pass

    def on_get_vring_base(self, message: OwnedMessage) -> Payload:
        index = body_of(message, VringState).index
        ring = self._session.state.rings[index]
        bound = self._rings.vrings[index].queue is not None
        if self._rings.vrings[index].broken:
            self._patience.spend(BROKEN)
        record = self._rings.is_tracked(index) and self._session.state.has(F.GET_VRING_BASE_INFLIGHT)
        base = self._rings.stop(index, record=record) if bound else ring.base
        if base is None:
            base = ring_format(self._session.state.acknowledged).first_base
        self._set_base(index, base)
        self._watch.stopped(index, base)
        return VringState(index, base)

    def on_set_vring_kick(self, message: OwnedMessage) -> None:
        if not message.fds:
            text = "SET_VRING_KICK bit 8 asks for polling, which is not supported: send an eventfd"
            raise RemoteProtocolError(text, request="SET_VRING_KICK", field="fd", value=0, limit=1)
        index = body_of(message, U64).value & VRING_INDEX_MASK
        begins = self._rings.vrings[index].queue is None
        if begins:
            self._bind(index, "SET_VRING_KICK")
        try:
            self._replace(message, "kick")
            self._rings.kick(index, wait=False)
            self.refresh()
        except BaseException:
            if begins:  # it was not started, so it lies nowhere: it may be laid elsewhere before the next try
                self._rings.stop(index)
            raise

    def on_vring_kick(self, message: OwnedMessage) -> None:
        """The ring is looked at; who wants a reply gets it when what was there is done and shown ("VRING_KICK").

        In a simulation time goes on only then. But it comes after `drain_timeout` seconds at the latest, and does not wait
        for what the device keeps, nor for the front-end's answer to the call.
        """
        index = body_of(message, VringState).index
        vring = self._rings.vrings[index]
        if not vring.active:
            if vring.queue is None:
                self._bind(index, "VRING_KICK")
            self.refresh()
        self._rings.kick(index, wait=message.need_reply)

    def on_set_vring_call(self, message: OwnedMessage) -> None:
        """That of a ring which goes on is set once: whoever ran it before may have given back requests and not said so."""
        index, state = body_of(message, U64).value & VRING_INDEX_MASK, self._session.state
        vring = self._rings.vrings[index]
        by_message = vring.calls_by_message
        self._replace(message, "call")
        if vring.calls_by_message is not by_message:
            self._rings.kick(index, wait=False)  # compiled code may serve it now
        if state.rings[index].base not in (None, ring_format(state.acknowledged).first_base) or self._inflight:
            vring.signal("call")

    def on_set_vring_err(self, message: OwnedMessage) -> None:
        self._replace(message, "err")

    def on_set_vring_enable(self, message: OwnedMessage) -> None:
        self._bind_active(body_of(message, VringState).index, "SET_VRING_ENABLE")
        self.refresh()

    def _replace(self, message: OwnedMessage, name: str) -> None:
        """Put the eventfd of the message in its ring's place."""
        index = body_of(message, U64).value & VRING_INDEX_MASK
        vring = self._rings.vrings[index]
        vring.replace(name, take_fd(message) if message.fds else None)
        (vring.polled.discard if message.fds else vring.polled.add)(name)

    def _set_base(self, index: int, base: int) -> None:
        rings = self._session.state.rings
        changed = (*rings[:index], replace(rings[index], base=base), *rings[index + 1 :])
        self._session.state = replace(self._session.state, rings=changed)

    def _bind(self, index: int, request: str) -> None:
        """Lay a ring over guest memory, once all of it is known. RemoteProtocolError if it can't lie there."""
        state, memory = self._session.state, self.guest.memory
        ring = state.rings[index]
        if ring.size and ring.addresses and memory.regions:
            try:
                self._rings.bind(
                    Place(index, ring.size, ring.addresses, memory, state.acknowledged, self._inflight), ring.base
                )
            except QueueBroken as error:
                where = ring.addresses.descriptor
                raise RemoteProtocolError(
                    f"{request}: {error}", request=request, field="addresses", value=where, limit="guest memory"
                ) from None

    def _bind_active(self, index: int, request: str) -> None:
        """The same for a ring that is to be at work and is not yet."""
        if self._session.state.rings[index].active and self._rings.vrings[index].queue is None:
            self._bind(index, request)

    def refresh(self) -> None:
        """Let the queue thread work on the rings that are active now, and on no others.

        A ring that can't lie where it was said to lie rests: that is no fault of the request that came last.
        """
        for index, (ring, vring) in enumerate(zip(self._session.state.rings, self._rings.vrings, strict=True)):
            if ring.active and vring.queue is None:
                try:
                    self._bind(index, "SET_VRING_ADDR")
                except RemoteProtocolError as error:
                    self._log.warning(f"ring {index} rests: {error}")
            if vring.active and not ring.active:
                self._rings.rest(index)
        if any(ring.active for ring in self._session.state.rings) and self._watch.begin():
            self._rings.announce()
        for index, ring in enumerate(self._session.state.rings):
            if ring.active and self._rings.vrings[index].queue is not None:
                self._rings.start(index)

    def reset(self) -> None:
        """The device is as new."""
        self._rings.stop_all()
        if self._inflight:
            self._inflight.forget()
        self._watch.reset()

    def _diagnose(self) -> None:
        """Say once why the device's shared memory is not to be had, if it is not."""
        if self._regions and not self._diagnosed:
            self._diagnosed = True
            state, dialect = self._session.state, self._session.dialect
            acknowledged = dialect.to_wire(state.protocol_acknowledged)
            if trouble := diagnose_front_end(dialect, acknowledged, state.asked_config):
                log.warning("%s", trouble)


class WithFd(NamedTuple):
    """A reply that carries an fd, which is closed once it is sent."""

    body: Payload | None
    fd: OwnedFd


def parts_of(addresses: VringAddr) -> tuple[int, int, int]:
    """Where the three parts of a ring lie; the rest of what SET_VRING_ADDR says is about the dirty log."""
    return addresses.descriptor, addresses.used, addresses.available


def take_fd(message: OwnedMessage) -> OwnedFd:
    """The fd of a message, taken out of it: what is left in it is closed after the request."""
    return OwnedFd(message.fds[0].detach())


def body_of(message: OwnedMessage, kind: type[P]) -> P:
    """The body of a message, which is of that kind."""
    if not isinstance(message.body, kind):
        raise RemoteProtocolError(f"{message.rule.name} carries {type(message.body).__name__}, not {kind.__name__}")
    return message.body
