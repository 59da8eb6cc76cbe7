"""The fields of requests in rings, and of their answers, by name: numbers and texts, for filters and JSON."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Final

from ..fuse import structs as s
from ..fuse.rules import IN_HEADER_SIZE, OUT_HEADER_SIZE, RULES
from ..protocol.layout import Payload
from ..virtio.block import HEADER, RANGE, BlockRequest
from .event import Offered, Used
from .requests import BLK, FS, OPCODES, STATUSES, TYPES, out_header

Fields = dict[str, object]
_RANGES: Final = (BlockRequest.DISCARD, BlockRequest.WRITE_ZEROES, BlockRequest.SECURE_ERASE)


def fields_of_request(offered: Offered | None) -> Fields:
    """`type` `sector` `bytes` of a disk; `opcode` `unique` `nodeid` `names` and the arguments of a shared directory."""
    return _REQUESTS[offered.kind](offered) if offered and offered.kind in _REQUESTS else {}


def fields_of_answer(used: Used) -> Fields:
    """`status`, which is OK or the name of an error, and the fields of the answer."""
    return _ANSWERS[used.kind](used) if used.kind in _ANSWERS else {}


def argument_names() -> list[str]:
    """The numbers of all arguments and answers of FUSE, by name."""
    layouts = [layout for rule in RULES.values() for layout in (rule.arguments, rule.result) if layout]
    return sorted({name for layout in layouts for name in _numbers(layout, bytes(layout.STRUCT.size))})


def _blk_request(offered: Offered) -> Fields:
    if len(offered.start) < HEADER.size:
        return {}
    kind, _, sector = HEADER.unpack_from(offered.start)
    fields: Fields = {"type": TYPES[kind].name if kind in TYPES else f"TYPE_{kind}"}
    readable = sum(each.len for each in offered.buffers if not each.writable) - HEADER.size
    writable = sum(each.len for each in offered.buffers if each.writable) - 1
    fields["bytes"] = max(0, readable if kind == BlockRequest.OUT or kind in _RANGES else writable)
    if kind in (BlockRequest.IN, BlockRequest.OUT):
        fields["sector"] = sector
    if kind in _RANGES:
        fields["ranges"] = _ranges(offered.start[HEADER.size :])
    return fields


def _ranges(data: bytes) -> list[Fields]:
    """Those of a discard that are known."""
    whole = data[: len(data) // RANGE.size * RANGE.size]
    rows = RANGE.iter_unpack(whole)
    return [{"sector": first, "sectors": count, "unmap": bool(flags & 1)} for first, count, flags in rows]


def _blk_answer(used: Used) -> Fields:
    return {"status": STATUSES.get(used.end[0], f"status {used.end[0]}")} if used.end else {}


def _fs_request(offered: Offered) -> Fields:
    if len(offered.start) < IN_HEADER_SIZE:
        return {}
    header = s.InHeader(*s.InHeader.STRUCT.unpack_from(offered.start))
    known = OPCODES.get(header.opcode)
    fields: Fields = {"opcode": known.name if known else f"OPCODE_{header.opcode}"}
    fields |= {"unique": header.unique, "nodeid": header.nodeid}
    rule, body = RULES.get(known) if known else None, offered.start[IN_HEADER_SIZE : header.len]
    if rule is None:
        return fields
    start = rule.arguments.STRUCT.size if rule.arguments else 0
    if rule.arguments:
        fields |= _numbers(rule.arguments, body)
    names = body[start:].split(b"\0")[: rule.names]
    return fields | ({"names": [name.decode(errors="backslashreplace") for name in names]} if rule.names else {})


def _numbers(layout: type[Payload], data: bytes) -> Fields:
    """The fields of a struct that are numbers, and no padding, as far as the data goes."""
    size = layout.STRUCT.size
    body = layout(*layout.STRUCT.unpack(data[:size].ljust(size, b"\0")))
    there = [field.name for field in layout.FIELDS if field.offset + field.size <= len(data)]
    values = ((name, getattr(body, name)) for name in there if not name.startswith("padding"))
    return {name: value for name, value in values if isinstance(value, int)}


def _fs_answer(used: Used) -> Fields:
    header = out_header(used.asked, used)
    if header is None:
        return {}
    if header.error:
        return {"status": errno.errorcode.get(-header.error, f"error {header.error}")}
    return {"status": "OK"} | _result(used.asked, used.start[OUT_HEADER_SIZE : header.len])


def _result(asked: Offered | None, data: bytes) -> Fields:
    """The struct of an answer, if its request is known."""
    opcode = asked.start[4:8] if asked and len(asked.start) >= IN_HEADER_SIZE else b""
    known = OPCODES.get(int.from_bytes(opcode, "little")) if opcode else None
    result = RULES[known].result if known in RULES else None
    return _numbers(result, data) if result and data else {}


_REQUESTS: Final[dict[str, Callable[[Offered], Fields]]] = {BLK: _blk_request, FS: _fs_request}
_ANSWERS: Final[dict[str, Callable[[Used], Fields]]] = {BLK: _blk_answer, FS: _fs_answer}
