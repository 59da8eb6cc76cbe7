"""An event as a record of plain names, numbers and texts, as JSON has them; and back, exactly.

What a record holds besides is for people: nothing is read from it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, TypeVar

from ..protocol.rules import Channel
from ..protocol.state import Role
from .capture_error import CaptureError
from .event import Buffer, Event, FdNote, Message, Offered, Remark, Remarkable, Used

Record = dict[str, object]
LARGEST: Final = (1 << 64) - 1
"""No number of a capture is larger."""
DIRECTIONS: Final = {Role.FRONTEND: "F>B", Role.BACKEND: "B>F"}
"""Who sent a message."""
_T = TypeVar("_T")
_SENDERS: Final = {direction: role for role, direction in DIRECTIONS.items()}
_CHANNELS: Final = {channel.value: channel for channel in Channel}
_ABOUT: Final = {about.value: about for about in Remarkable}


def record_of(event: Event) -> Record:
    """All that is in an event."""
    start: Record = {"at": event.at, "connection": event.connection}
    match event:
        case Message():
            return {"event": "message"} | start | _of_message(event)
        case Offered():
            buffers = [[buffer.address, buffer.len, buffer.writable] for buffer in event.buffers]
            ring = {"queue": event.queue, "head": event.head, "buffers": buffers, "start": event.start.hex()}
            return {"event": "offered"} | start | ring
        case Used():
            ring = {"queue": event.queue, "head": event.head, "written": event.written, "start": event.start.hex()}
            return {"event": "used"} | start | ring | {"end": event.end.hex(), "after": event.after}
        case Remark():
            return {"event": "remark"} | start | {"about": event.about.value, "text": event.text}


def _of_message(message: Message) -> Record:
    return {
        "channel": message.channel.value,
        "dir": DIRECTIONS[message.sender],
        "fds": [record_of_fd(fd) for fd in message.fds],
        "whole": message.whole,
        "note": message.note,
        "raw": message.data.hex(),
    }


def record_of_fd(fd: FdNote) -> Record:
    """All that is known of an fd."""
    return {
        "n": fd.number,
        "kind": fd.kind,
        "path": fd.path,
        "dev": fd.dev,
        "ino": fd.ino,
        "size": fd.size,
        "access": fd.access,
        "seals": list(fd.seals),
    }


def event_of(found: object) -> Event:
    """The event of which `found`, as it was read, is the record. CaptureError says which field is wrong."""
    record = mapping(found, "the event")
    make = _MAKERS.get(text(record, "event"))
    if make is None:
        raise CaptureError(f"event {text(record, 'event')[:40]!a} is none of {', '.join(_MAKERS)}")
    return make(record, number(record, "at"), number(record, "connection"))


def _a_message(record: Record, at: int, connection: int) -> Message:
    channel, sender = _one_of(record, "channel", _CHANNELS), _one_of(record, "dir", _SENDERS)
    rest = fds_of(record), flag(record, "whole"), text(record, "note")
    return Message(at, connection, channel, sender, octets(record, "raw"), *rest)


def _an_offer(record: Record, at: int, connection: int) -> Offered:
    buffers = tuple(map(_a_buffer, _items(record, "buffers")))
    return Offered(at, connection, number(record, "queue"), number(record, "head"), buffers, octets(record, "start"))


def _a_buffer(found: object) -> Buffer:
    match found:
        case [address, length, bool(writable)]:
            pair: Record = {"address": address, "len": length}
            return Buffer(number(pair, "address"), number(pair, "len"), writable)
    raise CaptureError("a buffer is not [address, len, writable]")


def _a_use(record: Record, at: int, connection: int) -> Used:
    ring = number(record, "queue"), number(record, "head"), number(record, "written")
    seen = octets(record, "start"), octets(record, "end"), number(record, "after", least=-1)
    return Used(at, connection, *ring, *seen)


def _a_remark(record: Record, at: int, connection: int) -> Remark:
    return Remark(at, connection, _one_of(record, "about", _ABOUT), text(record, "text"))


_MAKERS: Final[dict[str, Callable[[Record, int, int], Event]]] = {
    "message": _a_message,
    "offered": _an_offer,
    "used": _a_use,
    "remark": _a_remark,
}


def fds_of(record: Record) -> tuple[FdNote, ...]:
    """The fds of a message's record."""
    return tuple(_an_fd(mapping(each, "an fd")) for each in _items(record, "fds"))


def _an_fd(fd: Record) -> FdNote:
    seals = tuple(text({"seal": seal}, "seal") for seal in _items(fd, "seals"))
    file = number(fd, "dev"), number(fd, "ino"), number(fd, "size")
    return FdNote(number(fd, "n"), text(fd, "kind"), text(fd, "path"), *file, text(fd, "access"), seals)


def number(record: Record, name: str, *, least: int = 0) -> int:
    """A field that is a number from `least` to LARGEST."""
    value = _field(record, name)
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= LARGEST:
        raise CaptureError(f"{name} is {_shown(value)}, must be a number from {least} to {LARGEST}")
    return value


def text(record: Record, name: str) -> str:
    """A field that is text."""
    value = _field(record, name)
    if not isinstance(value, str):
        raise CaptureError(f"{name} is {_shown(value)}, must be text")
    return value


def flag(record: Record, name: str) -> bool:
    """A field that is true or false."""
    value = _field(record, name)
    if not isinstance(value, bool):
        raise CaptureError(f"{name} is {_shown(value)}, must be true or false")
    return value


def octets(record: Record, name: str) -> bytes:
    """A field that is bytes, in hexadecimal."""
    value = text(record, name)
    try:
        return bytes.fromhex(value)
    except ValueError:
        raise CaptureError(f"{name} is {_shown(value)}, must be bytes in hexadecimal") from None


def _one_of(record: Record, name: str, known: Mapping[str, _T]) -> _T:
    value = text(record, name)
    if value not in known:
        raise CaptureError(f"{name} is {_shown(value)}, must be one of {', '.join(known)}")
    return known[value]


def _items(record: Record, name: str) -> list[object]:
    value = _field(record, name)
    if not isinstance(value, list):
        raise CaptureError(f"{name} is {_shown(value)}, must be a list")
    return value


def mapping(found: object, what: str) -> Record:
    """`found`, which must be an object of JSON."""
    if not isinstance(found, dict):
        raise CaptureError(f"{what} is {_shown(found)}, must be an object")
    return found


def _field(record: Record, name: str) -> object:
    if name not in record:
        raise CaptureError(f"there is no {name}")
    return record[name]


def _shown(value: object) -> str:
    """A value of a stranger's, short and harmless."""
    return ascii(value)[:40] if isinstance(value, str | int | float | None) else f"a {type(value).__name__}"
