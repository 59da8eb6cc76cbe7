"""A message understood: its row, its body, its fields; or why it is not what it should be."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import RemoteProtocolError
from ..protocol.framing import decode_payload, read_header
from ..protocol.layout import Payload
from ..protocol.numbers import HEADER_SIZE, REPLY, FrontendRequest
from ..protocol.payloads import U64, Config, CryptoSession, MemoryTable, ShmemConfig, XenMemoryTable
from ..protocol.rules import RULES, Channel, PayloadType, Rule
from ..protocol.state import Owed
from .event import Message


@dataclass(frozen=True, slots=True)
class Decoded:
    """A message of a capture, and what it says."""

    message: Message
    index: int
    """Which event of the capture it is, from 0."""
    rule: Rule | None
    """Its row; None if its number is unknown, or it is no message."""
    name: str
    """SHMEM_MAP, `request 77`, or `bytes` of what is no message."""
    body: Payload | None
    """Its payload; None if it has none, or there is a fault."""
    fault: str = ""
    """Why it is not as the specification declares it; empty if it is."""

    def values(self) -> dict[str, object]:
        """The payload's fields by the specification's names: numbers, bytes, lists and dictionaries of them."""
        return fields_of(self.body)


def decoded(message: Message, index: int, *, features: int = 0, owed: Owed = Owed.ACK, postcopy: bool = False) -> Decoded:
    """What `message` says, where the protocol features `features` (a mask) were negotiated.

    A message against the direction of its channel's requests is a reply: an acknowledgement, or one of its own (`owed`).
    """
    if not message.whole:
        return Decoded(message, index, None, "bytes", None, f"{len(message.data)} bytes that are no message")
    rule = RULES[message.channel].get(message.request)
    name = rule.name if rule else f"request {message.request}"
    if fault := _header_fault(message):
        return Decoded(message, index, rule, name, None, fault)
    if rule is None:
        return _unknown(message, index, name)
    payload = (
        rule.payload_under(features)
        if message.asks
        else U64
        if owed is not Owed.OWN
        else rule.answer_of(len(message.payload))
    )
    if _may_be_empty(message, postcopy=postcopy):
        return Decoded(message, index, rule, name, None)
    return _understood(message, index, rule, payload)


def _understood(message: Message, index: int, rule: Rule, payload: PayloadType) -> Decoded:
    try:
        return Decoded(message, index, rule, rule.name, decode_payload(rule.name, payload, message.payload))
    except RemoteProtocolError as error:
        return Decoded(message, index, rule, rule.name, None, str(error))


def _unknown(message: Message, index: int, name: str) -> Decoded:
    """A request that no table has; its answer, if it is one, is an acknowledgement."""
    if not message.asks and len(message.payload) == U64.STRUCT.size:
        return Decoded(message, index, None, name, U64.unpack(message.payload))
    return Decoded(message, index, None, name, None, f"{name} is unknown on the {message.channel.value} channel")


def _header_fault(message: Message) -> str:
    """What is wrong with the header, as the receiver would say it."""
    if len(message.data) < HEADER_SIZE:
        return f"{len(message.data)} bytes are no header, which has {HEADER_SIZE}"
    try:
        header = read_header(message.data[:HEADER_SIZE])
    except RemoteProtocolError as error:
        return str(error)
    if header.size != len(message.payload):
        return f"the header says {header.size} bytes of payload, there are {len(message.payload)}"
    if bool(header.flags & REPLY) == message.asks:
        return f"flags {header.flags:#x}: a {'request with' if message.asks else 'reply without'} the reply flag"
    return ""


def _may_be_empty(message: Message, *, postcopy: bool) -> bool:
    """GET_CONFIG's way to say no, and SET_MEM_TABLE's answer to a reply in postcopy, are empty."""
    if message.payload:
        return False
    if message.asks:
        return postcopy and message.request == FrontendRequest.SET_MEM_TABLE
    return message.channel is Channel.FRONTEND and message.request == FrontendRequest.GET_CONFIG


def fields_of(body: Payload | None) -> dict[str, object]:
    """The fields of a payload by name; numbers as numbers."""
    match body:
        case None:
            return {}
        case MemoryTable() | XenMemoryTable():
            return {"num_regions": len(body.regions), "regions": [fields_of(region) for region in body.regions]}
        case ShmemConfig():
            return {"num_regions": len(body.sizes), "sizes": {str(shmid): size for shmid, size in body.sizes.items()}}
        case CryptoSession():
            return {"data": body.data}
    values: dict[str, object] = {field.name: getattr(body, field.name) for field in type(body).FIELDS}
    return values | ({"payload": body.payload} if isinstance(body, Config) else {})
