"""What a request of a disk or of a shared directory says, and its answer, in words; of others only how long they are.

No message says what kind of device it is: `kind` is told, or guessed from what a request looks like.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Final

from ..fuse import structs as s
from ..fuse.numbers import Opcode
from ..fuse.rules import IN_HEADER_SIZE, OUT_HEADER_SIZE, RULES, Rule
from ..limited_log import printable
from ..protocol.layout import Payload
from ..virtio.block import HEADER, ID_SIZE, RANGE, SECTOR, BlockRequest, BlockStatus
from .event import Offered, Used

BLK: Final = "blk"
FS: Final = "fs"
RAW: Final = "raw"
KINDS: Final = (BLK, FS, RAW)
LONGEST_NAME: Final = 64
"""Characters that are shown of a name."""
OPCODES: Final = {int(each): each for each in Opcode}
TYPES: Final = {int(each): each for each in BlockRequest}
STATUSES: Final = {int(each): each.name for each in BlockStatus}
"""Of FUSE, and of disks: requests, and what the last byte of an answer says."""
_LARGE: Final = 1 << 32
"""What is above is shown in hexadecimal."""


def words_of(event: Offered | Used) -> str:
    """What an event says, as far as its conversation knows."""
    if isinstance(event, Used):
        return answer_words(event.asked, event, event.kind)
    return request_words(event, event.kind)


def request_words(offered: Offered, kind: str) -> str:
    """What the driver wants, on one line that no terminal obeys."""
    return _REQUESTS.get(kind, _raw_request)(offered)


def answer_words(offered: Offered | None, used: Used, kind: str) -> str:
    """What the device answered; `offered` is the request, if it was seen."""
    return _ANSWERS.get(kind, _raw_answer)(offered, used)


def guess_kind(offered: Offered) -> str:
    """`blk` or `fs` if a request has the shape of one and could not be the other's; else `raw`."""
    if _looks_like_fs(offered):
        return FS
    return BLK if _looks_like_blk(offered) else RAW


def _looks_like_blk(offered: Offered) -> bool:
    """A type that there is, a reserved field that is small, and a status byte at the end."""
    if len(offered.start) < HEADER.size or not offered.buffers or not offered.buffers[-1].writable:
        return False
    kind, reserved, sector = HEADER.unpack_from(offered.start)
    if kind not in TYPES or reserved > 0xFFFF or sector >= 1 << 55:
        return False
    return _fits(kind, _readable(offered) - HEADER.size, _writable(offered) - 1)


def _fits(kind: int, readable: int, writable: int) -> bool:
    """So many bytes behind the header, and before the status, are what a request of that type has."""
    match kind:
        case BlockRequest.IN:
            return readable == 0 < writable and writable % SECTOR == 0
        case BlockRequest.OUT:
            return writable == 0 < readable and readable % SECTOR == 0
        case BlockRequest.GET_ID:
            return (readable, writable) == (0, ID_SIZE)
        case BlockRequest.FLUSH:
            return readable == writable == 0
    return writable == 0 < readable and readable % RANGE.size == 0


def _looks_like_fs(offered: Offered) -> bool:
    """A header whose length is that of the request, and an opcode that is known."""
    if len(offered.start) < IN_HEADER_SIZE:
        return False
    header = _in_header(offered)
    return header.len == _readable(offered) and header.opcode in OPCODES and not header.total_extlen * 8 >= header.len


def _readable(offered: Offered) -> int:
    return sum(each.len for each in offered.buffers if not each.writable)


def _writable(offered: Offered) -> int:
    return sum(each.len for each in offered.buffers if each.writable)


# A request of any kind


def _raw_request(offered: Offered) -> str:
    shown = f" {offered.start[:16].hex()}{'...' * (_readable(offered) > 16)}" if offered.start else ""
    return f"{_readable(offered)} bytes to read, {_writable(offered)} to write{shown}"


def _no_request(offered: Offered, what: str) -> str:
    """Too few bytes; or none at all, for newer requests were written over them before anybody looked."""
    return f"{_raw_request(offered)} ({f'no request of {what}' if offered.start else 'not seen'})"


def _raw_answer(offered: Offered | None, used: Used) -> str:
    shown = used.start[: min(used.written, 16)]
    return f"{used.written} bytes{' ' if shown else ''}{shown.hex()}{'...' * (used.written > 16 and bool(shown))}"


# Disks


def _blk_request(offered: Offered) -> str:
    if len(offered.start) < HEADER.size:
        return _no_request(offered, "a disk")
    kind, _, sector = HEADER.unpack_from(offered.start)
    name = TYPES[kind].name if kind in TYPES else f"TYPE_{kind}"
    match kind:
        case BlockRequest.IN:
            return f"{name} sector={sector} bytes={max(0, _writable(offered) - 1)}"
        case BlockRequest.OUT:
            return f"{name} sector={sector} bytes={_readable(offered) - HEADER.size}"
        case BlockRequest.DISCARD | BlockRequest.WRITE_ZEROES | BlockRequest.SECURE_ERASE:
            return f"{name} {_ranges(offered)}"
        case BlockRequest.FLUSH:
            return name
    return f"{name} bytes={max(0, _writable(offered) - 1)}"


def _ranges(offered: Offered) -> str:
    """The ranges of a discard, as far as they are known."""
    data, count = offered.start[HEADER.size :], (_readable(offered) - HEADER.size) // RANGE.size
    rows = [RANGE.unpack_from(data, at) for at in range(0, len(data) - RANGE.size + 1, RANGE.size)]
    shown = [f"{first}+{sectors}{' unmap' * (flags & 1)}" for first, sectors, flags in rows]
    return f"sectors={','.join(shown)}" + (f" and {count - len(rows)} more" if count > len(rows) else "")


def _blk_answer(offered: Offered | None, used: Used) -> str:
    """The status is the last byte that the device may write, whatever it says of how much it wrote."""
    if not used.end:
        return f"{used.written} bytes, status unknown"
    status = used.end[0]
    name = STATUSES.get(status, f"status {status}")
    return name if used.written <= 1 else f"{name} {used.written - 1} bytes"


# Shared directories


def _in_header(offered: Offered) -> s.InHeader:
    return s.InHeader(*s.InHeader.STRUCT.unpack_from(offered.start))


def _fs_request(offered: Offered) -> str:
    if len(offered.start) < IN_HEADER_SIZE:
        return _no_request(offered, "FUSE")
    header = _in_header(offered)
    words = f"{_opcode(header.opcode)} unique={header.unique} nodeid={header.nodeid}"
    rest = _arguments(header.opcode, offered.start[IN_HEADER_SIZE : header.len])
    if header.len != _readable(offered):
        rest += f" (len {header.len}, but {_readable(offered)} bytes)"
    return words + rest


def _opcode(number: int) -> str:
    return OPCODES[number].name if number in OPCODES else f"OPCODE_{number}"


def _arguments(opcode: int, body: bytes) -> str:
    """The fields and names of a request, as far as its first bytes have them."""
    rule = RULES.get(OPCODES[opcode]) if opcode in OPCODES else None
    if rule is None:
        return ""
    words, start = "", 0
    if rule.arguments:
        start = rule.arguments.STRUCT.size
        if len(body) < start:
            return " (too short)"
        words = _fields(rule.arguments(*rule.arguments.STRUCT.unpack_from(body)))
    for _ in range(rule.names):
        name, ended, rest = body[start:].partition(b"\0")
        words += f" {_name(name)}{'' if ended else '...'}"
        start = len(body) - len(rest)
        if not ended:
            break
    return words


def _fields(body: Payload) -> str:
    """The fields of a struct that are not 0."""
    values = ((field.name, getattr(body, field.name)) for field in type(body).FIELDS)
    return "".join(f" {name}={_number(value)}" for name, value in values if value and isinstance(value, int))


def _number(value: int) -> str:
    return hex(value) if value >= _LARGE else str(value)


def _name(name: bytes) -> str:
    text = printable(name[:LONGEST_NAME].decode(errors="backslashreplace"))
    return f'"{text}"' + "..." * (len(name) > LONGEST_NAME)


def _fs_answer(offered: Offered | None, used: Used) -> str:
    """The errno of an answer, or its first fields."""
    rule = _rule_of(offered)
    if rule and not rule.replies and not used.written:
        return "no answer"
    header = out_header(offered, used)
    if header is None:
        return f"{used.written} bytes, answer unknown"
    if header.error:
        return errno.errorcode.get(-header.error, f"error {header.error}")
    fields = _result(rule, used.start[OUT_HEADER_SIZE : header.len]) if rule else ""
    note = f" (len {header.len}, but {used.written} bytes)" if header.len != used.written else ""
    return f"OK {header.len - OUT_HEADER_SIZE} bytes{fields}{note}"


def out_header(offered: Offered | None, used: Used) -> s.OutHeader | None:
    """The header of an answer; None if it was not seen, or is another request's: its memory is the driver's again."""
    if min(len(used.start), used.written) < OUT_HEADER_SIZE:
        return None
    header = s.OutHeader(*s.OutHeader.STRUCT.unpack_from(used.start))
    asked = _in_header(offered).unique if offered and len(offered.start) >= IN_HEADER_SIZE else header.unique
    return header if header.len >= OUT_HEADER_SIZE and header.unique == asked else None


def _rule_of(offered: Offered | None) -> Rule | None:
    """The rule of the request that is answered, if it is known."""
    if offered is None or len(offered.start) < IN_HEADER_SIZE:
        return None
    opcode = OPCODES.get(_in_header(offered).opcode)
    return RULES.get(opcode) if opcode else None


def _result(rule: Rule, data: bytes) -> str:
    """The fields of an answer that is a struct, if all of it is there."""
    result = rule.result
    return _fields(result(*result.STRUCT.unpack_from(data))) if result and len(data) >= result.STRUCT.size else ""


_REQUESTS: Final[dict[str, Callable[[Offered], str]]] = {BLK: _blk_request, FS: _fs_request}
_ANSWERS: Final[dict[str, Callable[[Offered | None, Used], str]]] = {BLK: _blk_answer, FS: _fs_answer}
