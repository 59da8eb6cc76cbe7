"""What a rule for back-ends works with: a front-end that may do anything, and a few verbs that say what was expected."""

from __future__ import annotations

import mmap
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from ..protocol.framing import Frame
from ..protocol.layout import Payload
from ..protocol.numbers import NEED_REPLY, VERSION, FrontendRequest, ProtocolFeature, VhostFeature, mask
from ..protocol.payloads import U64, MemoryRegion, MemoryTable, VringAddr, VringState
from ..protocol.rules import FRONTEND, Channel
from ..protocol.state import Role
from ..testing.files import sparse_file
from ..testing.raw_frontend import MEMORY, RawFrontend
from ..testing.wire import ACK
from ..trace.event import Event
from ..transport.fds import HasFileno, OwnedFd, close_all
from ..virtio.numbers import DeviceId, Feature
from ..virtio.split import ring_sizes
from .outcome import Deviation, NotApplicable
from .probes import Probe
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
    probe: Probe | None = None
    """A request that the device answers, if the user has said what it is."""

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
        self._memory: mmap.mmap | None = None
        self._shared = -1

    # Bringing a back-end where a rule begins

    def agree(self, *, features: int = FEATURES, protocol: int = PROTOCOL, own: bool = True) -> None:
        """Negotiate what both have of `features` and `protocol`, and own the device unless not."""
        self.acknowledged, self.protocol_acknowledged = self.offer.features & features, self.offer.protocol & protocol
        self.value(Q.GET_FEATURES)
        if self.offer.features >> VhostFeature.PROTOCOL_FEATURES & 1:
            self.value(Q.GET_PROTOCOL_FEATURES)
            self.request(Q.SET_PROTOCOL_FEATURES, U64(self.protocol_acknowledged))
        if own:
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

    def enable(self, index: int) -> None:
        """Enable a ring, where that is to be done."""
        if self.enables:
            super().enable(index)

    @property
    def enables(self) -> bool:
        """Rings have to be enabled; else they are from the start ("SET_FEATURES")."""
        return bool(self.acknowledged >> VhostFeature.PROTOCOL_FEATURES & 1)

    def open_requests(self) -> RecordedWire:
        """Give the back-end its channel; our end of it."""
        ours, theirs = socket.socketpair()
        with theirs:
            self.accepted(Q.SET_BACKEND_REQ_FD, fds=[theirs])
        if self.requests:
            self.requests.close()
        self.requests = RecordedWire(ours, self.events, Channel.BACKEND, Role.FRONTEND, deadline=self.deadline)
        return self.requests

    def map_memory(self) -> None:
        """Share memory, and map it here as well."""
        self._shared = self.share_memory(MEMORY).fileno()
        self._memory = mmap.mmap(self._shared, MEMORY)

    def share_again(self) -> None:
        """Share the same memory by another table."""
        with OwnedFd(os.dup(self._shared)) as fd:
            self.accepted(Q.SET_MEM_TABLE, MemoryTable([MemoryRegion(0, MEMORY, 0, 0)]), fds=[fd])

    def addresses(self, index: int, *, at: int, size: int = 16) -> VringAddr:
        """Where `set_up_queue` lays a split ring."""
        descriptors, available, _ = ring_sizes(size)
        return VringAddr(index, 0, at, at + descriptors + -(-available // 4) * 4, at + descriptors, 0)

    @property
    def memory(self) -> mmap.mmap:
        """What `map_memory` shared."""
        if self._memory is None:
            raise NotApplicable("no memory is shared")
        return self._memory

    def memory_file(self, size: int = MEMORY) -> int:
        """An fd of memory that nothing knows yet; closed at the rule's end."""
        return self._keep(sparse_file(size, seal=True)).fileno()

    def keep(self, fd: OwnedFd) -> None:
        """Close an fd that came at the rule's end."""
        self._keep(fd)

    def start_queue(self) -> None:
        """Start ring 0 without a wait for any answer: the back-end may wait for one of ours."""
        self.request(Q.SET_VRING_NUM, VringState(0, 16))
        self.request(Q.SET_VRING_BASE, VringState(0, 0))
        self.request(Q.SET_VRING_ADDR, VringAddr(0, 0, 0, 0x3000, 0x2000, 0))
        self.request(Q.SET_VRING_KICK, U64(0), fds=[self.eventfd()])
        if self.enables:
            self.request(Q.SET_VRING_ENABLE, VringState(0, 1))

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
        frame = self.answered(request, body, fds=fds, flags=flags)
        if frame.flags != ACK:
            raise Deviation(f"the reply to {_name(request)}, flags {ACK:#x}", f"flags {frame.flags:#x}")
        return frame

    def answered(self, request: int, body: Body = None, *, fds: Fds = (), flags: int = 1) -> Frame[OwnedFd]:
        """The same of a reply that may have need_reply set, as the request had it."""
        self.request(request, body, fds=fds, flags=flags)
        return self._reply_to(request)

    def _reply_to(self, request: int) -> Frame[OwnedFd]:
        frame = self.receive()
        for fd in frame.fds:
            self._keep(fd)
        if frame.request != request or frame.flags & ~NEED_REPLY != ACK:
            got = f"request {frame.request}, flags {frame.flags:#x}, {len(frame.payload)} bytes"
            raise Deviation(f"the reply to {_name(request)}, flags {ACK:#x}", got)
        return frame

    def accepted(self, request: int, body: Body = None, *, fds: Fds = ()) -> None:
        """The back-end does it, and says so if it can."""
        if not self.has(F.REPLY_ACK):
            self.request(request, body, fds=fds)
            self.alive()
        else:
            self.request(request, body, fds=fds, flags=VERSION | NEED_REPLY)
            self.expect_yes(request)

    def expect_yes(self, request: int) -> None:
        """The same of a request that was sent already, with need_reply."""
        frame = self._reply_to(request)
        if frame.flags != ACK:
            raise Deviation(f"the acknowledgement of {_name(request)}, flags {ACK:#x}", f"flags {frame.flags:#x}")
        if len(frame.payload) != U64.STRUCT.size or frame.fds:
            got = f"{len(frame.payload)} bytes and {len(frame.fds)} fds"
            raise Deviation(f"an acknowledgement of {_name(request)}: 8 bytes, no fd", got)
        if status := U64.unpack(frame.payload).value:
            raise Deviation(f"{_name(request)} accepted", f"status {status:#x}")

    def refused(self, request: int, body: Body = None, *, fds: Fds = ()) -> None:
        """The back-end says no, by a status that is not 0, or by ending the connection."""
        if not self.has(F.REPLY_ACK):
            raise NotApplicable("without REPLY_ACK a back-end can't say no")
        self.request(request, body, fds=fds, flags=0x9)
        frame = self.receive_or_end()
        if frame is None:
            return
        close_all(frame.fds)
        if (frame.request, frame.flags & ~NEED_REPLY, len(frame.payload)) != (int(request), ACK, U64.STRUCT.size):
            got = f"request {frame.request}, flags {frame.flags:#x}, {len(frame.payload)} bytes"
            raise Deviation(f"a status for {_name(request)}, or the end of the connection", got)
        if not int.from_bytes(frame.payload, "little"):
            raise Deviation(f"{_name(request)} refused", "status 0")

    def refused_in_step(self, request: int, body: Body = None, *, fds: Fds = ()) -> None:
        """The back-end says no by a status that is not 0, and the connection lives."""
        self.refused(request, body, fds=fds)
        self.alive()

    def declined(self, request: int, body: Body = None, *, fds: Fds = ()) -> None:
        """A request that has a reply of its own gets none that grants it: the end, or a reply of another size."""
        self.request(request, body, fds=fds)
        frame = self.receive_or_end()
        if frame is None:
            return
        close_all(frame.fds)
        answer = FRONTEND[request].answer if request in FRONTEND else None
        number = len(frame.payload) == U64.STRUCT.size and answer not in (U64, VringState)
        if not frame.payload or number or _says_no(frame):
            return
        raise Deviation(f"{_name(request)} refused", f"a reply of {len(frame.payload)} bytes and {len(frame.fds)} fds")

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


def _says_no(frame: Frame[OwnedFd]) -> bool:
    """The reply says no in the request's own way: it is without its fd, or a number that is not 0."""
    if frame.request == Q.GET_INFLIGHT_FD:
        return not frame.fds
    return frame.request in (Q.SET_DEVICE_STATE_FD, Q.CHECK_DEVICE_STATE) and any(frame.payload)


def _name(request: int) -> str:
    try:
        return FrontendRequest(request).name
    except ValueError:
        return f"request {request}"
