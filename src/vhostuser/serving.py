"""One front-end being served: decode, admit, perform, reply. `perform` is the method named after the request."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Final, NamedTuple

from .bell import Bell
from .counters import Counters
from .device import Device
from .driver_watch import DriverWatch
from .errors import Disconnected, ProtocolError, QueueBroken, RemoteProtocolError, VhostUserError
from .faults import device_faults
from .guest_table import GuestTable
from .limited_log import LimitedLog
from .memory.inflight import InflightArea, new_area
from .patience import BROKEN, Patience
from .port import Port
from .protocol.dialects import Dialect, diagnose_front_end
from .protocol.framing import reply_frame
from .protocol.layout import P, Payload
from .protocol.numbers import MAX_MEM_SLOTS, VRING_INDEX_MASK, FrontendRequest, ProtocolFeature, VhostFeature, mask
from .protocol.payloads import U64, Config, Inflight, Log, MemoryTable, ShmemConfig, SingleRegion, VringAddr, VringState
from .protocol.rules import FRONTEND
from .protocol.rules import Channel as Side
from .protocol.session import Session
from .protocol.state import Owed, Ring, Role, State, reply_owed
from .rings import Rings
from .shared_memory import SharedMemory
from .transport.channel import Channel, OwnedFrame, OwnedMessage
from .transport.fds import OwnedFd, close_all
from .transport.listen import AddressError, adopt
from .transport.loop import Waker
from .transport.socket import wait
from .virtio.formats import ring_format
from .virtio.numbers import Feature
from .virtqueue import Place, queue_features

log = logging.getLogger(__name__)
F, Q = ProtocolFeature, FrontendRequest

FEATURES: Final = mask(
    (
        Feature.VERSION_1,
        Feature.RING_INDIRECT_DESC,
        Feature.RING_PACKED,
        VhostFeature.LOG_ALL,
        VhostFeature.PROTOCOL_FEATURES,
    )
)
PROTOCOL_FEATURES: Final = mask(
    (
        F.MQ,
        F.LOG_SHMFD,
        F.REPLY_ACK,
        F.BACKEND_REQ,
        F.CONFIG,
        F.BACKEND_SEND_FD,
        F.INFLIGHT_SHMFD,
        F.RESET_DEVICE,
        F.INBAND_NOTIFICATIONS,
        F.STATUS,
    )
)
"""What every device offers."""
WITHOUT_REGIONS: Final = mask((F.CONFIGURE_MEM_SLOTS, F.GET_VRING_BASE_INFLIGHT, F.GPA_ADDRESSES))
"""What a device offers besides that has no shared memory regions. With them QEMU 11.1 dies of a reset under
CONFIGURE_MEM_SLOTS (K3, K4), and front-ends that speak an earlier dialect would take one of the others for SHMEM."""

NEGATIVE: Final[dict[int, Payload | None]] = {Q.GET_CONFIG: None, Q.GET_INFLIGHT_FD: Inflight(0, 0, 0, 0)}
"""The replies that say no, for requests that have a reply of their own and a way to say it there."""


class WithFd(NamedTuple):
    """A reply that carries an fd, which is closed once it is sent."""

    body: Payload
    fd: OwnedFd


class Serving:
    """The connection to one front-end, from its first message to its end."""

    def __init__(
        self,
        device: Device,
        channel: Channel,
        port: Port,
        counters: Counters,
        dialect: Dialect,
        regions: Mapping[int, SharedMemory],
        limited: LimitedLog,
    ) -> None:
        self._device, self._channel, self._port, self._counters = device, channel, port, counters
        self._regions = regions
        offered = PROTOCOL_FEATURES | (1 << F.SHMEM if regions else WITHOUT_REGIONS)
        rings = tuple(Ring() for _ in device.queue_sizes)
        state = State(offered=FEATURES | queue_features() | device.features, protocol_offered=offered, rings=rings)
        self._session = Session(Role.BACKEND, state, queue_sizes=device.queue_sizes, dialect=dialect)
        self._watch = DriverWatch(device, port, self._session, regions, limited)
        self._rings = Rings(device, counters, self._watch.ready, limited)
        device.queues = self._rings
        self._guest = GuestTable(self._session, self._rings, exports_memory=bool(regions))
        self._inflight: InflightArea | None = None
        self.unfinished: list[threading.Thread] = []
        """The threads that still had a request in progress at the end."""
        self._bell = Bell(port, self._lose, limited)
        self._lost: RemoteProtocolError | None = None
        self._patience = Patience()
        self._diagnosed = False
        self._log = limited

    def run(self, stop: Waker) -> None:
        """Serve until the front-end goes or `stop` is set. Raises RemoteProtocolError if it broke the protocol."""
        try:
            while stop.fileno() not in wait((self._channel, stop), None):
                self._handle(self._channel.receive())
                if rest := self._patience.rest():
                    wait((stop,), time.monotonic() + rest)
        except Disconnected as reason:
            if self._lost:
                raise self._lost from None
            log.info("%s", reason)
        finally:
            self._counters.closed += 1
            self._end()

    def _lose(self, error: VhostUserError | OSError) -> None:
        """In the thread of the bell: a call did not arrive, so nobody will take what was done. The connection ends."""
        if not self._channel.ended():
            self._lost = RemoteProtocolError(f"a notification in-band was lost: {error}", fatal=True)
            self._channel.shutdown()

    def _end(self) -> None:
        """Release all that the connection owned."""
        self._device.queues = None
        self._port.shutdown()
        self._bell.close()
        self.unfinished = self._rings.close()
        self._port.close()
        self._channel.close()
        self._watch.forget()
        self._guest.close()
        self._inflight = None

    def _handle(self, frame: OwnedFrame) -> None:
        """One message, once round."""
        self._counters.messages += 1
        before = self._session.state
        try:
            message = self._session.admit(Side.FRONTEND, frame)
            self._watch.moved()
            answer = self._perform(message)
        except ProtocolError as error:
            self._session.state = before
            self._watch.moved()
            if error.fatal:
                raise
            self._refuse(frame, before, error)
        else:
            owed = reply_owed(message.rule, before, message.need_reply)
            if owed is not Owed.NOTHING:
                self._reply(frame, U64(0) if owed is Owed.ACK else answer, owed)
        finally:
            close_all(frame.fds)

    def _perform(self, message: OwnedMessage) -> Payload | WithFd | None:
        """Call the method of the request; its answer, if the request has one of its own."""
        name = message.rule.name
        method: Callable[[OwnedMessage], Payload | WithFd | None] | None = getattr(self, f"on_{name.lower()}", None)
        if method is None:
            text = f"{name} is not supported by this back-end"
            raise RemoteProtocolError(text, request=name, field="request", value=message.rule.id, limit="what it offers")
        try:
            return method(message)
        except VhostUserError as error:
            if isinstance(error, RemoteProtocolError):
                raise
            raise RemoteProtocolError(f"{name}: {error}", request=name) from error
        except OSError as error:
            raise RemoteProtocolError(f"{name}: {error}", request=name) from error
        except device_faults() as error:
            self._log.exception(f"{name} failed in {type(self._device).__name__}")
            raise RemoteProtocolError(f"{name} failed: {type(error).__name__}", request=name) from error

    def _reply(self, frame: OwnedFrame, answer: Payload | WithFd | None, owed: Owed) -> None:
        if owed is Owed.ACK:
            self._counters.acks += 1
        what = f"the reply to request {frame.request}"
        if not isinstance(answer, WithFd):
            self._channel.send(reply_frame(frame.request, answer), what)
            return
        with answer.fd:
            self._channel.send(reply_frame(frame.request, answer.body, (answer.fd.fileno(),)), what)

    def _refuse(self, frame: OwnedFrame, state: State, error: ProtocolError) -> None:
        """Say no in the way that the request has; where it has none, the connection ends."""
        self._counters.refused += 1
        self._patience.spend()
        self._log.warning(f"refused: {error}")
        rule = FRONTEND.get(frame.request)
        if rule is None:
            owed = Owed.ACK if frame.need_reply and state.has(F.REPLY_ACK) else Owed.NOTHING
        else:
            owed = reply_owed(rule, state, frame.need_reply)
        if owed is Owed.OWN:
            if frame.request not in NEGATIVE:
                error.fatal = True
                raise error
            self._reply(frame, NEGATIVE[frame.request], owed)
        elif owed is Owed.ACK:
            self._reply(frame, U64(1), owed)

    # Negotiation

    def on_get_features(self, message: OwnedMessage) -> Payload:
        return U64(self._session.state.offered)

    def on_set_features(self, message: OwnedMessage) -> None:
        self._guest.set_logging()
        self._refresh()

    def on_set_owner(self, message: OwnedMessage) -> None:
        pass

    def on_reset_owner(self, message: OwnedMessage) -> None:
        self._refresh()

    def on_get_protocol_features(self, message: OwnedMessage) -> Payload:
        return U64(self._session.dialect.to_wire(self._session.state.protocol_offered))

    def on_set_protocol_features(self, message: OwnedMessage) -> None:
        bell = self._bell.ring if self._session.state.has(F.INBAND_NOTIFICATIONS) else None
        for vring in self._rings.vrings:
            vring.bell = bell

    def on_get_queue_num(self, message: OwnedMessage) -> Payload:
        return U64(len(self._device.queue_sizes))

    def on_set_backend_req_fd(self, message: OwnedMessage) -> None:
        fd = _take(message)
        try:
            sock, listening = adopt(fd.fileno())
        except AddressError as error:
            fd.close()
            raise RemoteProtocolError(f"SET_BACKEND_REQ_FD: {error}", request="SET_BACKEND_REQ_FD", field="fd") from None
        fd.detach()
        channel = Channel(sock, partial_timeout=self._channel.partial_timeout, reply_timeout=self._channel.reply_timeout)
        if listening:
            channel.close()
            raise RemoteProtocolError("SET_BACKEND_REQ_FD: the socket is not connected", request="SET_BACKEND_REQ_FD")
        self._port.open(channel)

    def on_get_shmem_config(self, message: OwnedMessage) -> Payload:
        return ShmemConfig({shmid: region.size for shmid, region in self._regions.items()})

    # Configuration space and status

    def on_get_config(self, message: OwnedMessage) -> Payload:
        body = _body(message, Config)
        end, space = body.offset + body.size, self._device.config
        if body.flags > 1:
            text = f"GET_CONFIG flags {body.flags:#x} is neither 0 nor 1"
            raise RemoteProtocolError(text, request="GET_CONFIG", field="flags", value=body.flags, limit=1)
        if not body.size or end > len(space):
            text = f"GET_CONFIG offset {body.offset} + size {body.size} passes the configuration space's end {len(space)}"
            raise RemoteProtocolError(text, request="GET_CONFIG", field="offset", value=body.offset, limit=len(space))
        return Config(body.offset, body.size, body.flags, space[body.offset : end])

    def on_set_config(self, message: OwnedMessage) -> None:
        body = _body(message, Config)
        end, space = body.offset + body.size, self._device.config
        if not body.size or end > len(space):
            text = f"SET_CONFIG offset {body.offset} + size {body.size} passes the configuration space's end {len(space)}"
            raise RemoteProtocolError(text, request="SET_CONFIG", field="offset", value=body.offset, limit=len(space))
        self._device.write_config(body.offset, body.payload)

    def on_get_status(self, message: OwnedMessage) -> Payload:
        return U64(self._session.state.status)

    def on_set_status(self, message: OwnedMessage) -> None:
        if not _body(message, U64).value:
            self._reset()

    def on_reset_device(self, message: OwnedMessage) -> None:
        self._reset()

    # Memory and rings

    def on_set_mem_table(self, message: OwnedMessage) -> None:
        self._guest.replace(_body(message, MemoryTable), [fd.fileno() for fd in message.fds])
        self._use_memory()

    def on_get_max_mem_slots(self, message: OwnedMessage) -> Payload:
        return U64(MAX_MEM_SLOTS)

    def on_add_mem_reg(self, message: OwnedMessage) -> None:
        self._guest.add(_body(message, SingleRegion), message.fds[0].fileno())
        self._use_memory()

    def _use_memory(self) -> None:
        """The memory is taken, whatever keeps a ring from going on with it."""
        try:
            self._refresh()
        except Exception:
            self._log.exception("the rings do not go on after a change of memory")

    def on_rem_mem_reg(self, message: OwnedMessage) -> None:
        self._guest.remove(_body(message, SingleRegion))

    def on_set_log_base(self, message: OwnedMessage) -> Payload:
        body = _body(message, Log)
        self._guest.open_log(body, message.fds[0].fileno())
        return body

    def on_set_log_fd(self, message: OwnedMessage) -> None:
        """An eventfd to tell the front-end of changes in the log; optional, and no front-end waits for it: closed."""

    def on_get_inflight_fd(self, message: OwnedMessage) -> WithFd:
        body = _body(message, Inflight)
        return WithFd(*new_area(body.num_queues, body.queue_size))

    def on_set_inflight_fd(self, message: OwnedMessage) -> None:
        """Rings that start from now on are tracked there, and go on with what is in progress there."""
        self._inflight = InflightArea(_body(message, Inflight), message.fds[0].fileno())

    def on_set_vring_num(self, message: OwnedMessage) -> None:
        self._diagnose()
        self._bind_active(_body(message, VringState).index, "SET_VRING_NUM")
        self._refresh()

    def on_set_vring_addr(self, message: OwnedMessage) -> None:
        self._bind_active(_body(message, VringAddr).index, "SET_VRING_ADDR")
        self._guest.set_logging()
        self._refresh()

    def on_set_vring_base(self, message: OwnedMessage) -> None:
        pass

    def on_get_vring_base(self, message: OwnedMessage) -> Payload:
        index = _body(message, VringState).index
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
        index = _body(message, U64).value & VRING_INDEX_MASK
        if self._rings.vrings[index].queue is None:
            self._bind(index, "SET_VRING_KICK")
        self._replace(message, "kick")
        self._rings.kick(index, wait=False)
        self._refresh()

    def on_vring_kick(self, message: OwnedMessage) -> None:
        """The ring is looked at; who wants a reply gets it when what was there is done and shown ("VRING_KICK").

        In a simulation time goes on only then. But it comes after `drain_timeout` seconds at the latest, and does not wait
        for what the device keeps, nor for the front-end's answer to the call.
        """
        index = _body(message, VringState).index
        vring = self._rings.vrings[index]
        if not vring.active:
            if vring.queue is None:
                self._bind(index, "VRING_KICK")
            self._refresh()
        self._rings.kick(index, wait=message.need_reply)

    def on_set_vring_call(self, message: OwnedMessage) -> None:
        """That of a ring which goes on is set once: whoever ran it before may have given back requests and not said so."""
        index, state = self._replace(message, "call"), self._session.state
        if state.rings[index].base not in (None, ring_format(state.acknowledged).first_base) or self._inflight:
            self._rings.vrings[index].signal("call")

    def on_set_vring_err(self, message: OwnedMessage) -> None:
        self._replace(message, "err")

    def on_set_vring_enable(self, message: OwnedMessage) -> None:
        self._bind_active(_body(message, VringState).index, "SET_VRING_ENABLE")
        self._refresh()

    def _replace(self, message: OwnedMessage, name: str) -> int:
        """Put the eventfd of the message in its ring's place; the ring's index."""
        index = _body(message, U64).value & VRING_INDEX_MASK
        vring = self._rings.vrings[index]
        vring.replace(name, _take(message) if message.fds else None)
        (vring.polled.discard if message.fds else vring.polled.add)(name)
        return index

    def _set_base(self, index: int, base: int) -> None:
        rings = self._session.state.rings
        changed = (*rings[:index], replace(rings[index], base=base), *rings[index + 1 :])
        self._session.state = replace(self._session.state, rings=changed)

    def _bind(self, index: int, request: str) -> None:
        """Lay a ring over guest memory, once all of it is known. RemoteProtocolError if it can't lie there."""
        state, memory = self._session.state, self._guest.memory
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

    def _refresh(self) -> None:
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

    def _reset(self) -> None:
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


def _take(message: OwnedMessage) -> OwnedFd:
    """The fd of a message, taken out of it: what is left in it is closed after the request."""
    return OwnedFd(message.fds[0].detach())


def _body(message: OwnedMessage, kind: type[P]) -> P:
    if not isinstance(message.body, kind):
        raise RemoteProtocolError(f"{message.rule.name} carries {type(message.body).__name__}, not {kind.__name__}")
    return message.body
