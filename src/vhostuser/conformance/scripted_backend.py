"""A back-end that answers as a right one would, unless it is told otherwise, and keeps all that it was told.

One thread, one poll: whatever is waited for, the front-end's requests on the main channel are answered meanwhile.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Final, Self

from ..protocol.framing import Frame
from ..protocol.layout import Payload
from ..protocol.numbers import MAX_CONFIG, VRING_INDEX_MASK, FrontendRequest, ProtocolFeature, VhostFeature, mask
from ..protocol.payloads import U64, Config, ShmemConfig, VringState
from ..protocol.rules import FRONTEND, Channel, Reply
from ..protocol.state import Role
from ..testing.files import body_bytes, message
from ..testing.wire import ACK
from ..trace.describe import described
from ..trace.event import Event
from ..transport.fds import HasFileno, OwnedFd, close_all
from ..virtio.block import BlockConfig
from ..virtio.numbers import Feature
from .outcome import Deviation
from .seen import Conversation, Seen
from .wire import RecordedWire, bound

F, Q = ProtocolFeature, FrontendRequest
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
"""That of a small disk, which has no number that is dangerous as 0: blkio-bench divides by some."""
MOMENTS: Final = 50
"""Moments in the time for an answer: what need not come is waited for by the moment."""
Answer = Payload | bytes | Callable[[Frame[OwnedFd]], bytes]
"""A payload, for the reply to a request; or what makes the whole message of the request's frame, b"" for silence."""
Body = Payload | bytes | None
Fds = Sequence[int | HasFileno]


class ScriptedBackend:
    """The back-end's end of a connection. What it waits for in vain is a Deviation."""

    def __init__(self, sock: socket.socket, events: list[Event], *, deadline: float) -> None:
        bound(sock, deadline)
        self.main = RecordedWire(sock, events, Channel.FRONTEND, Role.BACKEND, deadline=deadline)
        self.events, self.deadline = events, deadline
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
        self.kicks: dict[int, OwnedFd] = {}
        """What signals kicks, as it came last, by ring."""
        self.files: dict[int, Sequence[HasFileno]] = {}
        """What fds come with an answer, by request; they stay whose they are."""
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
            if self.over or time.monotonic() >= end or not self.ready(end, main=True):
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
            elif frame.request == Q.SET_VRING_KICK and len(frame.fds) == 1:
                self.kicks[seen.number & VRING_INDEX_MASK] = self.keep(OwnedFd(os.dup(frame.fds[0].fileno())))
            self.main.send(self._answer(frame), self.files.get(frame.request, ()))
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
            bound(ours, self.deadline)
            self.requests = RecordedWire(ours, self.events, Channel.BACKEND, Role.BACKEND, deadline=self.deadline)

    def ready(self, end: float, *, main: bool, channel: RecordedWire | None = None) -> bool:
        """Wait until there is something to read; whether it is what is waited for first: `channel`, if it is given.

        With that, false also if the main channel has something, or the time is over.
        """
        end = 0.0 if self.over else end
        poll = select.poll()
        if main:
            poll.register(self.main, select.POLLIN)
        if channel:
            poll.register(channel, select.POLLIN)
        ready = [fd for fd, _ in poll.poll(max(0.0, end - time.monotonic()) * 1000)]
        return channel.fileno() in ready if channel else bool(ready)


def _name(request: int) -> str:
    rule = FRONTEND.get(request)
    return rule.name if rule else f"request {request}"
