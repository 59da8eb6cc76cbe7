"""What is said no to, whatever the share: names that are none, lists of another length, and writers of a read-only share."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from dataclasses import replace
from typing import Final

from ...fuse import structs as s
from ...fuse.numbers import NAME_MAX, MappingFlag, Opcode
from ...fuse.rules import Call, MalformedRequest, is_name
from .agreement import MAX_WRITE

Check = Callable[[Call], None]
"""Raises OSError or MalformedRequest if a request may not be done."""

ENTRY_NAMES: Final = {
    Opcode.LOOKUP: 1,
    Opcode.SYMLINK: 1,
    Opcode.MKNOD: 1,
    Opcode.MKDIR: 1,
    Opcode.UNLINK: 1,
    Opcode.RMDIR: 1,
    Opcode.RENAME: 2,
    Opcode.RENAME2: 2,
    Opcode.LINK: 1,
    Opcode.CREATE: 1,
}
"""How many names of a request, from the first on, are those of entries. Where a symbolic link leads is none of them, nor
the name of an extended attribute; that of a TMPFILE says nothing."""
WRITERS: Final = frozenset(
    {
        Opcode.SETATTR,
        Opcode.SYMLINK,
        Opcode.MKNOD,
        Opcode.MKDIR,
        Opcode.UNLINK,
        Opcode.RMDIR,
        Opcode.RENAME,
        Opcode.RENAME2,
        Opcode.LINK,
        Opcode.WRITE,
        Opcode.SETXATTR,
        Opcode.REMOVEXATTR,
        Opcode.CREATE,
        Opcode.TMPFILE,
        Opcode.FALLOCATE,
        Opcode.COPY_FILE_RANGE,
    }
)
"""The requests that always change something."""
_WRITES: Final = os.O_WRONLY | os.O_RDWR | os.O_TRUNC | os.O_CREAT


def checks_of(opcode: Opcode, *, readonly: bool) -> tuple[Check, ...]:
    """What is asked of each request of that kind before it is done."""
    found: list[Check] = []
    if readonly and opcode in WRITERS:
        found.append(_refuse)
    if readonly and opcode in _MAY_WRITE:
        found.append(_MAY_WRITE[opcode])
    if opcode in ENTRY_NAMES:
        found.append(_two_names if ENTRY_NAMES[opcode] == 2 else _first_name)
    if opcode in _LISTS:
        found.append(_LISTS[opcode])
    return tuple(found)


def fitting(call: Call, room: int) -> Call:
    """The request, with no more wanted than there is room for, so that nobody makes more."""
    most, wanted = min(room, MAX_WRITE), call.arguments
    if isinstance(wanted, s.ReadIn | s.GetxattrIn) and wanted.size > most:
        return Call(call.header, replace(wanted, size=most), call.names, call.data)
    return call


def check_extensions(call: Call) -> None:
    """The extensions of a request that makes a file are as long as its header says."""
    said = call.header.total_extlen * 8
    if said != len(call.data):
        raise MalformedRequest(f"total_extlen says {said} bytes of extensions, there are {len(call.data)}")


def _first_name(call: Call) -> None:
    _check_name(call.names[0])


def _two_names(call: Call) -> None:
    _check_name(call.names[0])
    _check_name(call.names[1])


def _check_name(name: bytes) -> None:
    if not is_name(name):
        raise OSError(errno.EINVAL, "the name of an entry is empty, `.`, `..`, or has a slash")
    if len(name) > NAME_MAX:
        raise OSError(errno.ENAMETOOLONG, f"a name has {len(name)} bytes, at most {NAME_MAX}")


def _refuse(call: Call) -> None:
    raise OSError(errno.EROFS, os.strerror(errno.EROFS))


def _open_to_read(call: Call) -> None:
    if isinstance(call.arguments, s.OpenIn) and call.arguments.flags & _WRITES:
        _refuse(call)


def _access_to_read(call: Call) -> None:
    if isinstance(call.arguments, s.AccessIn) and call.arguments.mask & os.W_OK:
        _refuse(call)


def _map_to_read(call: Call) -> None:
    if isinstance(call.arguments, s.SetupmappingIn) and call.arguments.flags & MappingFlag.WRITE:
        _refuse(call)


_MAY_WRITE: Final[dict[Opcode, Check]] = {
    Opcode.OPEN: _open_to_read,
    Opcode.ACCESS: _access_to_read,
    Opcode.SETUPMAPPING: _map_to_read,
}
"""The requests that change something if their arguments say so."""


def _value(call: Call) -> None:
    if isinstance(call.arguments, s.SetxattrIn) and call.arguments.size != len(call.data):
        raise MalformedRequest(f"size is {call.arguments.size}, {len(call.data)} bytes of value are there")


def _nodes(call: Call) -> None:
    if isinstance(call.arguments, s.BatchForgetIn):
        _check_list(call, call.arguments.count, s.ForgetOne.STRUCT.size)


def _ranges(call: Call) -> None:
    if isinstance(call.arguments, s.RemovemappingIn):
        _check_list(call, call.arguments.count, s.RemovemappingOne.STRUCT.size)


def _check_list(call: Call, count: int, size: int) -> None:
    if count * size != len(call.data):
        raise MalformedRequest(f"count is {count}, {len(call.data)} bytes of {size} each are there")


_LISTS: Final[dict[Opcode, Check]] = {
    Opcode.SYMLINK: check_extensions,
    Opcode.MKNOD: check_extensions,
    Opcode.MKDIR: check_extensions,
    Opcode.CREATE: check_extensions,
    Opcode.TMPFILE: check_extensions,
    Opcode.SETXATTR: _value,
    Opcode.BATCH_FORGET: _nodes,
    Opcode.REMOVEMAPPING: _ranges,
}
"""The requests whose data have a length that something else says, too."""
