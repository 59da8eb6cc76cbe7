"""The bytes of a message, taken apart: a header, and as much of its payload as there is."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

from ..errors import RemoteProtocolError
from ..protocol.dialects import DIALECTS
from ..protocol.framing import Header, decode_payload, read_header
from ..protocol.layout import FieldError
from ..protocol.numbers import HEADER_SIZE, KNOWN_FLAGS, NEED_REPLY, REPLY, VERSION_MASK
from ..protocol.payloads import HEADER, U64, Mmap
from ..protocol.rules import RULES, Channel, PayloadType, Reply, Rule
from ..trace.words import in_words, values_of

Meaning = dict[str, object]
_BYTES: Final = re.compile(r"(?:[0-9a-fA-F]{2})+")


def raw_bytes(query: str) -> bytes | None:
    """The bytes that `query` spells in hexadecimal, with any of `: ,` and `0x` between; None if it is no whole header."""
    digits = re.sub(r"0x|[\s:,]", "", query)
    if len(digits) < 2 * HEADER_SIZE or not _BYTES.fullmatch(digits):
        return None
    return bytes.fromhex(digits)


def raw_meanings(data: bytes) -> list[Meaning]:
    """What a message of these bytes is: its header, then one meaning for each channel that knows its number."""
    header, payload = Header(*HEADER.unpack(data[:HEADER_SIZE])), data[HEADER_SIZE:]
    found = [_header(header, data)]
    for channel in Channel:
        if rule := RULES[channel].get(header.request):
            found.append(_message(rule, header, payload))
    return found + _older(header, payload)


def _header(header: Header, data: bytes) -> Meaning:
    flags = [f"version {header.flags & VERSION_MASK}"]
    flags += ["reply"] * bool(header.flags & REPLY) + ["need_reply"] * bool(header.flags & NEED_REPLY)
    if header.flags & ~KNOWN_FLAGS:
        flags.append(f"reserved bits {header.flags & ~KNOWN_FLAGS:#x}")
    meaning: Meaning = {"name": "header", "kind": "raw bytes", "section": "Header", "request": header.request}
    meaning |= {"flags": f"{header.flags:#x} ({', '.join(flags)})", "size": header.size}
    present = len(data) - HEADER_SIZE
    if present and present != header.size:
        meaning["fault"] = f"{present} bytes follow, the header says {header.size}"
    try:
        read_header(data[:HEADER_SIZE])
    except RemoteProtocolError as error:
        meaning["fault"] = str(error)
    return meaning


def _message(rule: Rule, header: Header, payload: bytes) -> Meaning:
    """One reading of the message. An answer may be a reply of its own or an acknowledgement: the size tells."""
    reply = bool(header.flags & REPLY)
    kind: PayloadType = rule.payload
    if reply:
        kind, own = rule.answer_of(header.size), rule.reply is Reply.OWN
        kind = kind if own or (kind and header.size in kind.SIZES) else U64
    sender = "front-end" if (rule.channel is Channel.FRONTEND) != reply else "back-end"
    meaning: Meaning = {
        "name": rule.name,
        "kind": "reply" if reply else "request",
        "channel": rule.channel.value,
        "sender": sender,
        "section": rule.section,
        "payload_type": kind.__name__ if kind else "none",
    }
    if payload:
        try:
            body = decode_payload(rule.name, kind, payload)
            meaning["payload"] = values_of(body)
            if isinstance(body, U64):
                meaning["payload_in_words"] = in_words(rule, body)
        except RemoteProtocolError as error:
            meaning["fault"] = str(error)
    return meaning


def _older(header: Header, payload: bytes) -> list[Meaning]:
    """Readings in the dialects that number shared memory differently."""
    found: list[Meaning] = []
    for dialect in DIALECTS.values():
        names = {dialect.map_id: "SHMEM_MAP", dialect.unmap_id: "SHMEM_UNMAP", dialect.config_id: "GET_SHMEM_CONFIG"}
        if dialect.speakable or header.request not in names:
            continue
        name = names[header.request]
        meaning: Meaning = {"name": name, "kind": f"request of dialect {dialect.name}", "spoken_by": dialect.spoken_by}
        unpack = {"SHMEM_MAP": dialect.unpack_map, "SHMEM_UNMAP": dialect.unpack_unmap}.get(name)
        if payload and unpack and not header.flags & REPLY:
            meaning |= _unpacked(unpack, payload)
        found.append(meaning)
    return found


def _unpacked(unpack: Callable[[bytes], Mmap], payload: bytes) -> Meaning:
    try:
        body: Mmap = unpack(payload)
    except FieldError as error:
        return {"fault": str(error)}
    return {"payload": values_of(body)}
