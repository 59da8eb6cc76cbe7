"""A relay between a front-end and a back-end: passes on every message of both channels, and shows it."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final, Self

from ..errors import DeadlineExpired, Disconnected, RemoteProtocolError
from ..protocol.framing import Frame, decode_payload
from ..protocol.numbers import FrontendRequest
from ..protocol.payloads import U64
from ..protocol.rules import RULES, PayloadType, Reply, Rule
from ..protocol.rules import Channel as Side
from ..trace.words import fd_in_words, in_words
from ..transport.channel import Channel, OwnedFrame
from ..transport.fds import OwnedFd, close_all
from ..transport.socket import wait

_ARROWS: Final = {True: "F>B", False: "B>F"}


@dataclass(slots=True, eq=False)
class _End:
    """One socket of the relay. What comes in here goes out at `other`."""

    channel: Channel
    side: Side
    asks: bool
    """The requests of this channel come in here, the replies go out."""
    unanswered: deque[tuple[str, Rule, float]] = field(default_factory=deque)
    other: _End | None = None

    @property
    def from_front_end(self) -> bool:
        """Whoever sends here is the front-end."""
        return self.asks is (self.side is Side.FRONTEND)


class Relay:
    """Sits between two sockets, `front_end` and `back_end`, of which each belongs to one of the two.

    `show` is called, in the relay's thread, with one line a message, before it is passed on: a request that is answered is
    shown together with its answer, as strace shows a call.
    """

    def __init__(self, show: Callable[[str], None]) -> None:
        self.messages = 0
        """Requests passed on, on both channels."""
        self._show, self._began = show, time.monotonic()
        self.front_end, front = socket.socketpair()
        self.back_end, back = socket.socketpair()
        self._ends = [*_pair(Side.FRONTEND, Channel(front), Channel(back))]
        self._thread = threading.Thread(target=self._run, name="relay", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        for sock in (self.front_end, self.back_end):
            sock.close()
        for end in self._ends[:2]:
            end.channel.shutdown()
        self._thread.join()

    def _run(self) -> None:
        try:
            while True:
                ready = wait([end.channel for end in self._ends], None)
                for end in [end for end in self._ends if end.channel.fileno() in ready]:
                    self._pass_on(end)
        except (Disconnected, DeadlineExpired, RemoteProtocolError, OSError):
            pass
        finally:
            for end in self._ends:
                end.channel.close()

    def _pass_on(self, end: _End) -> None:
        """One message from `end` to the other one. Its fds go with it, but the back-end channel, which the relay splits."""
        if (other := end.other) is None:
            return
        frame = end.channel.receive()
        try:
            self._note(end, other, frame)
            if end.side is Side.FRONTEND and frame.request == FrontendRequest.SET_BACKEND_REQ_FD and frame.fds:
                self._split(other, frame)
            else:
                _send(other, frame, frame.fds)
        finally:
            close_all(frame.fds)

    def _split(self, other: _End, frame: OwnedFrame) -> None:
        """Keep the socket that the front-end sends, give the back-end another one, and relay between the two."""
        front = Channel(socket.socket(fileno=frame.fds[0].detach()))
        mine, theirs = socket.socketpair()
        with theirs, contextlib.closing(OwnedFd(theirs.fileno())) as fd:
            _send(other, frame, [fd])
            fd.detach()
        self._ends.extend(_pair(Side.BACKEND, Channel(mine), front))

    def _note(self, end: _End, other: _End, frame: OwnedFrame) -> None:
        """Show a request once it is complete: at once, or together with its answer."""
        now = time.monotonic()
        if not end.asks:
            words, rule, asked = other.unanswered.popleft()
            self._show(f"{words} = {_answer(rule, frame)} <{(now - asked) * 1e6:.0f} us>")
            return
        self.messages += 1
        rule = RULES[end.side][frame.request]
        words = f"{now - self._began:.4f} {_ARROWS[end.from_front_end]} {_request(rule, frame)}"
        if frame.need_reply or rule.reply is Reply.OWN:
            end.unanswered.append((words, rule, now))
        else:
            self._show(words)


def _pair(side: Side, asking: Channel, answering: Channel) -> tuple[_End, _End]:
    one, two = _End(asking, side, asks=True), _End(answering, side, asks=False)
    one.other, two.other = two, one
    return one, two


def _send(end: _End, frame: OwnedFrame, fds: Iterable[OwnedFd]) -> None:
    end.channel.send(Frame(frame.request, frame.flags, frame.payload, tuple(fd.fileno() for fd in fds)), "a message")


def _request(rule: Rule, frame: OwnedFrame) -> str:
    fds = [fd_in_words(fd.fileno()) for fd in frame.fds]
    words = [rule.name, _payload(rule, rule.payload, frame.payload), *fds, "need_reply" if frame.need_reply else ""]
    return " ".join(filter(None, words))


def _answer(rule: Rule, frame: OwnedFrame) -> str:
    if rule.reply is Reply.OWN:
        return _payload(rule, rule.answer, frame.payload)
    return str(int.from_bytes(frame.payload, "little")) if len(frame.payload) == U64.STRUCT.size else frame.payload.hex()


def _payload(rule: Rule, kind: PayloadType, data: bytes) -> str:
    """A payload in words; its bytes where it is not what it should be."""
    try:
        return in_words(rule, decode_payload(rule.name, kind, data))
    except RemoteProtocolError:
        return data.hex()
