"""Which messages of the other side no rule allows: those that nobody asked for, and those that are none of their request."""

from __future__ import annotations

from typing import Final

from ..protocol.framing import Frame
from ..protocol.numbers import NEED_REPLY, VERSION
from ..protocol.payloads import U64
from ..protocol.rules import RULES, Channel, Reply
from ..protocol.state import Role
from ..trace.event import Message
from ..trace.meaning import understood
from ..transport.fds import OwnedFd
from .act import Act

REFUSALS: Final = (0, U64.STRUCT.size)
"""Sizes of a reply that says no, besides what answers the request."""


class Judge:
    """Knows what was asked on the main channel, and says what is wrong with what comes back; empty if nothing is."""

    def __init__(self) -> None:
        self._asked: list[Act] = []
        self._blind = False
        """A message had a size that is not its own: nobody knows any more what was asked."""

    def sent(self, act: Act) -> None:
        """A message of ours has gone on the main channel."""
        if not act.honest_size:
            self._blind = True
        if act.channel is Channel.FRONTEND:
            self._asked.append(act)

    def reply(self, frame: Frame[OwnedFd]) -> str:
        """What is wrong with a reply on the main channel."""
        if self._blind:
            return ""
        same = [index for index, act in enumerate(self._asked) if act.request == frame.request]
        asked = [index for index in same if _may_be_answered(self._asked[index])]
        if not asked:
            which = "asked for none" if same else "was not sent, or is answered already"
            rule = RULES[Channel.FRONTEND].get(frame.request)
            return f"a reply to {rule.name if rule else f'request {frame.request}'}, which {which}"
        act = self._asked[asked[0]]
        del self._asked[: asked[0] + 1]
        return _form(frame, act)

    def request(self, frame: Frame[OwnedFd]) -> str:
        """What is wrong with a back-end's request."""
        found = understood(Message(0, 0, Channel.BACKEND, Role.BACKEND, frame.pack()), 0)
        return f"on the back-end channel: {found.fault}" if found.fault else ""


def _may_be_answered(act: Act) -> bool:
    """It has a reply of its own, or may have; or an acknowledgement is asked for."""
    return bool(act.flags & NEED_REPLY) or (act.rule is not None and act.rule.reply is not Reply.ACK)


def _form(frame: Frame[OwnedFd], act: Act) -> str:
    found = understood(Message(0, 0, Channel.FRONTEND, Role.BACKEND, frame.pack()), 0)
    if not frame.is_reply or frame.flags & 3 != VERSION:
        return f"a reply to {act.name} with flags {frame.flags:#x}"
    if found.fault and len(frame.payload) not in REFUSALS:
        return f"the reply to {act.name}: {found.fault}"
    rule = RULES[Channel.FRONTEND].get(frame.request)
    most = rule.answer_fds.stop - 1 if rule else 0
    return f"{len(frame.fds)} fds with the reply to {act.name}" if len(frame.fds) > most else ""
