"""What a rule for front-ends works with: a back-end that may do anything, and a few verbs that say what was expected.

One thread, one poll: whatever a rule waits for, the front-end's requests on the main channel are answered meanwhile, as a
right back-end would unless the rule has put something else into `answers`, and all is kept in `seen`.
"""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

from ..protocol.framing import Frame
from ..protocol.layout import Payload
from ..protocol.numbers import (
    MAP_RW,
    MAX_CONFIG,
    NEED_REPLY,
    PAGE,
    VERSION,
    BackendRequest,
    FrontendRequest,
    ProtocolFeature,
    VhostFeature,
    mask,
)
from ..protocol.payloads import U64, Config, Mmap, ShmemConfig, VringState
from ..protocol.rules import FRONTEND, Channel, Reply
from ..protocol.state import Role
from ..testing.files import body_bytes, memory_file, message
from ..testing.wire import ACK
from ..trace.describe import described
from ..trace.event import Event
from ..transport.fds import HasFileno, OwnedFd, close_all
from ..virtio.block import BlockConfig
from ..virtio.numbers import Feature
from .outcome import Deviation, NotApplicable
from .rule import Needs, Rules
from .seen import Conversation, Seen
from .wire import RecordedWire

F, Q, B = ProtocolFeature, FrontendRequest, BackendRequest
FRONT_END: Final[Rules[FrontendBench]] = Rules(Role.FRONTEND)
"""The rules that front-ends have to keep."""
FEATURES: Final = mask((Feature.VERSION_1, VhostFeature.PROTOCOL_FEATURES))
PROTOCOL: Final = mask(
    (
        *(F.MQ, F.REPLY_ACK, F.BACKEND_REQ, F.CONFIG, F.BACKEND_SEND_FD, F.RESET_DEVICE, F.STATUS, F.SHMEM),
        F.CONFIGURE_MEM_SLOTS,
    )
)
"""What is offered unless a rule says otherwise."""
REGION: Final = 1 << 20
SLOTS: Final = 509
QUEUES: Final = 2
_DISK: Final = BlockConfig(capacity=2048, size_max=1 << 20, seg_max=126, blk_size=512, num_queues=QUEUES)
CONFIG: Final = _DISK.pack().ljust(MAX_CONFIG, b"\0")
"""That of a small disk, which has no number that is dangerous as 0: libblkio 1.5 divides by some."""
MOMENTS: Final = 50
"""Moments in the time for an answer: what need not come is waited for by the moment."""
REST: Final = 0.2
BUSY: Final = 10
"""How many times as long that takes if it may be about to start rings."""
NO_CHANNEL: Final = "it gives no back-end channel"
Answer = Payload | bytes | Callable[[Frame[OwnedFd]], bytes]
"""A payload, for the reply to a request; or what makes the whole message of the request's frame, b"" for silence."""
Body = Payload | bytes | None
Fds = Sequence[int | HasFileno]


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


class FrontendBench:
    """The back-end's end of a connection to the front-end under test. Whatever it misses is a Deviation."""

    def __init__(self, sock: socket.socket, reach: Reach, events: list[Event], *, deadline: float) -> None:
        _bound(sock, deadline)
        self.main = RecordedWire(sock, events, Channel.FRONTEND, Role.BACKEND, deadline=deadline)
        self.reach, self.events, self.deadline = reach, events, deadline
        self.requests: RecordedWire | None = None
        """The back-end channel, once the front-end has given it."""
        self.given = ""
        """What came as the back-end channel, in words."""
        self.over = False
        """The front-end has closed the connection."""
        self.seen = Conversation()
        self.features, self.protocol, self.queues, self.slots = FEATURES, PROTOCOL, QUEUES, SLOTS
        self.regions: dict[int, int] = {0: REGION, 1: REGION}
        self.config = CONFIG
        self.answers: dict[int, Answer] = {}
        """What to answer instead, by request."""
        self.rest = REST
        """Seconds of silence in which the front-end is at rest."""
        self._status = 0
        self._owned: list[OwnedFd] = []

    # Serving the main channel

    def until(self, request: int, *, times: int = 1) -> Seen:
        """Serve until a request has come so often; the last of them."""
        self.wait(lambda: len(self.seen.of(request)) >= times, _name(request))
        return self.seen.of(request)[times - 1]

    def wait(self, holds: Callable[[], bool], what: str) -> None:
        """Serve until something holds; Deviation if the front-end takes too long, or ends the connection before."""
        if not self.soon(holds, within=self.deadline):
            if self.over:
                raise Deviation(what, f"the end of the connection after {self.progress}")
            raise Deviation(what, f"nothing more within {self.deadline:g} s after {self.progress}", hung=True)

    def watch(self, holds: Callable[[], bool], *, moments: float = 10) -> bool:
        """Serve until something holds that need not, at most so many moments; whether it does."""
        return self.soon(holds, within=moments * self.deadline / MOMENTS)

    def soon(self, holds: Callable[[], bool], *, within: float) -> bool:
        """Serve until something holds, at most so many seconds; whether it does."""
        end = time.monotonic() + within
        while not holds():
            if self.over or not self._ready(end, main=True):
                return holds()
            self.take()
        return True

    def pause(self, *, moments: float = 0.02) -> None:
        """Do nothing for so many moments."""
        time.sleep(moments * self.deadline / MOMENTS)

    def take(self) -> None:
        """Take one message of the main channel, and answer it."""
        frame = self.main.receive_or_end()
        if frame is None:
            self.over = True
            return
        notes = tuple(described(fd.fileno()) for fd in frame.fds)
        try:
            seen = Seen(frame.request, frame.flags, frame.payload, notes, self.acknowledged)
            self.seen.append(seen)
            if frame.request == Q.SET_BACKEND_REQ_FD:
                self._open(frame)
            self.main.send(self._answer(frame))
        finally:
            close_all(frame.fds)

    @property
    def acknowledged(self) -> int:
        """The protocol features that the front-end has acknowledged so far."""
        return self.seen.last(Q.SET_PROTOCOL_FEATURES)

    @property
    def progress(self) -> str:
        """The last thing that the front-end said."""
        return self.seen[-1].name if self.seen else "its connection"

    def has(self, feature: ProtocolFeature) -> bool:
        """A protocol feature was acknowledged."""
        return bool(self.acknowledged >> feature & 1)

    def need(self, feature: ProtocolFeature) -> None:
        """The rule makes no sense without this feature."""
        if not self.has(feature):
            raise NotApplicable(f"it does not acknowledge {feature.name}")

    # Bringing a front-end where a rule begins

    def negotiated(self) -> None:
        """Serve until the protocol features are agreed on, and the channel is there if one is to come."""
        self.until(Q.SET_PROTOCOL_FEATURES)
        if self.has(F.BACKEND_REQ):
            self.until(Q.SET_BACKEND_REQ_FD)

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
        while not (ready := self._ready(end, main=True, channel=True)) and time.monotonic() < end and not self.over:
            self.take()
        return ready

    def answer(self, *, serve: bool = True) -> Frame[OwnedFd] | None:
        """The next message on the back-end channel, or None if the front-end closed it or everything.

        The main channel is served meanwhile, unless `serve` is false.
        """
        end = time.monotonic() + self.deadline
        while not self._ready(end, main=serve and not self.over, channel=True):
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

    def ended(self, what: str) -> None:
        """The front-end ends the back-end channel, or all of it, and answers nothing, as it has to after `what`."""
        frame = self.answer()
        if frame is not None:
            got = f"request {frame.request}, flags {frame.flags:#x}"
            raise Deviation(f"the end of the back-end channel after {what}", got)

    def closes(self, what: str) -> None:
        """The front-end asks nothing more that wants an answer, and ends the connection, as it has to after `what`."""
        self.answers.update(dict.fromkeys(FRONTEND, lambda frame: b""))
        known = len(self.seen)

        def goes_on() -> bool:
            return any(FRONTEND[seen.request].reply is Reply.OWN for seen in self.seen[known:] if seen.request in FRONTEND)

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
        count = -1
        while count != len(self.seen) and not self.over:
            count = len(self.seen)
            busy = len(self.seen.running) < self.reach.rings
            self.soon(lambda before=count: len(self.seen) != before, within=self.rest * (BUSY if busy else 1))  # type: ignore[misc]

    def hang_up(self) -> None:
        """Close both channels."""
        self.main.close()
        self.over = True
        if self.requests:
            self.requests.close()

    def keep(self, fd: OwnedFd) -> OwnedFd:
        """Close this at the end of the rule."""
        self._owned.append(fd)
        return fd

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.hang_up()
        for fd in self._owned:
            fd.close()

    # How it answers

    def usual(self, frame: Frame[OwnedFd]) -> bytes:
        """The message that a right back-end answers; b"" for none."""
        if frame.request == Q.SET_STATUS:
            self._status = int.from_bytes(frame.payload, "little")
        if (made := self._own_reply(frame)) is not None:
            return message(frame.request, made, flags=ACK)
        rule = FRONTEND.get(frame.request)
        if rule and rule.reply is Reply.OWN:
            return message(frame.request, frame.payload, flags=ACK)
        acknowledged = frame.need_reply and self.has(F.REPLY_ACK)
        return message(frame.request, U64(0 if rule else 1), flags=ACK) if acknowledged else b""

    def _own_reply(self, frame: Frame[OwnedFd]) -> Body:
        """What a right back-end says to what it is asked; None for anything else."""
        known: dict[int, Callable[[], Payload | bytes]] = {
            Q.GET_FEATURES: lambda: U64(self.features),
            Q.GET_PROTOCOL_FEATURES: lambda: U64(self.protocol),
            Q.GET_QUEUE_NUM: lambda: U64(self.queues),
            Q.GET_MAX_MEM_SLOTS: lambda: U64(self.slots),
            Q.GET_SHMEM_CONFIG: lambda: ShmemConfig(self.regions),
            Q.GET_STATUS: lambda: U64(self._status),
            Q.GET_VRING_BASE: lambda: VringState(int.from_bytes(frame.payload[:4], "little"), 0),
            Q.GET_CONFIG: lambda: self._config_of(frame.payload),
        }
        make = known.get(frame.request)
        return make() if make else None

    def _answer(self, frame: Frame[OwnedFd]) -> bytes:
        answer = self.answers.get(frame.request)
        if answer is None:
            return self.usual(frame)
        return answer(frame) if callable(answer) else message(frame.request, body_bytes(answer), flags=ACK)

    def _config_of(self, payload: bytes) -> Payload | bytes:
        offset, size, flags = (int.from_bytes(payload[at : at + 4], "little") for at in (0, 4, 8))
        if size != len(payload) - 12:
            return b""
        return Config(offset, size, flags, self.config[offset : offset + size].ljust(size, b"\0"))

    def _open(self, frame: Frame[OwnedFd]) -> None:
        """Take the back-end channel over, if it is one."""
        self.given = ", ".join(described(fd.fileno()).kind for fd in frame.fds) or "nothing"
        if len(frame.fds) != 1:
            return
        with contextlib.suppress(OSError):
            sock = socket.socket(fileno=frame.fds[0].fileno())
            try:
                if sock.type != socket.SOCK_STREAM:
                    self.given = "a socket that is none of a stream"
                    return
                sock.getpeername()
            except OSError:
                self.given = "a socket that is not connected"
                return
            finally:
                sock.detach()
            if self.requests:
                self.requests.close()
            ours = socket.socket(fileno=frame.fds[0].detach())
            _bound(ours, self.deadline)
            self.requests = RecordedWire(ours, self.events, Channel.BACKEND, Role.BACKEND, deadline=self.deadline)

    def _ready(self, end: float, *, main: bool, channel: bool = False) -> bool:
        """Wait until there is something to read; whether it is what is waited for first: the channel, if that is wanted.

        With `channel`, false also if the main channel has something, or the time is over.
        """
        end = 0.0 if self.over else end
        poll = select.poll()
        if main:
            poll.register(self.main, select.POLLIN)
        if channel:
            poll.register(self.channel, select.POLLIN)
        ready = [fd for fd, _ in poll.poll(max(0.0, end - time.monotonic()) * 1000)]
        return self.channel.fileno() in ready if channel else bool(ready)


def _bound(sock: socket.socket, seconds: float) -> None:
    """Let no send take longer: a front-end that reads nothing is a BlockingIOError."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("@ll", int(seconds), int(seconds % 1 * 1e6)))


def _name(request: int) -> str:
    rule = FRONTEND.get(request)
    return rule.name if rule else f"request {request}"


def _asked(request: int) -> str:
    try:
        return BackendRequest(request).name
    except ValueError:
        return f"request {request}"
