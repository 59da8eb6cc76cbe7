"""What a capture is made of: messages as they came, what was seen in rings, and remarks. Values; nothing here interprets."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Final

from ..protocol.numbers import HEADER_SIZE
from ..protocol.rules import Channel
from ..protocol.state import Role

_KEPT_BACK: Final = ("dropped", "refused", "not delivered", "closed", "truncated to 0 ")
"""How notes begin that say that a message did not go on."""
_FRONT_END, _MAIN = Role.FRONTEND, Channel.FRONTEND
START: Final = 128
"""Bytes of a request, or of what a device wrote, that are kept of a ring."""


@dataclass(frozen=True, slots=True)
class FdNote:
    """What was behind an fd when it passed."""

    number: int
    """Its number in the process that wrote it down."""
    kind: str
    """file, memfd, directory, eventfd, socket, pipe, device, dma-buf, or other."""
    path: str = ""
    """What /proc/self/fd said, undecodable bytes escaped (surrogateescape)."""
    dev: int = 0
    ino: int = 0
    size: int = 0
    """Bytes, of what has a size."""
    access: str = "rw"
    """r, w or rw: how it was opened."""
    seals: tuple[str, ...] = ()
    """Names of a memfd's seals: seal shrink grow write future_write exec."""


@dataclass(frozen=True, slots=True)
class Message:
    """One message, or a piece of the stream that is none, as it came."""

    at: int
    """Nanoseconds since the epoch: of its last byte."""
    connection: int
    """Counted from 0, as front-ends came."""
    channel: Channel
    sender: Role
    data: bytes
    """Header and payload. Fewer than a header's bytes, or a header that is wrong: see `whole`."""
    fds: tuple[FdNote, ...] = ()
    whole: bool = True
    """False for bytes that were passed on without being a message: behind a wrong header, or cut off by the end."""
    note: str = ""
    """What was done to it on its way: `delayed 10 ms`, `dropped`, `changed: ...`; empty if nothing."""

    @property
    def request(self) -> int:
        """The request number of the header; -1 without one."""
        return int.from_bytes(self.data[:4], "little") if len(self.data) >= HEADER_SIZE else -1

    @property
    def flags(self) -> int:
        """The flags of the header."""
        return int.from_bytes(self.data[4:8], "little") if len(self.data) >= HEADER_SIZE else 0

    @property
    def payload(self) -> bytes:
        """What follows the header."""
        return self.data[HEADER_SIZE:]

    @property
    def delivered(self) -> bool:
        """It went on to the peer, though it may have been changed."""
        return not any(part.startswith(_KEPT_BACK) for part in self.note.split(", "))

    @property
    def asks(self) -> bool:
        """It travels in the direction of its channel's requests."""
        return (self.sender is _FRONT_END) is (self.channel is _MAIN)


@dataclass(frozen=True, slots=True)
class Buffer:
    """A buffer of a request: guest address and bytes."""

    address: int
    len: int
    writable: bool
    """By the device."""


@dataclass(frozen=True, slots=True)
class Offered:
    """A request that the driver put into a ring."""

    at: int
    connection: int
    queue: int
    head: int
    """Id of the request: its first descriptor (split), or its buffer id (packed)."""
    buffers: tuple[Buffer, ...]
    start: bytes = b""
    """The first START bytes of what the device reads."""
    kind: str = field(default="", compare=False)
    """Of device (trace.requests), once a conversation has found out; no part of what was seen."""


@dataclass(frozen=True, slots=True)
class Used:
    """A request that the device gave back."""

    at: int
    connection: int
    queue: int
    head: int
    written: int
    """Bytes that the device says it wrote."""
    start: bytes = b""
    """The first START bytes of what the device may have written."""
    end: bytes = b""
    """The last byte of it (virtio-blk's status); empty if nothing is writable."""
    after: int = -1
    """Nanoseconds since it was offered; -1 if that was not seen."""
    kind: str = field(default="", compare=False)
    asked: Offered | None = field(default=None, compare=False, repr=False)
    """The request, where a conversation has seen it; no part of what was seen now, as `kind`."""


class Remarkable(Enum):
    """What a remark is about."""

    OPENED = "opened"
    CLOSED = "closed"
    BROKEN = "broken"
    """From here on bytes are passed on that are no messages."""
    LOST = "lost"
    """Something that passed could not be written down, or seen."""
    NOTE = "note"


@dataclass(frozen=True, slots=True)
class Remark:
    """Something about a connection that is no message: it began, it ended and who ended it, it went wrong."""

    at: int
    connection: int
    about: Remarkable
    text: str = ""


Event = Message | Offered | Used | Remark
