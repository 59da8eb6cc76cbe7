"""One message of each kind: every request of both channels in every layout it may have, and every answer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count
from typing import Final, TypeVar

from vhostuser.protocol.framing import reply_frame, request_frame
from vhostuser.protocol.layout import Payload
from vhostuser.protocol.payloads import (
    U64,
    Config,
    CryptoSession,
    MemoryRegion,
    MemoryTable,
    ShmemConfig,
    XenMemoryRegion,
    XenMemoryTable,
)
from vhostuser.protocol.rules import RULES, Channel, PayloadType, Reply, Rule
from vhostuser.protocol.state import Role
from vhostuser.trace.event import Message

from .building import BEGAN, FILE, MICROSECOND

P = TypeVar("P", bound=Payload)
_numbers = count(1)


def example(payload: PayloadType) -> Payload | None:
    """A payload whose fields all differ, from each other and from those of all others."""
    if payload is None:
        return None
    return _MADE[payload]() if payload in _MADE else _filled(payload)


def _filled(payload: type[P]) -> P:
    """Each field has a number of its own, and its highest bit where it has eight bytes."""
    data = bytearray(payload.STRUCT.size)
    for field in payload.FIELDS:
        number = next(_numbers) % 251 + 1
        top = 1 << 63 if field.size == 8 else 0
        data[field.offset : field.offset + field.size] = (number | top).to_bytes(field.size, "little")
    return payload.unpack(bytes(data))


_MADE: Final[dict[type[Payload], Callable[[], Payload]]] = {
    MemoryTable: lambda: MemoryTable([_filled(MemoryRegion) for _ in range(3)]),
    XenMemoryTable: lambda: XenMemoryTable([_filled(XenMemoryRegion) for _ in range(2)]),
    ShmemConfig: lambda: ShmemConfig({0: 1 << 40, 7: 4096, 255: (1 << 64) - 4096}),
    Config: lambda: Config(8, 4, 1, next(_numbers).to_bytes(4, "big")),
    CryptoSession: lambda: CryptoSession(bytes(range(9))),
}
"""Those whose layout is no list of numbers."""
_ticks = count(1)


def _messages(rule: Rule) -> Iterator[Message]:
    asking, answering = (Role.FRONTEND, Role.BACKEND)[:: 1 if rule.channel is Channel.FRONTEND else -1]
    for payload in (rule.payload, *(payload for _, payload in rule.variants)):
        request = request_frame(rule.id, example(payload), need_reply=True).pack()
        yield Message(BEGAN + next(_ticks) * MICROSECOND, 0, rule.channel, asking, request, (FILE,))
    for payload in _answers(rule):
        reply = reply_frame(rule.id, example(payload)).pack()
        yield Message(BEGAN + next(_ticks) * MICROSECOND, 0, rule.channel, answering, reply)


def _answers(rule: Rule) -> Iterator[PayloadType]:
    if rule.reply is not Reply.ACK:
        yield from (rule.answer, *rule.other_answers)
    if rule.reply is not Reply.OWN:
        yield U64


EVERY: Final = tuple(message for channel in Channel for rule in RULES[channel].values() for message in _messages(rule))
"""All of them, a microsecond apart. Every request has an fd, allowed or not: a capture does not judge."""
