"""A front-end is served as by a right back-end, but for the messages that a conversation says are wrong."""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import time
from dataclasses import replace
from typing import Final

from ..conformance.outcome import Deviation
from ..conformance.scripted_backend import ScriptedBackend
from ..conformance.wire import RecordedWire
from ..protocol.framing import Frame
from ..protocol.numbers import HEADER_SIZE
from ..protocol.rules import Channel
from ..protocol.state import Role
from ..trace.event import Event, Message
from ..trace.meaning import understood
from ..transport.fds import OwnedFd, close_all
from .act import Act, Conversation
from .fds import made
from .front_end import Had
from .judge import REFUSALS

Asked = tuple[int, int]
"""A request that wants an answer, and which time it is, from 0."""
LONGEST: Final = 10.0
"""Seconds that a front-end is served at most, which may never be quiet."""
_FAULTS: Final = (Deviation, OSError, ValueError, OverflowError, struct.error)
"""What comes of a front-end that ends in the middle, or is nonsense itself."""


class HostileBackend(ScriptedBackend):
    """Has one conversation with the front-end behind `sock`, which is this object's, until that is silent."""

    def __init__(self, sock: socket.socket, talk: Conversation, events: list[Event], *, timeout: float, rest: float) -> None:
        super().__init__(sock, events, deadline=timeout)
        self.had = Had()
        self._talk, self._rest = talk, rest
        self._waiting = [act for act in talk.acts if act.answers < 0]
        self._times: dict[int, int] = {}
        self.answered: list[Asked] = []
        """What was asked of us, and got an answer."""

    def have(self) -> Had:
        """Serve it until it is gone, or at rest."""
        end = time.monotonic() + LONGEST
        try:
            while not self.over and not self.had.wrong and time.monotonic() < end and self._step():
                self._say_what_is_due()
        except _FAULTS:
            self.over = True
        self.had.over = self.over
        return self.had

    def leave(self, seconds: float) -> None:
        """Be a right back-end for so many seconds, or until the front-end has ended the connection."""
        self._talk = replace(self._talk, acts=())
        with contextlib.suppress(*_FAULTS):
            self.soon(lambda: False, within=seconds)

    def usual(self, frame: Frame[OwnedFd]) -> bytes:
        """The answer of a right back-end; or those of the conversation are sent, and there is none."""
        self._look(frame, Channel.FRONTEND)
        time_of = self._times.get(frame.request, 0)
        self._times[frame.request] = time_of + 1
        acts = [act for act in self._talk.acts if act.answers == frame.request and act.at == time_of]
        answer = super().usual(frame)
        if answer:
            self.answered.append((frame.request, time_of))
        if not acts:
            self.had.sent += bool(answer)
            return answer
        for act in acts:
            if answer:  # what gets none is left without
                self._send(self.main, act)
        return b""

    def _step(self) -> bool:
        """Take what comes; false if nothing does, and nothing is left to say."""
        poll = select.poll()
        for wire in (self.main, self.requests):
            if wire and wire.fileno() >= 0:
                poll.register(wire, select.POLLIN)
        ready = [fd for fd, _ in poll.poll(self._rest * 1000)]
        if self.main.fileno() in ready:
            self.take()
        elif self.requests and self.requests.fileno() in ready:
            self._take_answer(self.requests)
        elif self._waiting and self.requests:
            self._waiting[0] = replace(self._waiting[0], at=0)
        return bool(ready) or bool(self._waiting and self.requests)

    def _take_answer(self, wire: RecordedWire) -> None:
        frame = wire.receive_or_end()
        if frame is None:
            wire.close()
            self.requests = None
            return
        close_all(frame.fds)
        self._look(frame, Channel.BACKEND)

    def _say_what_is_due(self) -> None:
        due = [act for act in self._waiting if act.at <= len(self.seen)]
        for act in due:
            wire = self.main if act.channel is Channel.FRONTEND else self.requests
            if wire and wire.fileno() >= 0:
                self._waiting.remove(act)
                self._send(wire, act)

    def _send(self, wire: RecordedWire, act: Act) -> None:
        """Send a message; what is cut, or closes, ends the conversation."""
        fds = [made(kind) for kind in act.fds]
        try:
            if data := act.pack():
                wire.send(data, fds)
        finally:
            close_all(fds)
        self.had.sent, self.had.last = self.had.sent + 1, act.name
        if act.changed == "close" or act.cut < HEADER_SIZE + len(act.payload):
            self.hang_up()

    def _look(self, frame: Frame[OwnedFd], channel: Channel) -> None:
        """Say what is wrong with a message of the front-end's."""
        found = understood(Message(0, 0, channel, Role.FRONTEND, frame.pack()), 0)
        if channel is Channel.FRONTEND and found.fault:
            self.had.wrong = f"{found.name}: {found.fault}"
        elif channel is Channel.BACKEND and found.fault and not self._nonsense and len(frame.payload) not in REFUSALS:
            self.had.wrong = f"on the back-end channel: {found.fault}"

    @property
    def _nonsense(self) -> bool:
        """Something is asked in a way that nobody understands: who knows what is answered."""
        return any(act.changed and act.channel is Channel.BACKEND for act in self._talk.acts)
