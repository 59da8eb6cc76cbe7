"""Captures in pcapng, as Wireshark opens them: written one whole block a time, and read back exactly.

There are three interfaces: each channel has one, and all that is no message has the third. A packet is a message as it
came, an exported PDU that names its dissector and, as a source port, its connection. What it can't say by itself is a
comment, a JSON object: `{"fds": ...}`. What is no message is JSON as well (`records`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import lru_cache
from struct import Struct
from typing import BinaryIO, Final

from ..protocol.rules import Channel
from ..protocol.state import Role
from ..version import VERSION
from .blocks import COMMENT, INTERFACE, LARGEST_BLOCK, PACKET, enclosed, pack_block, pack_options, pack_section, padded
from .capture_error import CaptureError
from .event import Event, FdNote, Message
from .exported import (
    DISSECTORS,
    EPB_FLAGS,
    EVENTS,
    FLAGS,
    IF_DESCRIPTION,
    IF_NAME,
    IF_TSRESOL,
    INTERFACE_HEAD,
    INTERFACES,
    LARGEST_DATA,
    LINK_TYPE,
    PACKET_HEAD,
    PIECE,
    dissected_by,
)
from .pcapng_reader import read_pcapng
from .records import LARGEST, Record, record_of, record_of_fd
from .stream import put

__all__ = ["PcapngWriter", "read_pcapng"]

MOST_CONNECTIONS: Final = 1 << 32
_NUMBERS: Final = {Channel.FRONTEND: 0, Channel.BACKEND: 1}
_EVENTS_NUMBER: Final = 2
_SHB_USERAPPL: Final = 4
_NANOSECONDS: Final = 9
_NUMBER: Final = Struct("<I")


class PcapngWriter:
    """Writes events to a file, which it owns. Each is there, whole, when `write` returns."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        put(file, pack_section([(_SHB_USERAPPL, f"vhu {VERSION}".encode())]) + b"".join(_interfaces()))

    def write(self, event: Event) -> None:
        """Add an event. CaptureError if it can't be written, after which nothing more should be."""
        if not 0 <= event.at <= LARGEST or not 0 <= event.connection < MOST_CONNECTIONS:
            raise CaptureError(f"an event of connection {event.connection} at {event.at} ns has no place in a pcapng")
        if isinstance(event, Message) and len(event.data) < LARGEST_DATA:
            head = dissected_by(DISSECTORS[event.channel, event.whole], event.connection)
            put(self._file, _packet(event, _NUMBERS[event.channel], head + event.data, _options(event)))
            return
        content = json.dumps(record_of(event), separators=(",", ":")).encode()
        if len(content) > LARGEST_BLOCK:
            raise CaptureError(f"an event of {len(content)} bytes is more than a capture takes, {LARGEST_BLOCK}")
        for piece in _pieces(content, LARGEST_DATA):
            put(self._file, _packet(event, _EVENTS_NUMBER, dissected_by(EVENTS, event.connection) + piece, b""))

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _interfaces() -> Iterator[bytes]:
    for name, description in INTERFACES.items():
        options = [(IF_NAME, name.encode()), (IF_DESCRIPTION, description.encode()), (IF_TSRESOL, bytes([_NANOSECONDS]))]
        yield pack_block(INTERFACE, INTERFACE_HEAD.pack(LINK_TYPE, 0, 0), options)


def _packet(event: Event, interface: int, data: bytes, options: bytes) -> bytes:
    head = PACKET_HEAD.pack(interface, event.at >> 32, event.at & 0xFFFFFFFF, len(data), len(data))
    return enclosed(PACKET, head + padded(data) + options)


def _made_options(sender: Role, fds: tuple[FdNote, ...], note: str) -> bytes:
    """The options of a message's packet: its direction, and a comment if there is something to say."""
    remarks: Record = {}
    if fds:
        remarks["fds"] = [record_of_fd(fd) for fd in fds]
    if note:
        remarks["note"] = note
    comment = json.dumps({"vhostuser": 1, **remarks}).encode() if remarks else b""
    pieces = _pieces(comment, PIECE) if remarks else []
    return pack_options([*((COMMENT, piece) for piece in pieces), (EPB_FLAGS, _NUMBER.pack(FLAGS[sender]))])


_KEPT: Final = 8
"""Fds of a message whose options are kept for the next one: more, with long paths, could fill memory."""
_kept_options = lru_cache(64)(_made_options)


def _options(message: Message) -> bytes:
    make = _kept_options if len(message.fds) <= _KEPT else _made_options
    return make(message.sender, message.fds, message.note)


def _pieces(data: bytes, size: int) -> list[bytes]:
    """Pieces of this size, and one at the end that is smaller."""
    return [data[start : start + size] for start in range(0, len(data) + 1, size)]
