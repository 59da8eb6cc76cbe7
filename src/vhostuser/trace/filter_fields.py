"""What a filter may ask of an item: words that are true or not, and fields that are compared."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final

from ..fuse.numbers import Opcode
from ..protocol.layout import Payload
from ..protocol.numbers import NEED_REPLY, VRING_INDEX_MASK
from ..protocol.numbers import FrontendRequest as Q
from ..protocol.payloads import U64, MemoryTable, ShmemConfig, VringAddr, VringState, XenMemoryTable
from ..protocol.rules import RULES, Channel, Rule
from ..protocol.state import Owed, Role
from .conversation import Exchange, Item
from .event import FdNote, Offered, Remark, Remarkable, Used
from .request_fields import argument_names, fields_of_answer, fields_of_request
from .words import layout_of

Values = Sequence[int | str]
Reader = Callable[[Item], Values]
"""The values of a field in an item; empty if it has no such field."""
Test = Callable[[Item], bool]
_NONE: Final[tuple[int, ...]] = ()
_RING_FDS: Final = frozenset({Q.SET_VRING_KICK, Q.SET_VRING_CALL, Q.SET_VRING_ERR})


class Kind(Enum):
    """What a field is compared with."""

    NUMBER = "a number such as 4096, 0x1000 or 4K"
    TIME = "a time such as 100us, 2.5ms or 1s"
    TEXT = "a name, in which * and ? stand for any"
    REQUEST = "a request such as SHMEM_MAP or SET_VRING_*, or its number"
    SIDE = "front-end or back-end"
    ANSWER = "a number, or an errno such as EINVAL"
    NAMED = "a name such as READ or IN, or a number"


@dataclass(frozen=True, slots=True)
class Asked:
    """A field: what it is compared with, what it is, and how it is read."""

    kind: Kind
    what: str
    read: Reader


def _exchange(read: Callable[[Exchange], Values]) -> Reader:
    """A field that only messages have."""
    return lambda item: read(item) if isinstance(item, Exchange) else _NONE


def _connection(item: Item) -> Values:
    return (item.message.connection if isinstance(item, Exchange) else item.connection,)


def _latency(item: Item) -> Values:
    """Until the reply, or until nobody waited for it any more; of a ring's request, until it came back."""
    if isinstance(item, Exchange):
        found = item.latency if item.latency is not None else item.waited
        return () if found is None else (found,)
    return (item.after,) if isinstance(item, Used) and item.after >= 0 else ()


def _queue(item: Item) -> Values:
    """Which queue a request of a ring, or a message about a ring, belongs to."""
    if isinstance(item, Offered | Used):
        return (item.queue,)
    body = item.request.body if isinstance(item, Exchange) else None
    match body:
        case VringState() | VringAddr():
            return (body.index,)
        case U64() if isinstance(item, Exchange) and _is_ring_fd(item):
            return (body.value & VRING_INDEX_MASK,)
    return ()


def _is_ring_fd(exchange: Exchange) -> bool:
    return exchange.message.channel is Channel.FRONTEND and exchange.message.request in _RING_FDS


def _answer(exchange: Exchange) -> Values:
    body = exchange.reply.body if exchange.reply else None
    return (body.value,) if isinstance(body, U64) else ()


def _fds(exchange: Exchange) -> Iterator[FdNote]:
    yield from exchange.message.fds
    if exchange.reply:
        yield from exchange.reply.message.fds


def _head(item: Item) -> Values:
    return (item.head,) if isinstance(item, Offered | Used) else ()


def _bytes(item: Item) -> Values:
    """Of a message; of a disk's request, its data."""
    return (len(item.message.data),) if isinstance(item, Exchange) else _ring_values(item, "bytes")


def _ring_values(item: Item, name: str) -> list[int | str]:
    """A field of a request in a ring, or of its answer; an answer has those of its request, too."""
    match item:
        case Offered():
            found = [fields_of_request(item).get(name)]
        case Used():
            found = [fields_of_request(item.asked).get(name), fields_of_answer(item).get(name)]
        case _:
            return []
    return [value for value in found if isinstance(value, int | str)]


def _in_ring(name: str) -> Reader:
    return lambda item: _ring_values(item, name)


def _listed(item: Item, name: str) -> list[object]:
    """What a request in a ring has several of."""
    asked = item if isinstance(item, Offered) else item.asked if isinstance(item, Used) else None
    found = fields_of_request(asked).get(name, ())
    return found if isinstance(found, list) else []


def _sector(item: Item) -> Values:
    ranges = [each["sector"] for each in _listed(item, "ranges") if isinstance(each, dict)]
    return [*_ring_values(item, "sector"), *ranges]


def _opcode(item: Item) -> Values:
    """By name and by number."""
    names = _ring_values(item, "opcode")
    return [*names, *(int(Opcode[name]) for name in names if isinstance(name, str) and name in Opcode.__members__)]


def _type(item: Item) -> Values:
    """Words of a disk's requests; numbers of IOTLB messages."""
    if isinstance(item, Exchange):
        return _of(item.request.body, "type")
    return [each for each in _ring_values(item, "type") if isinstance(each, str)]


def _of(body: Payload | None, name: str) -> list[int] | list[str]:
    match body:
        case MemoryTable() | XenMemoryTable():
            if name == "num_regions":
                return [len(body.regions)]
            return [value for region in body.regions if isinstance(value := getattr(region, name, None), int)]
        case ShmemConfig():
            return [len(body.sizes)] if name == "num_regions" else list(body.sizes.values()) if name == "sizes" else []
    value = getattr(body, name, None)
    if isinstance(value, bytes):
        return [value.hex()]
    return [value] if isinstance(value, int) else []


def _kind(item: Item) -> Values:
    return (item.kind,) if isinstance(item, Offered | Used) else ()


def _other(exchange: Exchange) -> str:
    """Whom a message goes to."""
    return "back-end" if exchange.message.sender is Role.FRONTEND else "front-end"


OWN: Final[dict[str, Asked]] = {
    "request": Asked(Kind.REQUEST, "the name of the message", _exchange(lambda found: (found.request.name,))),
    "id": Asked(Kind.NUMBER, "the number of the request", _exchange(lambda found: (found.message.request,))),
    "channel": Asked(Kind.SIDE, "who sends requests there", _exchange(lambda found: (found.message.channel.value,))),
    "from": Asked(Kind.SIDE, "who sent the request", _exchange(lambda found: (found.message.sender.value,))),
    "to": Asked(Kind.SIDE, "whom it was sent to", _exchange(lambda found: (_other(found),))),
    "connection": Asked(Kind.NUMBER, "counted from 0", _connection),
    "event": Asked(Kind.NUMBER, "the place in the capture, from 0", _exchange(lambda found: (found.index,))),
    "queue": Asked(Kind.NUMBER, "of a ring's request, or of a message about a ring", _queue),
    "latency": Asked(Kind.TIME, "until the answer", _latency),
    "reply": Asked(Kind.ANSWER, "the number in the answer", _exchange(_answer)),
    "fds": Asked(Kind.NUMBER, "how many came, with the answer's", _exchange(lambda found: (sum(1 for _ in _fds(found)),))),
    "path": Asked(Kind.TEXT, "of an fd", _exchange(lambda found: [fd.path for fd in _fds(found)])),
    "ino": Asked(Kind.NUMBER, "the inode of an fd", _exchange(lambda found: [fd.ino for fd in _fds(found)])),
    "bytes": Asked(Kind.NUMBER, "of the request with its header; of a disk's request, of its data", _bytes),
    "head": Asked(Kind.NUMBER, "the id of a ring's request", _head),
    "written": Asked(Kind.NUMBER, "bytes the device wrote", lambda item: (item.written,) if isinstance(item, Used) else ()),
    "kind": Asked(Kind.TEXT, "the device of a ring (blk, fs, raw)", _kind),
    "type": Asked(Kind.NAMED, "of a disk's request; of an IOTLB message", _type),
    "sector": Asked(Kind.NUMBER, "of a disk's request", _sector),
    "opcode": Asked(Kind.NAMED, "of a FUSE request", _opcode),
    "unique": Asked(Kind.NUMBER, "the id of a FUSE request", _in_ring("unique")),
    "nodeid": Asked(Kind.NUMBER, "of a FUSE request, or of its answer", _in_ring("nodeid")),
    "name": Asked(Kind.TEXT, "in a FUSE request", lambda item: [str(each) for each in _listed(item, "names")]),
    "status": Asked(Kind.TEXT, "of a ring's answer (OK, IOERR, ENOENT)", _in_ring("status")),
}
"""Fields of items; those of payloads, and of FUSE's arguments and answers, are besides them."""


def _payload_fields() -> dict[str, Kind]:
    """The fields of all payloads by name: those of bytes are compared as text, in hexadecimal."""
    rules = [rule for rules in RULES.values() for rule in rules.values()]
    layouts = [layout_of(payload) for rule in rules for payload in _payloads(rule)]
    tables = [layout_of(payload._region) for payload in (MemoryTable, XenMemoryTable)]
    fields = [field for layout in [*layouts, *tables] for field in layout if "Region" not in field.type]
    return {each.name: Kind.TEXT if each.type.startswith("u8[") else Kind.NUMBER for each in fields if each.name not in OWN}


def _payloads(rule: Rule) -> list[type[Payload]]:
    found = [rule.payload, rule.answer, *(payload for _, payload in rule.variants)]
    return [payload for payload in found if payload is not None]


PAYLOAD: Final = _payload_fields()
ARGUMENTS: Final = {name: Kind.NUMBER for name in argument_names() if name not in OWN}
"""Fields of FUSE requests and answers."""
NAMED: Final = {**ARGUMENTS, **PAYLOAD}
"""Both."""


def field_reader(name: str) -> Reader:
    """Reads a field of a FUSE request, or of a payload: of a reply of its own, too, and of all regions of a table."""

    def read(item: Item) -> Values:
        if not isinstance(item, Exchange):
            return _ring_values(item, name)
        found = _of(item.request.body, name)
        if item.owed is Owed.OWN and item.reply:
            return [*found, *_of(item.reply.body, name)]
        return found

    return read


def _message(test: Callable[[Exchange], bool]) -> Test:
    return lambda item: isinstance(item, Exchange) and test(item)


def _wrong(item: Item) -> bool:
    if isinstance(item, Exchange):
        return item.refused or item.unanswered or item.orphan or bool(item.faults)
    return isinstance(item, Remark) and item.about in (Remarkable.BROKEN, Remarkable.LOST)


def _changed(exchange: Exchange) -> bool:
    return bool(exchange.message.note or (exchange.reply and exchange.reply.message.note))


WORDS: Final[dict[str, tuple[str, Test]]] = {
    "refused": ("the peer said no", _message(lambda found: found.refused)),
    "unanswered": ("a reply was owed and did not come", _message(lambda found: found.unanswered)),
    "malformed": ("not as the specification declares it", _message(lambda found: bool(found.faults))),
    "orphan": ("a reply that answers nothing", _message(lambda found: found.orphan)),
    "error": ("any of these, or the stream broke", _wrong),
    "need_reply": ("an acknowledgement is wanted", _message(lambda found: bool(found.message.flags & NEED_REPLY))),
    "altered": ("changed, delayed or dropped on its way", _message(_changed)),
    "message": ("a message, with its answer", lambda item: isinstance(item, Exchange)),
    "remark": ("a connection opened, closed, broke", lambda item: isinstance(item, Remark)),
    "offered": ("a request put into a ring", lambda item: isinstance(item, Offered)),
    "used": ("a request given back", lambda item: isinstance(item, Used)),
}
"""Words that are true of an item or not."""
