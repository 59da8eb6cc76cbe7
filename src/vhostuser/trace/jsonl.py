"""Captures as JSON Lines: one line an event, for `jq` and for people; read back exactly.

`raw` and the names of `records` are the event. The rest (`t`, `msg`, `flags`, `fields`, `kind`, `answer`, ...) is what they
mean, for whoever does not decode. `capture.schema.json`, in this package, describes a line.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import BinaryIO, Final

from ..protocol.numbers import NEED_REPLY, REPLY
from .capture_error import CaptureError, EndsEarly
from .event import Event, Message, Offered, Remark, Remarkable, Used
from .meaning import understood
from .pairing import Pairing
from .records import Record, event_of, mapping, record_of
from .request_fields import fields_of_answer, fields_of_request
from .requests import RAW
from .stream import loaded, put

VERSION: Final = 1
"""Of the format: a reader takes no line of another one."""
LONGEST: Final = 16 << 20
"""Bytes of a line."""
_FLAGS: Final = {REPLY: "reply", NEED_REPLY: "need_reply"}


class JsonlWriter:
    """Writes events to a file, which it owns. Each is there, whole, when `write` returns."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._began: int | None = None
        self._count, self._pairing = 0, Pairing()

    def write(self, event: Event) -> None:
        """Add an event. CaptureError if it can't be written, after which nothing more should be."""
        if self._began is None:
            self._began = event.at
        record: Record = {"v": VERSION, "t": round((event.at - self._began) / 1e9, 9), **record_of(event)}
        match event:
            case Message():
                record |= _meaning(event, self._count)
            case Offered() | Used():
                record |= _ring_meaning(self._pairing.of(event))
        self._count += 1
        line = json.dumps(record, separators=(",", ":")).encode() + b"\n"
        if len(line) >= LONGEST:
            raise CaptureError(f"an event of {len(line)} bytes is more than a line takes, {LONGEST}")
        put(self._file, line)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _meaning(message: Message, index: int) -> Record:
    """What a message says, for people."""
    known = understood(message, index)
    header = {"msg": known.name, "id": message.request, "flags": _flags(message.flags), "size": len(message.payload)}
    fault = {"fault": known.fault} if known.fault else {}
    return header | {"fields": _plain(known.values())} | fault


def _ring_meaning(event: Offered | Used) -> Record:
    """What a request in a ring says, and its answer, for people; nothing where nobody knows what device that is."""
    if event.kind == RAW:
        return {}
    if isinstance(event, Offered):
        return {"kind": event.kind, "fields": fields_of_request(event)}
    return {"kind": event.kind, "fields": fields_of_request(event.asked), "answer": fields_of_answer(event)}


def _flags(flags: int) -> list[str]:
    return [name for bit, name in _FLAGS.items() if flags & bit]


def _plain(value: object) -> object:
    """A value as JSON has it: bytes in hexadecimal."""
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, dict):
        return {str(name): _plain(each) for name, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, list) else value


def read_jsonl(file: BinaryIO) -> Iterator[Event]:
    """The events of a capture, as they come. CaptureError says what is wrong where.

    A capture whose last line is not whole, since who wrote it was killed, gives all events before that, and a remark.
    """
    last, offset, number = 0, 0, 0
    while line := file.readline(LONGEST):
        number += 1
        try:
            event = _event(line)
        except CaptureError as error:
            if line.endswith(b"\n") or number == 1:
                raise CaptureError(f"line {number}, at offset {offset}: {error}") from None
            yield Remark(last, 0, Remarkable.LOST, str(EndsEarly("line", offset)))
            return
        offset += len(line)
        if event is not None:
            last = event.at
            yield event


def _event(line: bytes) -> Event | None:
    """The event of a line; an empty line is none."""
    if not line.strip():
        return None
    if len(line) >= LONGEST:
        raise CaptureError(f"more than {LONGEST} bytes")
    record = mapping(loaded(line), "the line")
    if record.get("v") != VERSION:
        raise CaptureError(f"version {ascii(record.get('v'))[:40]} of the format, this program reads {VERSION}")
    return event_of(record)
