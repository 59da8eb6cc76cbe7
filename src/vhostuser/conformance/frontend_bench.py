"""What a rule for front-ends works with: a back-end that may do anything, and a few verbs that say what was expected."""

from __future__ import annotations

import socket
import time
from dataclasses import dataclass
from typing import Final

from ..protocol.framing import Frame
from ..protocol.numbers import (
    MAP_RW,
    NEED_REPLY,
    PAGE,
    VERSION,
    BackendRequest,
    FrontendRequest,
    ProtocolFeature,
    mask,
)
from ..protocol.payloads import U64, Mmap
from ..protocol.rules import FRONTEND, Reply
from ..protocol.state import Role
from ..testing.files import memory_file
from ..testing.wire import ACK
from ..trace.event import Event
from ..transport.fds import OwnedFd
from .outcome import Deviation, NotApplicable
from .rule import Needs, Rules
from .scripted_backend import MOMENTS, Body, Fds, ScriptedBackend
from .seen import Seen
from .wire import RecordedWire

F, Q, B = ProtocolFeature, FrontendRequest, BackendRequest
FRONT_END: Final[Rules[FrontendBench]] = Rules(Role.FRONTEND)
"""The rules that front-ends have to keep."""
REST: Final = 0.2
BUSY: Final = 10
"""How many times as long that takes if it may be about to start rings."""
NO_CHANNEL: Final = "it gives no back-end channel"


@dataclass(frozen=True, slots=True)
class Reach:
    """How far a front-end goes with a right back-end, tried once."""

    features: int = 0
    protocol: int = 0
    """What it acknowledged."""
    rings: int = 0
    """How many rings it started."""
    asks: bool = False
    """It asked for the shared memory regions."""

    def lacks(self, needs: Needs) -> str:
        """What of `needs` it did not do, in words; empty if nothing is missing."""
        missing = [f"acknowledge {feature.name}" for feature in sorted(needs.protocol) if not self.protocol >> feature & 1]
        missing += [f"acknowledge feature bit {bit}" for bit in sorted(needs.features) if not self.features >> bit & 1]
        if self.rings < needs.queues:
            missing.append("start a ring" if needs.queues == 1 else f"start {needs.queues} rings")
        if F.SHMEM in needs.protocol and not missing and not self.asks:
            missing.append("ask for the shared memory regions")
        return ", ".join(missing)


class FrontendBench(ScriptedBackend):
    """The back-end's end of a connection to the front-end under test. Whatever it misses is a Deviation."""

    def __init__(self, sock: socket.socket, reach: Reach, events: list[Event], *, deadline: float) -> None:
        super().__init__(sock, events, deadline=deadline)
        self.reach = reach
        self.rest = REST
        """Seconds of silence in which the front-end is at rest."""

    def until(self, request: int, *, times: int = 1) -> Seen:
        """As ScriptedBackend. One that uses no protocol features never asks for them."""
        if request in (Q.GET_PROTOCOL_FEATURES, Q.SET_PROTOCOL_FEATURES) and not self.reach.protocol:
            raise NotApplicable("it uses no protocol features")
        return super().until(request, times=times)

    def need(self, feature: ProtocolFeature) -> None:
        """The rule makes no sense without this feature."""
        if not self.has(feature):
            raise NotApplicable(f"it does not acknowledge {feature.name}")

    # Bringing a front-end where a rule begins

    def negotiated(self) -> None:
        """Serve until the protocol features are agreed on, and the channel is there if one is to come."""
        self.until(Q.SET_PROTOCOL_FEATURES)
        if self.has(F.BACKEND_REQ):
            self.asked(Q.SET_BACKEND_REQ_FD)

    def asked(self, request: FrontendRequest) -> Seen:
        """Serve until a request comes that a front-end may send, and need not; not applicable if its rings run without."""
        wanted = max(1, self.reach.rings)
        self.soon(lambda: bool(self.seen.of(request)) or len(self.seen.running) >= wanted, within=self.deadline)
        if not self.seen.of(request) and not self.over:
            raise NotApplicable(f"it never sends {request.name}")
        return self.until(request)

    def start(self) -> None:
        """Serve until the rings run, as many as this front-end starts."""
        wanted = max(1, self.reach.rings)
        self.wait(lambda: len(self.seen.running) >= wanted, "started rings")

    def offer(self, protocol: int) -> None:
        """Offer these protocol features and serve until some are taken; not applicable if that is too little for it."""
        self.protocol = protocol
        self.soon(lambda: bool(self.seen.of(Q.SET_PROTOCOL_FEATURES)), within=self.deadline)
        if self.over:
            raise NotApplicable("it goes no further with such an offer")
        self.until(Q.SET_PROTOCOL_FEATURES)

    def start_without(self, *features: ProtocolFeature) -> None:
        """As `start`, with these protocol features not offered; not applicable if it needs them."""
        self.offer(self.protocol & ~mask(features))
        self.soon(lambda: len(self.seen.running) >= max(1, self.reach.rings), within=self.deadline)
        if self.over:
            raise NotApplicable("it goes no further with such an offer")
        self.start()

    def start_inband(self) -> None:
        """The same with kicks and calls as messages; not applicable if the front-end does not take them."""
        self.protocol |= 1 << F.INBAND_NOTIFICATIONS
        self.negotiated()
        self.need(F.INBAND_NOTIFICATIONS)
        self.start()

    def settle(self) -> None:
        """Serve until this front-end has done all that it does: its rings run, or it has nothing more to say."""
        if self.reach.rings:
            self.start()
        else:
            self.watch(lambda: False, moments=5)

    @property
    def channel(self) -> RecordedWire:
        """The back-end channel, which must be there."""
        if self.requests is None:
            raise NotApplicable(NO_CHANNEL)
        return self.requests

    # Asking on the back-end channel

    def heard(self, *, moments: float) -> bool:
        """Something comes on the back-end channel within so many moments; the main channel is served meanwhile."""
        end = time.monotonic() + moments * self.deadline / MOMENTS
        while not (ready := self.ready(end, main=True, channel=self.channel)) and time.monotonic() < end and not self.over:
            self.take()
        return ready

    def answer(self, *, serve: bool = True) -> Frame[OwnedFd] | None:
        """The next message on the back-end channel, or None if the front-end closed it or everything.

        The main channel is served meanwhile, unless `serve` is false.
        """
        end = time.monotonic() + self.deadline
        while not self.ready(end, main=serve and not self.over, channel=self.channel):
            if self.over:
                return None
            if time.monotonic() >= end:
                where = f"nothing within {self.deadline:g} s"
                raise Deviation("an answer on the back-end channel, or its end", where, hung=True)
            self.take()
        frame = self.channel.receive_or_end()
        if frame is not None:
            self._owned.extend(frame.fds)
        return frame

    def ask(self, request: int, body: Body = None, *, fds: Fds = (), flags: int = VERSION | NEED_REPLY) -> int | None:
        """Send a request and return the status in its acknowledgement; None if the front-end closed the channel for it."""
        self.channel.request(request, body, fds=fds, flags=flags)
        return self.acknowledgement(request)

    def acknowledgement(self, request: int, *, serve: bool = True) -> int | None:
        """The status in the next message on the back-end channel, which acknowledges this request; None at its end."""
        frame = self.answer(serve=serve)
        if frame is None:
            return None
        if (frame.request, frame.flags, len(frame.payload)) != (request, ACK, U64.STRUCT.size):
            got = f"request {frame.request}, flags {frame.flags:#x}, {len(frame.payload)} bytes"
            raise Deviation(f"the acknowledgement of {_asked(request)}: flags {ACK:#x}, 8 bytes", got)
        return U64.unpack(frame.payload).value

    def accepted(self, request: int, body: Body = None, *, fds: Fds = ()) -> None:
        """The front-end does it, and says so."""
        status = self.ask(request, body, fds=fds)
        if status:
            raise Deviation(f"{_asked(request)} accepted, status 0", f"status {status:#x}")
        if status is None:
            raise Deviation(f"{_asked(request)} accepted, status 0", "the end of the channel")

    def refused(self, request: int, body: Body = None, *, fds: Fds = ()) -> None:
        """The front-end says no: by a status that is not 0, or by ending the channel."""
        self.channel.request(request, body, fds=fds, flags=VERSION | NEED_REPLY)
        self.expect_refusal(request)

    def expect_refusal(self, request: int) -> None:
        """The same of a request that was sent already."""
        if self.acknowledgement(request) == 0:
            raise Deviation(f"{_asked(request)} refused", "status 0")

    def refused_in_step(self, request: int, body: Body = None, *, fds: Fds = ()) -> None:
        """The front-end says no by a status that is not 0, and the channel lives."""
        status = self.ask(request, body, fds=fds)
        if not status:
            got = "the end of the channel" if status is None else "status 0"
            raise Deviation(f"{_asked(request)} refused by a status that is not 0", got)

    def closes(self, what: str) -> None:
        """The front-end asks nothing more, starts no ring, and ends the connection, as it has to after `what`."""
        self.answers.clear()
        known, running = len(self.seen), len(self.seen.running)

        def goes_on() -> bool:
            own = (FRONTEND[seen.request].reply is Reply.OWN for seen in self.seen[known:] if seen.request in FRONTEND)
            return any(own) or len(self.seen.running) > running

        went_on = self.soon(goes_on, within=self.deadline)
        if went_on or not self.over:
            got = f"{self.progress}" if went_on else f"a connection that is open {self.deadline:g} s later"
            raise Deviation(f"the end of the connection after {what}", got, hung=not went_on)

    # Shared memory

    def shared_memory(self) -> None:
        """Serve until mappings are possible: the rings run, the regions were asked for, and there is a channel."""
        self.start()
        self.need(F.SHMEM)
        self.need(F.REPLY_ACK)
        if not self.seen.of(Q.GET_SHMEM_CONFIG):
            raise NotApplicable("it does not ask for the shared memory regions")
        if self.requests is None:
            raise NotApplicable(NO_CHANNEL)

    def file(self, pages: int = 1) -> OwnedFd:
        """A memfd of so many pages that can't shrink, closed at the end of the rule."""
        return self.keep(memory_file(pages))

    def maps(self, offset: int, len: int = PAGE, *, shmid: int = 0, fd: OwnedFd | None = None, flags: int = MAP_RW) -> None:
        """A mapping of a file's beginning is made; of a new memfd unless `fd` says another."""
        file = fd or self.file(max(1, -(-len // PAGE)))
        self.accepted(B.SHMEM_MAP, Mmap(shmid, 0, offset, len, flags), fds=[file])

    def unmaps(self, offset: int, len: int = PAGE, *, shmid: int = 0) -> None:
        """A whole mapping is taken away."""
        self.accepted(B.SHMEM_UNMAP, Mmap(shmid, 0, offset, len))

    def refuses(self, offset: int, len: int = PAGE, *, shmid: int = 0, fd_offset: int = 0, flags: int = MAP_RW) -> None:
        """A mapping of a new memfd is refused."""
        self.refused(B.SHMEM_MAP, Mmap(shmid, fd_offset, offset, len, flags), fds=[self.file()])

    def refuses_unmap(self, offset: int, len: int = PAGE, *, shmid: int = 0) -> None:
        """There is no such mapping to take away."""
        self.refused(B.SHMEM_UNMAP, Mmap(shmid, 0, offset, len))

    def nudge(self) -> None:
        """Do the one thing that a front-end may have been told to stop at: a mapping, where one can be made."""
        if self.requests and self.has(F.SHMEM) and self.has(F.REPLY_ACK) and self.seen.of(Q.GET_SHMEM_CONFIG):
            self.maps(0)

    # Ends

    def starts_nothing(self, what: str) -> None:
        """The front-end ends the connection, or at least starts no ring in five moments, as it has to after `what`."""
        if self.watch(lambda: bool(self.seen.running), moments=5):
            raise Deviation(f"no ring, after {what}", "a ring that runs")

    def lives(self, *, moments: float = 0.2) -> None:
        """The connection is open, and still so many moments later."""
        self.watch(lambda: False, moments=moments)
        if self.over:
            raise Deviation("a connection that lives", f"its end after {self.progress}")

    def come_to_rest(self) -> None:
        """Let the front-end do what it is about to do, served as by a right back-end: left in the middle it may die."""
        if self.main.fileno() < 0:
            return
        self.answers.clear()
        count, end = -1, time.monotonic() + self.deadline
        while count != len(self.seen) and not self.over and time.monotonic() < end:
            count = len(self.seen)
            busy = len(self.seen.running) < self.reach.rings
            self.soon(lambda before=count: len(self.seen) != before, within=self.rest * (BUSY if busy else 1))  # type: ignore[misc]


def _asked(request: int) -> str:
    try:
        return BackendRequest(request).name
    except ValueError:
        return f"request {request}"
