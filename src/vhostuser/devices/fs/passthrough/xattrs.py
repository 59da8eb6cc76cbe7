"""Extended attributes, by the names that the guest has for them."""

from __future__ import annotations

import errno
import os
from contextlib import nullcontext
from typing import Final

from ....fuse import structs as s
from ....fuse.numbers import InitFlag, SetxattrFlag
from ....fuse.rules import Call
from .calls import failed
from .credentials import WithoutFsetid
from .named import Named
from .state import Names, State, arguments

NAME_MAX: Final = 255
VALUE_MAX: Final = 64 << 10
"""Bytes of a value, and of a list of names, at most (XATTR_SIZE_MAX, XATTR_LIST_MAX)."""
_ACLS: Final = (b"system.posix_acl_access", b"system.posix_acl_default")
_FLAGS: Final = os.XATTR_CREATE | os.XATTR_REPLACE


class Xattrs:
    """SETXATTR, GETXATTR, LISTXATTR, REMOVEXATTR. OSError, ENOSYS, if the share has none: the guest asks only once."""

    def __init__(self, state: State, names: Names | None) -> None:
        self._state, self._names = state, names
        self._enabled = state.options.xattr

    def setxattr(self, call: Call) -> None:
        """Set an attribute."""
        self._check_enabled()
        given, name = arguments(call, s.SetxattrIn), self._name(call)
        if given.size > VALUE_MAX:
            raise failed(errno.E2BIG)
        if given.size != len(call.data) or given.flags & ~_FLAGS:
            raise failed(errno.EINVAL)
        kill = given.setxattr_flags & SetxattrFlag.ACL_KILL_SGID
        with self._file(call) as path, WithoutFsetid() if kill else nullcontext():
            os.setxattr(path, name, call.data, given.flags)

    def getxattr(self, call: Call) -> bytes:
        """The value of an attribute, or how long it is."""
        self._check_enabled()
        given, name = arguments(call, s.GetxattrIn), self._name(call)
        with self._file(call) as path:
            value = os.getxattr(path, name)
        return _sized(value, given.size)

    def listxattr(self, call: Call) -> bytes:
        """The names of all attributes that the guest sees, or how long these are."""
        self._check_enabled()
        given = arguments(call, s.GetxattrIn)
        with self._file(call) as path:
            found = [os.fsencode(each) for each in os.listxattr(path)]
        return _sized(b"".join(each + b"\0" for each in self._shown(found)), given.size)

    def removexattr(self, call: Call) -> None:
        """Remove an attribute."""
        self._check_enabled()
        name = self._name(call)
        with self._file(call) as path:
            os.removexattr(path, name)

    def _check_enabled(self) -> None:
        if not self._enabled:
            raise failed(errno.ENOSYS)

    def _name(self, call: Call) -> bytes:
        """The host's name of the attribute."""
        name = call.names[0]
        if not name or b"\0" in name:
            raise failed(errno.EINVAL)
        if len(name) > NAME_MAX:
            raise failed(errno.ERANGE)
        if self._is_hidden(name):
            raise failed(errno.EOPNOTSUPP)
        return name if self._names is None else self._names.client_to_host(name)

    def _is_hidden(self, name: bytes) -> bool:
        """Whether it is an ACL, and the guest did not say that it keeps them."""
        return name in _ACLS and not self._state.agreed & InitFlag.POSIX_ACL

    def _shown(self, found: list[bytes]) -> list[bytes]:
        """The guest's names of attributes."""
        if self._names is not None:
            found = [shown for each in found if (shown := self._names.host_to_client(each)) is not None]
        return [each for each in found if not self._is_hidden(each)]

    def _file(self, call: Call) -> Named:
        return Named(self._state.at(self._state.inode(call)), self._state.proc)


def _sized(value: bytes, size: int) -> bytes:
    """The answer to who has room for `size` bytes; 0 asks how many there are."""
    if not size:
        return s.GetxattrOut(len(value)).pack()
    if len(value) > size:
        raise failed(errno.ERANGE)
    return value
