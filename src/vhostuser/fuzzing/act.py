"""What a conversation is made of: messages that may be wrong, as data, so that it can be played again and made shorter."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from ..protocol.layout import Field, Payload
from ..protocol.numbers import HEADER_SIZE, VERSION
from ..protocol.payloads import HEADER, MemoryRegion, MemoryTable
from ..protocol.rules import FRONTEND, RULES, Channel, Rule

ALL: Final = 1 << 32
"""More bytes than any message has."""
_COUNT: Final = (Field("num_regions", "u32", 0, 4), Field("padding", "u32", 4, 4))
_WORD: Final = 8


@dataclass(frozen=True, slots=True)
class Act:
    """One message of ours, or what is to be wrong with an answer of ours."""

    request: int
    payload: bytes = b""
    fds: tuple[str, ...] = ()
    """Kinds of fds (`fds.KINDS`) that go with its first byte."""
    flags: int = VERSION
    channel: Channel = Channel.FRONTEND
    size: int | None = None
    """What the header says, where that is not the payload's size."""
    split: int = 0
    """It is written in two pieces, the first of so many bytes."""
    cut: int = ALL
    """So many of its bytes are sent, and nothing after them."""
    changed: str = ""
    """The mutation that made it, or made it wrong; empty if it is as it should be."""
    answers: int = -1
    """Of a back-end: the request that it answers; -1 if it is none of these."""
    at: int = 0
    """Of a back-end: which of these requests that is, from 0; of what answers none, how many messages come before it."""

    @property
    def rule(self) -> Rule | None:
        """The row of its request, if it has one."""
        return RULES[self.channel].get(self.request)

    @property
    def name(self) -> str:
        """The request's name; of an answer, that of what it answers."""
        rule = FRONTEND.get(self.answers) or self.rule
        return rule.name if rule else f"request {self.request}"

    @property
    def honest_size(self) -> bool:
        """Whoever reads it knows where it ends."""
        return self.size in (None, len(self.payload)) and self.cut >= HEADER_SIZE + len(self.payload)

    def pack(self) -> bytes:
        """Its bytes, all that are sent."""
        size = len(self.payload) if self.size is None else self.size
        return (HEADER.pack(self.request, self.flags, size) + self.payload)[: self.cut]

    def with_bytes(self, offset: int, data: bytes, changed: str) -> Act:
        """The same with other bytes at an offset of the payload."""
        return replace(self, payload=self.payload[:offset] + data + self.payload[offset + len(data) :], changed=changed)

    def fields(self) -> list[Field]:
        """The fields of the payload that it has; words where it declares none."""
        answered = FRONTEND.get(self.answers)
        payload = answered.answer if answered else self.rule.payload if self.rule else None
        found = _declared(payload, len(self.payload))
        found = [field for field in found if field.offset + field.size <= len(self.payload)]
        return found or [Field("word", "u64", at, _WORD) for at in range(0, len(self.payload) - _WORD + 1, _WORD)]


@dataclass(frozen=True, slots=True)
class Conversation:
    """What one connection is about."""

    number: int
    acts: tuple[Act, ...]
    manner: str = "right"
    """How the requests of the other side are answered that come meanwhile."""


def _declared(payload: type[Payload] | None, size: int) -> list[Field]:
    if payload is None:
        return []
    if issubclass(payload, MemoryTable):
        step = MemoryRegion.STRUCT.size
        starts = range(_WORD, size - step + 1, step)
        return [*_COUNT, *(field._replace(offset=at + field.offset) for at in starts for field in MemoryRegion.FIELDS)]
    return list(getattr(payload, "FIELDS", ()))
