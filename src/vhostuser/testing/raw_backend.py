"""A back-end that may be hostile: it answers as told, and sends what it is told over the back-end channel."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Final, Self, Unpack

from ..errors import Disconnected
from ..frontend import Frontend, FrontendOptions
from ..protocol.framing import Frame
from ..protocol.layout import Payload
from ..protocol.numbers import FrontendRequest, ProtocolFeature, VhostFeature, mask
from ..protocol.payloads import U64, ShmemConfig, VringState
from ..protocol.rules import FRONTEND, Reply
from ..transport.fds import HasFileno, OwnedFd, close_all
from ..virtio.numbers import Feature
from .files import body_bytes, message
from .wire import ACK, DEADLINE, Wire

F, Q = ProtocolFeature, FrontendRequest
FEATURES: Final = mask((Feature.VERSION_1, VhostFeature.PROTOCOL_FEATURES))
PROTOCOL_FEATURES: Final = mask(
    (F.MQ, F.REPLY_ACK, F.BACKEND_REQ, F.CONFIG, F.BACKEND_SEND_FD, F.RESET_DEVICE, F.STATUS, F.SHMEM)
)
Answer = Payload | bytes | Callable[[Frame[OwnedFd]], bytes] | None


class RawBackend:
    """A thread that answers a front-end's requests from two tables, and the back-end channel for the test to use.

    `answers` holds payloads by request; `raw_answers` whole messages, sent as they are, b"" for silence; either may be a
    function of the request's frame. What is in neither is acknowledged with 0 if it asks for it. `requests` is the back-end
    channel: what the test sends there is handled by the front-end in the test's own thread, at once.
    """

    def __init__(
        self,
        *,
        shared_memory: Mapping[int, int] | None = None,
        queues: int = 1,
        features: int = FEATURES,
        protocol_features: int = PROTOCOL_FEATURES,
    ) -> None:
        sizes = {0: 1 << 20} if shared_memory is None else dict(shared_memory)
        self.answers: dict[int, Answer] = {
            Q.GET_FEATURES: U64(features),
            Q.GET_PROTOCOL_FEATURES: U64(protocol_features),
            Q.GET_QUEUE_NUM: U64(queues),
            Q.GET_SHMEM_CONFIG: ShmemConfig(sizes),
            Q.GET_STATUS: U64(0),
            Q.GET_VRING_BASE: _at_the_beginning,
        }
        self.raw_answers: dict[int, bytes | Callable[[Frame[OwnedFd]], bytes]] = {}
        self.files: dict[int, Sequence[HasFileno]] = {}
        """The fds that go with an answer, by request; they stay yours."""
        self.seen: list[int] = []
        """The requests that came, by number."""
        self.requests: Wire | None = None
        ours, self.theirs = socket.socketpair()
        self.main = Wire(ours)
        self._given = threading.Event()
        self._thread = threading.Thread(target=self._run, name="raw back-end", daemon=True)

    def frontend(self, **options: Unpack[FrontendOptions]) -> Frontend:
        """Start answering, and connect a Frontend, which the test closes."""
        self._thread.start()
        frontend = Frontend(self.theirs, **options)
        self._serve_with(frontend)
        return frontend

    def take_over(self, frontend: Frontend, *, resubmit: bool = False) -> None:
        """Start answering, and let a front-end go on here whose back-end is gone."""
        self._thread.start()
        frontend.reconnect(self.theirs, resubmit=resubmit)
        self._serve_with(frontend)

    def _serve_with(self, frontend: Frontend) -> None:
        if "BACKEND_REQ" in frontend.protocol_features and self._given.wait(DEADLINE):
            self.channel.pump = lambda: _serve_waiting(frontend)

    @property
    def channel(self) -> Wire:
        """The back-end channel, which the front-end must have given."""
        if self.requests is None:
            raise AssertionError("the front-end gave no back-end channel")
        return self.requests

    def close(self) -> None:
        """Close everything."""
        for sock in (self.main.socket, self.theirs):
            if sock.fileno() >= 0:
                sock.shutdown(socket.SHUT_RDWR)
        if self._thread.ident:
            self._thread.join(DEADLINE)
        self.main.close()
        self.theirs.close()
        if self.requests:
            self.requests.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _run(self) -> None:
        self.main.deadline = 600
        while True:
            try:
                frame = self.main.receive_or_end()
            except (AssertionError, OSError):
                return
            if frame is None:
                return
            self.seen.append(frame.request)
            self.main.send(self._answer(frame), self.files.get(frame.request, ()))
            close_all(frame.fds)

    def _answer(self, frame: Frame[OwnedFd]) -> bytes:
        """The bytes that go back."""
        if frame.request == Q.SET_BACKEND_REQ_FD and frame.fds:
            self.requests = Wire(socket.socket(fileno=frame.fds[0].detach()))
            self._given.set()
        raw = self.raw_answers.get(frame.request)
        if raw is not None:
            return raw if isinstance(raw, bytes) else raw(frame)
        rule = FRONTEND.get(frame.request)
        if frame.request in self.answers or (rule and rule.reply is Reply.OWN):
            answer = self.answers.get(frame.request, frame.payload)
            return message(frame.request, answer(frame) if callable(answer) else body_bytes(answer), flags=ACK)
        return message(frame.request, U64(0), flags=ACK) if frame.need_reply else b""


def _at_the_beginning(frame: Frame[OwnedFd]) -> bytes:
    """The answer to GET_VRING_BASE: the ring that was asked for has done nothing."""
    return VringState(VringState.unpack(frame.payload).index, 0).pack()


def _serve_waiting(frontend: Frontend) -> None:
    """Let the front-end answer one message; that its connection ended is not this caller's affair."""
    try:
        frontend.serve(0)
    except Disconnected:
        return
