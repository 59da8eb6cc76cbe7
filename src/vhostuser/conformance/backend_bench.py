"""What a rule for back-ends works with: a front-end that may do anything, and a few verbs that say what was expected."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from ..protocol.framing import Frame
from ..protocol.layout import Payload
from ..protocol.numbers import FrontendRequest, ProtocolFeature, VhostFeature, mask
from ..protocol.payloads import U64
from ..protocol.rules import Channel
from ..protocol.state import Role
from ..testing.raw_frontend import RawFrontend
from ..testing.wire import ACK
from ..trace.event import Event
from ..transport.fds import HasFileno, OwnedFd, close_all
from ..virtio.numbers import DeviceId, Feature
from .outcome import Deviation, NotApplicable
from .rule import Needs, Rules
from .wire import RecordedWire

F, Q = ProtocolFeature, FrontendRequest
BACK_END: Final[Rules[BackendBench]] = Rules(Role.BACKEND)
"""The rules that back-ends have to keep."""
FEATURES: Final = mask((Feature.VERSION_1, VhostFeature.PROTOCOL_FEATURES))
PROTOCOL: Final = mask(
    (
        *(F.MQ, F.REPLY_ACK, F.BACKEND_REQ, F.CONFIG, F.BACKEND_SEND_FD, F.RESET_DEVICE, F.STATUS, F.SHMEM),
        *(F.CONFIGURE_MEM_SLOTS, F.INFLIGHT_SHMFD, F.LOG_SHMFD, F.DEVICE_STATE),
    )
)
"""What `agree` agrees on where it is offered."""
Body = Payload | bytes | None
Fds = Sequence[int | HasFileno]


@dataclass(frozen=True, slots=True)
class Offer:
    """What a back-end offers, asked for once."""

    features: int
    protocol: int
    queues: int
    device: DeviceId | None = None

    def lacks(self, needs: Needs) -> str:
        """What of `needs` is missing, in words; empty if nothing is."""
        missing = [feature.name for feature in sorted(needs.protocol) if not self.protocol >> feature & 1]
        missing += [f"feature bit {bit}" for bit in sorted(needs.features) if not self.features >> bit & 1]
        if self.queues < needs.queues:
            missing.append(f"{needs.queues} queues")
        if needs.device is not None and needs.device is not self.device:
            missing.append(f"--device {needs.device.name.lower()}")
        return ", ".join(missing)


class BackendBench(RawFrontend, RecordedWire):
    """The front-end's end of a connection to the back-end under test. Whatever it misses is a Deviation."""

    def __init__(self, sock: socket.socket, offer: Offer, events: list[Event], *, deadline: float) -> None:
        RecordedWire.__init__(self, sock, events, Channel.FRONTEND, Role.FRONTEND, deadline=deadline)
        self.offer, self.events = offer, events
        self.acknowledged = self.protocol_acknowledged = 0
        self.requests = None
        self.kick = self.err = None
        self._owned: list[OwnedFd] = []

    # Bringing a back-end where a rule begins

    def agree(self, *, features: int = FEATURES, protocol: int = PROTOCOL) -> None:
        """Negotiate what both have of `features` and `protocol`, and own the device."""
        self.acknowledged, self.protocol_acknowledged = self.offer.features & features, self.offer.protocol & protocol
        self.value(Q.GET_FEATURES)
        if self.offer.features >> VhostFeature.PROTOCOL_FEATURES & 1:
            self.value(Q.GET_PROTOCOL_FEATURES)
            self.request(Q.SET_PROTOCOL_FEATURES, U64(self.protocol_acknowledged))
        self.request(Q.SET_OWNER)
        self.request(Q.SET_FEATURES, U64(self.acknowledged))
        self.alive()

    def negotiate(self, *, features: int = FEATURES, protocol: int = PROTOCOL) -> None:
        """As `agree`: what RawFrontend's steps call."""
        self.agree(features=features, protocol=protocol)

    def has(self, feature: ProtocolFeature) -> bool:
        """A protocol feature was agreed on."""
        return bool(self.protocol_acknowledged >> feature & 1)

    def need(self, feature: ProtocolFeature) -> None:
        """The rule makes no sense without this feature."""
        if not self.has(feature):
            raise NotApplicable(f"it does not offer {feature.name}")

    def open_requests(self) -> RecordedWire:
        """Give the back-end its channel; our end of it."""
        ours, theirs = socket.socketpair()
        with theirs:
            self.accepted(Q.SET_BACKEND_REQ_FD, fds=[theirs])
        if self.requests:
            self.requests.close()
        self.requests = RecordedWire(ours, self.events, Channel.BACKEND, Role.FRONTEND, deadline=self.deadline)
        return self.requests

    # What a rule expects

    def alive(self) -> None:
        """The back-end says nothing but the answer to GET_FEATURES."""
        frame = self.replied(Q.GET_FEATURES)
        if len(frame.payload) != U64.STRUCT.size:
            raise Deviation("GET_FEATURES answered with 8 bytes", f"{len(frame.payload)} bytes")

    def value(self, request: FrontendRequest) -> int:
        """The single number that answers a request."""
        frame = self.replied(request)
        if len(frame.payload) != U64.STRUCT.size:
            raise Deviation(f"a number of 8 bytes as reply to {request.name}", f"{len(frame.payload)} bytes")
        return U64.unpack(frame.payload).value

    def replied(self, request: int, body: Body = None, *, fds: Fds = (), flags: int = 1) -> Frame[OwnedFd]:
        """The reply to a request, with its own number and the flags of a reply. Its fds are closed at the rule's end."""
        self.request(request, body, fds=fds, flags=flags)
        frame = self.receive()
        for fd in frame.fds:
            self._keep(fd)
        if (frame.request, frame.flags) != (int(request), ACK):
            got = f"request {frame.request}, flags {frame.flags:#x}, {len(frame.payload)} bytes"
            raise Deviation(f"the reply to {_name(request)}, flags {ACK:#x}", got)
        return frame

    def accepted(self, request: int, body: Body = None, *, fds: Fds = ()) -> None:
        """The back-end does it, and says so if it can."""
        if not self.has(F.REPLY_ACK):
            self.request(request, body, fds=fds)
            self.alive()
        elif status := self._acknowledgement(request, body, fds):
            raise Deviation(f"{_name(request)} accepted", f"status {status:#x}")

    def refused(self, request: int, body: Body = None, *, fds: Fds = ()) -> None:
        """The back-end says no, by a status that is not 0, or by ending the connection."""
        if not self.has(F.REPLY_ACK):
            raise NotApplicable("without REPLY_ACK a back-end can't say no")
        self.request(request, body, fds=fds, flags=0x9)
        frame = self.receive_or_end()
        if frame is None:
            return
        if not int.from_bytes(frame.payload, "little"):
            raise Deviation(f"{_name(request)} refused", "status 0")

    def refused_in_step(self, request: int, body: Body = None, *, fds: Fds = ()) -> None:
        """The back-end says no by a status that is not 0, and the connection lives."""
        self.refused(request, body, fds=fds)
        self.alive()

    def ends(self, what: str) -> None:
        """The back-end says nothing more, and ends the connection, as it has to after `what`."""
        frame = self.receive_or_end()
        if frame is not None:
            close_all(frame.fds)
            raise Deviation(f"the end of the connection after {what}", f"request {frame.request}, flags {frame.flags:#x}")

    def ignored(self, request: int, body: Body = None, *, fds: Fds = (), flags: int = 1) -> None:
        """The back-end answers nothing to this, and goes on."""
        self.request(request, body, fds=fds, flags=flags)
        self.alive()

    def _acknowledgement(self, request: int, body: Body, fds: Fds) -> int:
        frame = self.replied(request, body, fds=fds, flags=0x9)
        if len(frame.payload) != U64.STRUCT.size or frame.fds:
            got = f"{len(frame.payload)} bytes and {len(frame.fds)} fds"
            raise Deviation(f"an acknowledgement of {_name(request)}: 8 bytes, no fd", got)
        return U64.unpack(frame.payload).value


def _name(request: int) -> str:
    try:
        return FrontendRequest(request).name
    except ValueError:
        return f"request {request}"
