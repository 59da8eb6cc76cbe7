"""Captures in pcapng, as Wireshark opens them: written one whole block a time, and read back exactly.

There are three interfaces: each channel has one, and all that is no message has the third. Packets are exported PDUs (link
type 252), which name their dissector, and as a source port their connection. The direction is the packet's flag: outbound is
from the front-end. What a packet can't say by itself is a comment, a JSON object: `{"fds": ...}`. What is no message is JSON
as well (`records`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from struct import Struct
from typing import BinaryIO, Final

from ..protocol.rules import Channel
from ..protocol.state import Role
from ..version import VERSION
from .blocks import (
    COMMENT,
    INTERFACE,
    LARGEST_BLOCK,
    PACKET,
    SECTION,
    Block,
    Options,
    enclosed,
    pack_block,
    pack_options,
    pack_section,
    padded,
    read_blocks,
)
from .capture_error import CaptureError, EndsEarly
from .event import Event, FdNote, Message, Remark, Remarkable
from .records import LARGEST, Record, event_of, fds_of, mapping, record_of, record_of_fd, text
from .stream import loaded, put

LINK_TYPE: Final = 252
"""LINKTYPE_WIRESHARK_UPPER_PDU."""
DISSECTORS: Final = {
    (Channel.FRONTEND, True): "vhostuser",
    (Channel.FRONTEND, False): "vhostuser_bytes",
    (Channel.BACKEND, True): "vhostuser_backend",
    (Channel.BACKEND, False): "vhostuser_backend_bytes",
}
"""Who shows the messages of a channel; and its bytes that are none (not `whole`)."""
EVENTS: Final = "vhostuser_event"
"""Who shows what is no message."""
INTERFACES: Final = {
    "main": "vhost-user, main channel: requests of the front-end, and their replies",
    "back-end": "vhost-user, back-end channel: requests of the back-end, and their replies",
    "events": "what was seen in rings, and remarks",
}
"""Names and descriptions, in the order of their numbers."""
_NUMBERS: Final = {Channel.FRONTEND: 0, Channel.BACKEND: 1}
_EVENTS_NUMBER: Final = 2
_INBOUND, _OUTBOUND = 1, 2
_FLAGS: Final = {Role.FRONTEND: _OUTBOUND, Role.BACKEND: _INBOUND}
_SENDERS: Final = {flag: role for role, flag in _FLAGS.items()}
_IF_NAME, _IF_DESCRIPTION, _IF_TSRESOL, _IF_TSOFFSET = 2, 3, 9, 14
_SHB_USERAPPL: Final = 4
_EPB_FLAGS: Final = 2
_NANOSECONDS, _MICROSECONDS = 9, 6
_DIRECTION: Final = 3
"""The bits of a packet's flags that say which way it went."""
_TAG: Final = Struct(">HH")
_DISSECTOR_TAG, _PORT_TAG = 12, 25
_PORT: Final = Struct(">HHI")
_INTERFACE: Final = Struct("<HHI")
_PACKET: Final = Struct("<IIIII")
_NUMBER: Final = Struct("<I")
MOST_CONNECTIONS: Final = 1 << 32
MOST_INTERFACES: Final = 1024
"""Of a section that is read."""
PIECE: Final = 65_000
"""Bytes of a comment: a longer one goes on in the next, while each before is as long as this."""
LARGEST_DATA: Final = 200_000
"""Bytes of a packet that Wireshark takes for certain; what is larger becomes several, each but the last as long as this."""


@lru_cache(256)
def _dissected_by(name: str, connection: int) -> bytes:
    """What stands before the bytes of an exported PDU."""
    value = padded(name.encode())
    port = _PORT.pack(_PORT_TAG, 4, connection) if connection else b""
    return _TAG.pack(_DISSECTOR_TAG, len(value)) + value + port + _TAG.pack(0, 0)


_KINDS: Final = {name: kind for kind, name in DISSECTORS.items()}
_OURS: Final = b'{"vhostuser": 1'
"""How a comment of ours begins."""


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
            head = _dissected_by(DISSECTORS[event.channel, event.whole], event.connection)
            put(self._file, _packet(event, _NUMBERS[event.channel], head + event.data, _options(event)))
            return
        content = json.dumps(record_of(event), separators=(",", ":")).encode()
        if len(content) > LARGEST_BLOCK:
            raise CaptureError(f"an event of {len(content)} bytes is more than a capture takes, {LARGEST_BLOCK}")
        for piece in _pieces(content, LARGEST_DATA):
            put(self._file, _packet(event, _EVENTS_NUMBER, _dissected_by(EVENTS, event.connection) + piece, b""))

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _interfaces() -> Iterator[bytes]:
    for name, description in INTERFACES.items():
        options = [(_IF_NAME, name.encode()), (_IF_DESCRIPTION, description.encode()), (_IF_TSRESOL, bytes([_NANOSECONDS]))]
        yield pack_block(INTERFACE, _INTERFACE.pack(LINK_TYPE, 0, 0), options)


def _packet(event: Event, interface: int, data: bytes, options: bytes) -> bytes:
    head = _PACKET.pack(interface, event.at >> 32, event.at & 0xFFFFFFFF, len(data), len(data))
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
    return pack_options([*((COMMENT, piece) for piece in pieces), (_EPB_FLAGS, _NUMBER.pack(_FLAGS[sender]))])


_KEPT: Final = 8
"""Fds of a message whose options are kept for the next one: more, with long paths, could fill memory."""
_kept_options = lru_cache(64)(_made_options)


def _options(message: Message) -> bytes:
    make = _kept_options if len(message.fds) <= _KEPT else _made_options
    return make(message.sender, message.fds, message.note)


def _pieces(data: bytes, size: int) -> list[bytes]:
    """Pieces of this size, and one at the end that is smaller."""
    return [data[start : start + size] for start in range(0, len(data) + 1, size)]


@dataclass(frozen=True, slots=True)
class _Interface:
    """How the packets of one interface are to be read."""

    link_type: int
    per_second: int
    """Ticks of its clock."""
    offset: int
    """Seconds to add."""

    def at(self, ticks: int) -> int:
        return ticks * 10**9 // self.per_second + self.offset * 10**9


class _Reader:
    """One file: what was said of its interfaces, and the pieces of an event that is not whole yet."""

    def __init__(self) -> None:
        self._interfaces: list[_Interface] = []
        self._event = bytearray()
        self.began = False
        """There was a whole section header."""

    def take(self, block: Block) -> Event | None:
        """The event of a block, if it has one."""
        if block.type == SECTION:
            self.began = True
            self._interfaces.clear()
        elif block.type == INTERFACE:
            if len(self._interfaces) == MOST_INTERFACES:
                raise block.fault(f"more than {MOST_INTERFACES} interfaces")
            self._interfaces.append(_interface(block))
        elif block.type == PACKET:
            return self._packet(block)
        return None

    @property
    def partial(self) -> bool:
        """An event has begun and not ended."""
        return bool(self._event)

    def _packet(self, block: Block) -> Event | None:
        number = block.number(0, 4)
        if number >= len(self._interfaces):
            raise block.fault(f"interface {number} is not described before it")
        interface = self._interfaces[number]
        if interface.link_type != LINK_TYPE:
            return None
        ticks, captured, length = block.number(4, 4) << 32 | block.number(8, 4), block.number(12, 4), block.number(16, 4)
        end = _PACKET.size + captured
        if end > len(block.body):
            raise block.fault(f"{captured} bytes of packet pass its end")
        if captured < length:
            raise block.fault(f"only {captured} of {length} bytes were kept of the packet")
        dissector, connection, data = _exported(block, block.body[_PACKET.size : end])
        at = interface.at(ticks)
        if not 0 <= at <= LARGEST:
            raise block.fault(f"its time, {at} ns, is out of range")
        options = block.options(end + -end % 4)
        try:
            if dissector == EVENTS:
                return self._piece(data)
            return _message(at, connection, options, dissector, data, block)
        except CaptureError as error:
            raise block.fault(str(error)) from None

    def _piece(self, data: bytes) -> Event | None:
        self._event += data
        if len(self._event) > LARGEST_BLOCK:
            raise CaptureError(f"an event of more than {LARGEST_BLOCK} bytes")
        if len(data) == LARGEST_DATA:
            return None
        whole = bytes(self._event)
        self._event.clear()
        return event_of(loaded(whole))


def read_pcapng(file: BinaryIO) -> Iterator[Event]:
    """The events of a capture, as they come. CaptureError says what is wrong where.

    A capture that ends inside of a block, since who wrote it was killed, gives all events before that, and a remark.
    """
    reader, last = _Reader(), 0
    try:
        for block in read_blocks(file):
            event = reader.take(block)
            if event is not None:
                last = event.at
                yield event
        if not reader.began:
            raise CaptureError("the capture is empty")
        if reader.partial:
            raise EndsEarly("last event", block.offset)
    except EndsEarly as error:
        if not reader.began:
            raise
        yield Remark(last, 0, Remarkable.LOST, str(error))


def _interface(block: Block) -> _Interface:
    options = dict(block.options(_INTERFACE.size))
    resolution = options.get(_IF_TSRESOL, bytes([_MICROSECONDS]))
    offset = options.get(_IF_TSOFFSET, bytes(8))
    if len(resolution) != 1 or len(offset) != 8:
        raise block.fault("its clock is described by a wrong number of bytes")
    power = resolution[0] & 0x7F
    per_second = 2**power if resolution[0] & 0x80 else 10**power
    return _Interface(block.number(0, 2), per_second, int.from_bytes(offset, block.order, signed=True))


def _exported(block: Block, data: bytes) -> tuple[str, int, bytes]:
    """Who shows an exported PDU, its connection, and its bytes; the tags before it are big-endian always."""
    name, connection, start = "", 0, 0
    while start + _TAG.size <= len(data):
        tag, size = _TAG.unpack_from(data, start)
        start += _TAG.size
        value = data[start : start + size]
        if tag == 0:
            return name, connection, data[start:]
        if tag == _DISSECTOR_TAG:
            name = value.rstrip(b"\0").decode(errors="replace")
        elif tag == _PORT_TAG:
            connection = int.from_bytes(value[:4], "big")
        start += size
    raise block.fault("the tags before its packet do not end")


def _message(at: int, connection: int, options: Options, dissector: str, data: bytes, block: Block) -> Message | None:
    if dissector not in _KINDS:
        return None
    channel, whole = _KINDS[dissector]
    flags = next((int.from_bytes(value[:4], block.order) for code, value in options if code == _EPB_FLAGS), 0)
    if flags & _DIRECTION not in _SENDERS:
        raise CaptureError("its flags do not say which way it went")
    remarks = _remarks(options)
    note = text(remarks, "note") if "note" in remarks else ""
    fds = fds_of(remarks) if "fds" in remarks else ()
    return Message(at, connection, channel, _SENDERS[flags & _DIRECTION], data, fds, whole, note)


def _remarks(options: Options) -> Record:
    """What our comment says; those of others are not ours to read."""
    pieces = iter(value for code, value in options if code == COMMENT)
    for piece in pieces:
        if piece.startswith(_OURS):
            whole = [piece]
            while len(whole[-1]) == PIECE:
                whole.append(next(pieces, b""))
            return mapping(loaded(b"".join(whole)), "the comment")
    return {}
