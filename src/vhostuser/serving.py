"""One front-end being served: decode, admit, perform, reply. `perform` is the method named after the request.

What is about memory and rings is in `ring_requests`, the rest is here.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import Final
from uuid import UUID

from .bell import Bell
from .counters import Counters
from .device import Device
from .driver_watch import DriverWatch
from .errors import Disconnected, ProtocolError, RemoteProtocolError, VhostUserError
from .faults import device_faults
from .limited_log import LimitedLog
from .patience import Patience
from .port import Port
from .protocol.dialects import Dialect
from .protocol.framing import reply_frame
from .protocol.layout import Payload
from .protocol.numbers import FrontendRequest, ProtocolFeature, VhostFeature, mask
from .protocol.payloads import U64, Config, Inflight, ShmemConfig, Uuid
from .protocol.rules import FRONTEND
from .protocol.rules import Channel as Side
from .protocol.session import Session
from .protocol.state import Owed, Ring, Role, State, reply_owed
from .ring_requests import RingRequests, WithFd, body_of, take_fd
from .rings import Rings
from .shared_memory import SharedMemory
from .transport.channel import Channel, OwnedFrame, OwnedMessage
from .transport.fds import close_all
from .transport.listen import AddressError, adopt
from .transport.loop import SignalWaker
from .transport.socket import wait
from .virtio.numbers import Feature
from .virtqueue import queue_features

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

NEGATIVE: Final[dict[int, Payload | None]] = {
    Q.GET_CONFIG: None,
    Q.GET_INFLIGHT_FD: Inflight(0, 0, 0, 0),
    Q.GET_SHARED_OBJECT: None,
}
"""The replies that say no, for requests that have a reply of their own and a way to say it there."""
PROBE: Final = ("GET_CONFIG", "offset")
"""What is refused of a front-end that looks for the configuration space's end: no request tells it."""


Handler = Callable[[OwnedMessage], Payload | WithFd | None]


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
        offered |= device.shared_objects << F.SHARED_OBJECT
        rings = tuple(Ring() for _ in device.queue_sizes)
        features = FEATURES | queue_features() | device.features | device.in_order << Feature.IN_ORDER
        state = State(offered=features, protocol_offered=offered, rings=rings)
        self._session = Session(Role.BACKEND, state, queue_sizes=device.queue_sizes, dialect=dialect)
        self._watch = DriverWatch(device, port, self._session, regions, limited)
        self._rings = Rings(device, counters, self._watch.ready, limited, port.lock.locked)
        device.queues = self._rings
        self.unfinished: list[threading.Thread] = []
        """The threads that still had a request in progress at the end."""
        self._bell = Bell(port, self._lose, limited)
        self._lost: RemoteProtocolError | None = None
        self._patience = Patience()
        self._ring_requests = RingRequests(
            self._session, self._rings, self._watch, regions, self._patience, limited, port.exports
        )
        self._log = limited

    def run(self, stop: SignalWaker) -> None:
        """Serve until the front-end goes or `stop` is set. Raises RemoteProtocolError if it broke the protocol."""
        try:
            while not stop.is_set:
                if stop.fileno() in wait((self._channel, stop), None):
                    stop.clear()
                    continue
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
        self._ring_requests.close()

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
        named = f"on_{name.lower()}"
        method: Handler | None = getattr(self, named, None) or getattr(self._ring_requests, named, None)
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
        say = self._log.debug if (error.request, error.field) == PROBE else self._log.warning
        say(f"refused: {error}")
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
        self._ring_requests.guest.set_logging()
        self._ring_requests.refresh()

    def on_set_owner(self, message: OwnedMessage) -> None:
        pass

    def on_reset_owner(self, message: OwnedMessage) -> None:
        self._ring_requests.refresh()

    def on_get_protocol_features(self, message: OwnedMessage) -> Payload:
        return U64(self._session.dialect.to_wire(self._session.state.protocol_offered))

    def on_set_protocol_features(self, message: OwnedMessage) -> None:
        bell = self._bell.ring if self._session.state.has(F.INBAND_NOTIFICATIONS) else None
        for vring in self._rings.vrings:
            vring.bell = bell
        self._rings.wake()  # compiled code leaves the calls by message to Python

    def on_get_queue_num(self, message: OwnedMessage) -> Payload:
        return U64(len(self._device.queue_sizes))

    def on_set_backend_req_fd(self, message: OwnedMessage) -> None:
        fd = take_fd(message)
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

    def on_get_shared_object(self, message: OwnedMessage) -> WithFd | None:
        fd = self._device.object_fd(UUID(bytes=body_of(message, Uuid).uuid))
        return None if fd is None else WithFd(None, fd)

    # Configuration space and status

    def on_get_config(self, message: OwnedMessage) -> Payload:
        body = body_of(message, Config)
        end, space = body.offset + body.size, self._device.config
        if body.flags > 1:
            text = f"GET_CONFIG flags {body.flags:#x} is neither 0 nor 1"
            raise RemoteProtocolError(text, request="GET_CONFIG", field="flags", value=body.flags, limit=1)
        if not body.size or end > len(space):
            text = f"GET_CONFIG offset {body.offset} + size {body.size} passes the configuration space's end {len(space)}"
            field = "offset" if body.size else "size"
            raise RemoteProtocolError(text, request="GET_CONFIG", field=field, value=body.offset, limit=len(space))
        return Config(body.offset, body.size, body.flags, space[body.offset : end])

    def on_set_config(self, message: OwnedMessage) -> None:
        body = body_of(message, Config)
        end, space = body.offset + body.size, self._device.config
        if not body.size or end > len(space):
            text = f"SET_CONFIG offset {body.offset} + size {body.size} passes the configuration space's end {len(space)}"
            raise RemoteProtocolError(text, request="SET_CONFIG", field="offset", value=body.offset, limit=len(space))
        self._device.write_config(body.offset, body.payload)

    def on_get_status(self, message: OwnedMessage) -> Payload:
        return U64(self._session.state.status)

    def on_set_status(self, message: OwnedMessage) -> None:
        if not body_of(message, U64).value:
            self._ring_requests.reset()

    def on_reset_device(self, message: OwnedMessage) -> None:
        self._ring_requests.reset()
