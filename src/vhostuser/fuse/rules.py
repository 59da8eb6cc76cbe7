"""What each request is made of, one row a request, and how its bytes are taken apart.

Bytes of a request: InHeader, the arguments, so many names (each ends with a NUL), then the data. Those of an answer:
OutHeader, then the result, or data, or nothing. All that knows a request (server, driver, tracer) reads these rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from ..protocol.layout import Payload
from . import structs as s
from .numbers import Opcode

IN_HEADER_SIZE: Final = s.InHeader.STRUCT.size
OUT_HEADER_SIZE: Final = s.OutHeader.STRUCT.size


@dataclass(frozen=True, slots=True)
class Rule:
    """What a request carries, and what its answer does."""

    arguments: type[Payload] | None = None
    names: int = 0
    data: bool = False
    """Whether bytes follow the names: what is written, a value, or a list of structs."""
    result: type[Payload] | None = None
    data_out: bool = False
    """Whether the answer is bytes, instead of a struct or (GETXATTR, LISTXATTR with a size) beside it."""
    replies: bool = True
    extensions: bool = False
    """Whether security contexts and groups may follow, as `total_extlen` says."""


RULES: Final[dict[Opcode, Rule]] = {
    Opcode.LOOKUP: Rule(names=1, result=s.EntryOut),
    Opcode.FORGET: Rule(s.ForgetIn, replies=False),
    Opcode.GETATTR: Rule(s.GetattrIn, result=s.AttrOut),
    Opcode.SETATTR: Rule(s.SetattrIn, result=s.AttrOut),
    Opcode.READLINK: Rule(data_out=True),
    Opcode.SYMLINK: Rule(names=2, result=s.EntryOut, extensions=True),
    Opcode.MKNOD: Rule(s.MknodIn, names=1, result=s.EntryOut, extensions=True),
    Opcode.MKDIR: Rule(s.MkdirIn, names=1, result=s.EntryOut, extensions=True),
    Opcode.UNLINK: Rule(names=1),
    Opcode.RMDIR: Rule(names=1),
    Opcode.RENAME: Rule(s.RenameIn, names=2),
    Opcode.LINK: Rule(s.LinkIn, names=1, result=s.EntryOut),
    Opcode.OPEN: Rule(s.OpenIn, result=s.OpenOut),
    Opcode.READ: Rule(s.ReadIn, data_out=True),
    Opcode.WRITE: Rule(s.WriteIn, data=True, result=s.WriteOut),
    Opcode.STATFS: Rule(result=s.Kstatfs),
    Opcode.RELEASE: Rule(s.ReleaseIn),
    Opcode.FSYNC: Rule(s.FsyncIn),
    Opcode.SETXATTR: Rule(s.SetxattrIn, names=1, data=True),
    Opcode.GETXATTR: Rule(s.GetxattrIn, names=1, result=s.GetxattrOut, data_out=True),
    Opcode.LISTXATTR: Rule(s.GetxattrIn, result=s.GetxattrOut, data_out=True),
    Opcode.REMOVEXATTR: Rule(names=1),
    Opcode.FLUSH: Rule(s.FlushIn),
    Opcode.INIT: Rule(s.InitIn, result=s.InitOut),
    Opcode.OPENDIR: Rule(s.OpenIn, result=s.OpenOut),
    Opcode.READDIR: Rule(s.ReadIn, data_out=True),
    Opcode.RELEASEDIR: Rule(s.ReleaseIn),
    Opcode.FSYNCDIR: Rule(s.FsyncIn),
    Opcode.GETLK: Rule(s.LkIn, result=s.FileLock),
    Opcode.SETLK: Rule(s.LkIn),
    Opcode.SETLKW: Rule(s.LkIn),
    Opcode.ACCESS: Rule(s.AccessIn),
    Opcode.CREATE: Rule(s.CreateIn, names=1, data_out=True, extensions=True),
    Opcode.INTERRUPT: Rule(s.InterruptIn, replies=False),
    Opcode.DESTROY: Rule(),
    Opcode.BATCH_FORGET: Rule(s.BatchForgetIn, data=True, replies=False),
    Opcode.FALLOCATE: Rule(s.FallocateIn),
    Opcode.READDIRPLUS: Rule(s.ReadIn, data_out=True),
    Opcode.RENAME2: Rule(s.Rename2In, names=2),
    Opcode.LSEEK: Rule(s.LseekIn, result=s.LseekOut),
    Opcode.COPY_FILE_RANGE: Rule(s.CopyFileRangeIn, result=s.WriteOut),
    Opcode.SETUPMAPPING: Rule(s.SetupmappingIn),
    Opcode.REMOVEMAPPING: Rule(s.RemovemappingIn, data=True),
    Opcode.SYNCFS: Rule(s.SyncfsIn),
    Opcode.TMPFILE: Rule(s.CreateIn, names=1, data_out=True, extensions=True),
    Opcode.STATX: Rule(s.StatxIn, result=s.StatxOut),
}
"""The requests that are known here; BMAP, IOCTL, POLL and NOTIFY_REPLY are not. The answer to CREATE and TMPFILE is an
EntryOut and an OpenOut."""


class MalformedRequest(ValueError):
    """A request whose bytes are not what its rule says; the text says how."""


@dataclass(slots=True)
class Call:
    """A request, taken apart."""

    header: s.InHeader
    arguments: Payload | None
    names: tuple[bytes, ...]
    data: bytes


def take_apart(header: s.InHeader, rule: Rule, body: bytes) -> Call:
    """The request whose bytes after the header are `body`. MalformedRequest if they are too few, or too many."""
    start = 0
    arguments = None
    if rule.arguments:
        start = rule.arguments.STRUCT.size
        if len(body) < start:
            raise MalformedRequest(f"its arguments have {len(body)} bytes, not {start}")
        arguments = rule.arguments(*rule.arguments.STRUCT.unpack_from(body))
    names: tuple[bytes, ...] = ()
    if rule.names:
        names, start = _names(body, start, rule.names)
    if start < len(body) and not (rule.data or rule.extensions):
        raise MalformedRequest(f"{len(body) - start} bytes follow its end")
    return Call(header, arguments, names, body[start:])


def taker(rule: Rule) -> Callable[[s.InHeader, bytes], Call]:
    """What does `take_apart` for one rule, given all bytes of a request: in a few steps for one that is plain and right.

    All others take the long way, which says what is wrong.
    """
    if not (rule.data or rule.extensions):
        if rule.arguments and not rule.names:
            return _arguments_taker(rule, rule.arguments)
        if rule.names == 1 and not rule.arguments:
            return _name_taker(rule)
    return lambda header, whole: take_apart(header, rule, whole[IN_HEADER_SIZE:])


def _arguments_taker(rule: Rule, kind: type[Payload]) -> Callable[[s.InHeader, bytes], Call]:
    unpack, size = kind.STRUCT.unpack_from, IN_HEADER_SIZE + kind.STRUCT.size

    def take(header: s.InHeader, whole: bytes) -> Call:
        if len(whole) != size:
            return take_apart(header, rule, whole[IN_HEADER_SIZE:])
        return Call(header, kind(*unpack(whole, IN_HEADER_SIZE)), (), b"")

    return take


def _name_taker(rule: Rule) -> Callable[[s.InHeader, bytes], Call]:
    def take(header: s.InHeader, whole: bytes) -> Call:
        if whole.find(b"\0", IN_HEADER_SIZE) != len(whole) - 1:
            return take_apart(header, rule, whole[IN_HEADER_SIZE:])
        return Call(header, None, (whole[IN_HEADER_SIZE:-1],), b"")

    return take


def _names(body: bytes, start: int, count: int) -> tuple[tuple[bytes, ...], int]:
    """`count` names from `start` on, and where they end."""
    names = []
    for _ in range(count):
        end = body.find(b"\0", start)
        if end < 0:
            raise MalformedRequest("a name has no end")
        names.append(body[start:end])
        start = end + 1
    return tuple(names), start


def is_name(name: bytes) -> bool:
    """Whether it may name an entry of a directory: some bytes, no slash, not `.` nor `..`. How long it is, the host says."""
    return bool(name) and name not in (b".", b"..") and b"/" not in name


def answer(unique: int, result: bytes = b"", error: int = 0) -> bytes:
    """The bytes of an answer; `error` is a positive errno."""
    return s.OutHeader(OUT_HEADER_SIZE + len(result), -error, unique).pack() + result
