"""A conversation that fails is made shorter, and what is left of it simpler, as long as it still fails."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Final

from ..protocol.numbers import VERSION
from .act import ALL, Act, Conversation

TRIES: Final = 200
"""Conversations that are had for it at most."""
Fails = Callable[[Conversation], bool]


def shrunk(talk: Conversation, fails: Fails, may_go_on: Callable[[], bool]) -> Conversation:
    """The shortest conversation that was found to fail as `talk` does, in so many tries, and while it may go on."""
    left = TRIES

    def still(shorter: Conversation) -> bool:
        nonlocal left
        left -= 1
        return left >= 0 and may_go_on() and fails(shorter)

    talk = _shorter(talk, still)
    talk = _simpler(talk, still)
    plain = replace(talk, manner="right")
    return plain if plain != talk and still(plain) else talk


def _shorter(talk: Conversation, still: Fails) -> Conversation:
    """Leave out runs of messages, long ones first; the last message longest."""
    size = max(1, len(talk.acts) // 2)
    while True:
        start = 0
        while start < len(talk.acts) and len(talk.acts) > 1:
            without = replace(talk, acts=talk.acts[:start] + talk.acts[start + size :])
            if without.acts and still(without):
                talk = without
            else:
                start += size
        if size == 1:
            return talk
        size //= 2


def _simpler(talk: Conversation, still: Fails) -> Conversation:
    """Make each message more like what it should be, in one respect after the other."""
    for index in range(len(talk.acts)):
        for simplify in _STEPS:
            for act in simplify(talk.acts[index]):
                if act == talk.acts[index]:
                    continue
                other = replace(talk, acts=(*talk.acts[:index], act, *talk.acts[index + 1 :]))
                if still(other):
                    talk = other
                    break
    return talk


def _usual(act: Act) -> Iterator[Act]:
    """The header as it should be, in one piece."""
    yield replace(act, size=None, split=0, cut=ALL, flags=VERSION)
    yield replace(act, size=None, split=0, cut=ALL)
    yield replace(act, flags=VERSION)


def _fewer(act: Act) -> Iterator[Act]:
    """Without fds, or with one."""
    yield replace(act, fds=())
    yield replace(act, fds=act.fds[:1])


def _zeros(act: Act) -> Iterator[Act]:
    """All fields 0."""
    yield replace(act, payload=bytes(len(act.payload)))


def _zero_each(number: int) -> Callable[[Act], Iterator[Act]]:
    """One field 0."""

    def simplify(act: Act) -> Iterator[Act]:
        for field in act.fields()[number : number + 1]:
            yield act.with_bytes(field.offset, bytes(field.size), act.changed)

    return simplify


FIELDS: Final = 10
"""Fields of a message that are tried one by one."""
_STEPS: Final = (_usual, _fewer, _zeros, *(_zero_each(number) for number in range(FIELDS)))
