"""An item of a conversation as one flat JSON object: fields by the specification's names, numbers as numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from ..protocol.numbers import HEADER_SIZE, NEED_REPLY, REPLY, VERSION
from ..protocol.payloads import U64, Mmap
from ..protocol.state import Role
from .conversation import Exchange, Item
from .decoded import Decoded
from .event import Buffer, FdNote, Message, Offered, Remark, Used
from .request_fields import fields_of_answer, fields_of_request
from .requests import RAW

FORMAT: Final = 1
"""What `v` says: it changes when a name or a meaning does."""
DIRECTIONS: Final = {Role.FRONTEND: "F>B", Role.BACKEND: "B>F"}
Flat = dict[str, object]


def as_json(item: Item, *, began: int | None = None) -> Flat:
    """The object of an item; `t` are seconds since `began`, or since the epoch.

    A field of a payload whose name the object has for something else (`size`, `flags`) is `payload_size`, `payload_flags`.
    """
    head: Flat = {"v": FORMAT, "t": round((item.at - (began or 0)) / 1e9, 6), "at": item.at}
    match item:
        case Exchange():
            return head | _exchange(item)
        case Remark():
            return head | {"connection": item.connection, "event": item.about.value, "text": item.text}
        case Offered():
            return _offered(head | _ring(item, "offered"), item)
        case Used():
            return _used(head | _ring(item, "used"), item)


def _exchange(exchange: Exchange) -> Flat:
    message, request = exchange.message, exchange.request
    flat: Flat = {
        "connection": message.connection,
        "index": exchange.index,
        "dir": DIRECTIONS[message.sender],
        "channel": message.channel.value,
        "msg": request.name,
        "id": message.request,
        "flags": _flags(message),
        "size": len(message.payload),
    }
    flat |= _apart(_fields(request), flat)
    if message.fds:
        flat["fds"] = [flat_fd(fd) for fd in message.fds]
    return flat | _outcome(exchange)


def _outcome(exchange: Exchange) -> Flat:
    flat: Flat = {}
    reply = exchange.reply
    if reply:
        flat["reply"] = exchange.status if exchange.status is not None else _reply(reply)
        if reply.message.fds:
            flat["reply_fds"] = [flat_fd(fd) for fd in reply.message.fds]
    if exchange.latency is not None:
        flat["lat_us"] = _microseconds(exchange.latency)
    for name in ("refused", "unanswered", "orphan"):
        if getattr(exchange, name):
            flat[name] = True
    if exchange.waited is not None:
        flat["waited_us"] = _microseconds(exchange.waited)
    return flat | _said(exchange)


def _said(exchange: Exchange) -> Flat:
    """Faults, notes and the bytes of what is not understood."""
    flat: Flat = {}
    if exchange.faults:
        flat["faults"] = list(exchange.faults)
    if notes := [each.message.note for each in (exchange.request, exchange.reply) if each and each.message.note]:
        flat["notes"] = notes
    if exchange.request.fault:
        flat["data"] = exchange.message.data.hex()
    return flat


def _reply(reply: Decoded) -> object:
    """A reply of its own: a number where it is one, else its fields."""
    return reply.body.value if isinstance(reply.body, U64) else _plain(reply.values())


def _fields(decoded: Decoded) -> Flat:
    values = {name: _plain(value) for name, value in decoded.values().items()}
    return values | ({"writable": decoded.body.writable} if isinstance(decoded.body, Mmap) else {})


def _apart(fields: Flat, taken: Flat) -> Flat:
    return {f"payload_{name}" if name in taken else name: value for name, value in fields.items()}


def _plain(value: object) -> object:
    """A value as JSON has it: bytes in hexadecimal."""
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, Mapping):
        return {str(name): _plain(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_plain(each) for each in value]
    return value


def _flags(message: Message) -> list[str]:
    if not message.whole or len(message.data) < HEADER_SIZE:
        return []
    names = ["reply"] * bool(message.flags & REPLY) + ["need_reply"] * bool(message.flags & NEED_REPLY)
    return names if message.flags & ~(REPLY | NEED_REPLY) == VERSION else [*names, hex(message.flags)]


def flat_fd(fd: FdNote) -> Flat:
    """An fd as an object."""
    flat: Flat = {"n": fd.number, "kind": fd.kind, "path": fd.path, "dev": fd.dev, "ino": fd.ino, "size": fd.size}
    return flat | {"access": fd.access} | ({"seals": list(fd.seals)} if fd.seals else {})


def _ring(item: Offered | Used, event: str) -> Flat:
    kind = {"kind": item.kind} if item.kind not in ("", RAW) else {}
    return {"connection": item.connection, "event": event, "queue": item.queue, "head": item.head, **kind}


def _offered(flat: Flat, item: Offered) -> Flat:
    flat |= {"buffers": [_buffer(each) for each in item.buffers], **_start(item.start)}
    return flat | _apart(fields_of_request(item), flat)


def _used(flat: Flat, item: Used) -> Flat:
    """With the fields of its request; those of the answer are apart, for many have the same names."""
    flat |= {"written": item.written, **_start(item.start)}
    if item.after >= 0:
        flat["lat_us"] = _microseconds(item.after)
    answer = fields_of_answer(item)
    flat |= _apart(fields_of_request(item.asked), flat)
    if "status" in answer:
        flat["status"] = answer.pop("status")
    return flat | ({"answer": answer} if answer else {})


def _buffer(buffer: Buffer) -> Flat:
    return {"address": buffer.address, "len": buffer.len, "writable": buffer.writable}


def _start(start: bytes) -> Flat:
    return {"start": start.hex()} if start else {}


def _microseconds(nanoseconds: int) -> float:
    return nanoseconds / 1000
