"""Captures in pcapng, read as a stream: ours, and ours as others saved them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, Final

from .blocks import COMMENT, INTERFACE, LARGEST_BLOCK, PACKET, SECTION, Block, Options, read_blocks
from .capture_error import CaptureError, EndsEarly
from .event import Event, Message, Remark, Remarkable
from .exported import (
    DIRECTION,
    DISSECTORS,
    EPB_FLAGS,
    EVENTS,
    FLAGS,
    IF_TSOFFSET,
    IF_TSRESOL,
    INTERFACE_HEAD,
    LARGEST_DATA,
    LINK_TYPE,
    OURS,
    PACKET_HEAD,
    PIECE,
    exported,
)
from .records import LARGEST, Record, event_of, fds_of, mapping, text
from .stream import loaded

MOST_INTERFACES: Final = 1024
"""Of a section."""
_MICROSECONDS: Final = 6
_KINDS: Final = {name: kind for kind, name in DISSECTORS.items()}
_SENDERS: Final = {flag: role for role, flag in FLAGS.items()}


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
        end = PACKET_HEAD.size + _captured(block)
        options = block.options(end + -end % 4)
        at = interface.at(block.number(4, 4) << 32 | block.number(8, 4))
        try:
            return self._event_of(at, options, block.body[PACKET_HEAD.size : end], block)
        except CaptureError as error:
            raise block.fault(str(error)) from None

    def _event_of(self, at: int, options: Options, data: bytes, block: Block) -> Event | None:
        if not 0 <= at <= LARGEST:
            raise CaptureError(f"its time, {at} ns, is out of range")
        dissector, connection, data = exported(data)
        if dissector == EVENTS:
            return self._piece(data)
        return _message(at, connection, options, dissector, data, block) if dissector in _KINDS else None

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


def _captured(block: Block) -> int:
    """Bytes of the packet, all of them."""
    captured, length = block.number(12, 4), block.number(16, 4)
    if PACKET_HEAD.size + captured > len(block.body):
        raise block.fault(f"{captured} bytes of packet pass its end")
    if captured < length:
        raise block.fault(f"only {captured} of {length} bytes were kept of the packet")
    return captured


def _interface(block: Block) -> _Interface:
    options = dict(block.options(INTERFACE_HEAD.size))
    resolution = options.get(IF_TSRESOL, bytes([_MICROSECONDS]))
    offset = options.get(IF_TSOFFSET, bytes(8))
    if len(resolution) != 1 or len(offset) != 8:
        raise block.fault("its clock is described by a wrong number of bytes")
    power = resolution[0] & 0x7F
    per_second = 2**power if resolution[0] & 0x80 else 10**power
    return _Interface(block.number(0, 2), per_second, int.from_bytes(offset, block.order, signed=True))


def _message(at: int, connection: int, options: Options, dissector: str, data: bytes, block: Block) -> Message:
    channel, whole = _KINDS[dissector]
    flags = next((int.from_bytes(value[:4], block.order) for code, value in options if code == EPB_FLAGS), 0)
    if flags & DIRECTION not in _SENDERS:
        raise CaptureError("its flags do not say which way it went")
    remarks = _remarks(options)
    note = text(remarks, "note") if "note" in remarks else ""
    fds = fds_of(remarks) if "fds" in remarks else ()
    return Message(at, connection, channel, _SENDERS[flags & DIRECTION], data, fds, whole, note)


def _remarks(options: Options) -> Record:
    """What our comment says; those of others are not ours to read."""
    pieces = iter(value for code, value in options if code == COMMENT)
    for piece in pieces:
        if piece.startswith(OURS):
            whole = [piece]
            while len(whole[-1]) == PIECE:
                whole.append(next(pieces, b""))
            return mapping(loaded(b"".join(whole)), "the comment")
    return {}
