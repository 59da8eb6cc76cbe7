"""A conversation is had with a back-end, whatever that says to it."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from typing import Final

from ..errors import RemoteProtocolError
from ..protocol.framing import Frame
from ..protocol.numbers import NEED_REPLY, REPLY, VERSION, FrontendRequest
from ..protocol.payloads import HEADER, U64
from ..protocol.rules import Channel, Reply
from ..protocol.state import Role
from ..trace.event import Event
from ..transport.fds import OwnedFd, close_all
from .act import Act, Conversation
from .judge import Judge
from .line import Line, ready

PATIENCE: Final = 0.03
"""Seconds that a reply is waited for before the next message. It says nothing about the back-end that none comes."""
SETTLED: Final = 0.002


@dataclass(slots=True)
class Had:
    """What came of a conversation."""

    sent: int = 0
    """Messages of ours that went."""
    came: int = 0
    wrong: str = ""
    """What came that no rule allows."""
    over: bool = False
    """The other side ended it."""
    last: str = ""
    """The last message that went."""


class HostileFrontend:
    """Has one conversation on a connection, which is this object's; then close it."""

    def __init__(self, sock: socket.socket, talk: Conversation, events: list[Event] | None = None) -> None:
        self._events = events
        self._main = Line(sock, Channel.FRONTEND, Role.FRONTEND, events)
        self._requests: Line | None = None
        self._talk, self._judge, self.had = talk, Judge(), Had()
        self._patience = PATIENCE

    def have(self) -> Had:
        """Say all of it, as far as anybody listens."""
        for act in self._talk.acts:
            if not self._say(act):
                continue
            self._listen(self._patience if _awaits(act) else 0.0, wanted=_awaits(act))
            if self._main.over or self.had.wrong:
                break
        if not self._main.over and not self.had.wrong:
            self._listen(SETTLED)
        self.had.over = self._main.over
        return self.had

    def close(self) -> None:
        """Close both channels."""
        self._main.close()
        if self._requests:
            self._requests.close()

    def _say(self, act: Act) -> bool:
        line = self._main if act.channel is Channel.FRONTEND else self._requests
        if line is None or line.over:
            return False
        self._judge.sent(act)
        channel = line.say(act)
        self.had.sent, self.had.last = self.had.sent + 1, act.name
        if channel:
            if self._requests:
                self._requests.close()
            self._requests = Line(channel, Channel.BACKEND, Role.FRONTEND, self._events)
        return True

    def _listen(self, seconds: float, *, wanted: bool = False) -> None:
        """Take what comes within so many seconds; until a reply does, if one is `wanted`. Nobody is waited for twice."""
        count = self.had.came
        while lines := ready([line for line in (self._main, self._requests) if line and not line.over], seconds):
            for line in lines:
                self._take(line)
            if self._main.over or self.had.wrong or (wanted and self.had.came > count) or not wanted:
                return
        if wanted and not self._main.over:
            self._patience = 0.0

    def _take(self, line: Line) -> None:
        try:
            frames = line.receive()
        except RemoteProtocolError as error:
            self.had.wrong = self.had.wrong or str(error)
            return
        for frame in frames:
            close_all(frame.fds)
            if line is self._main:
                self.had.came += 1
                self.had.wrong = self.had.wrong or self._judge.reply(frame)
            elif not frame.is_reply:
                self.had.wrong = self.had.wrong or self._judge.request(frame)
                line.send(answer(self._talk.manner, frame), [])


def answer(manner: str, frame: Frame[OwnedFd]) -> bytes:
    """How a back-end's request is answered."""
    if manner == "silent" or not frame.need_reply:
        return b""
    body = {"short": bytes(4), "long": bytes(16), "no": U64(1).pack()}.get(manner, U64(0).pack())
    request = frame.request + (manner == "wrong number")
    flags = VERSION | (0 if manner == "no reply flag" else REPLY)
    return HEADER.pack(request, flags, len(body)) + body


def _awaits(act: Act) -> bool:
    """An answer is to come."""
    if act.channel is not Channel.FRONTEND or act.flags & REPLY or not act.honest_size:
        return False
    return bool(act.flags & NEED_REPLY) or (act.rule is not None and act.rule.reply is Reply.OWN)


HONEST: Final = Act(FrontendRequest.GET_FEATURES)
