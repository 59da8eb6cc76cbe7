"""Whom a new file belongs to: one thread acts for a user of the guest, with its umask, and is itself again afterwards.

Only the effective ids change, so that the capabilities come back with them. umask and working directory become the
thread's own the first time it needs them.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Final

from ....fuse import structs as s
from ....fuse.numbers import Extension, InitFlag
from ....fuse.rules import Call
from . import calls
from .calls import CAP_FSETID, failed
from .state import Ids, State

MAX_GROUPS: Final = 32
"""Groups of a request: the guest sends the one of the directory."""
_HEADER: Final = s.ExtHeader.STRUCT
_UNIT: Final = 8
_KEEP: Final = 0xFFFF_FFFF


class _Thread(threading.local):
    """What is this thread's own."""

    alone = False
    """Whether its umask and working directory are."""


_thread = _Thread()


def stand_alone() -> None:
    """Let what this thread does to its umask and its working directory be its own matter."""
    if not _thread.alone:
        calls.unshare_fs()
        _thread.alone = True


class Umask:
    """Creates files with this umask."""

    __slots__ = ("_mask", "_old")

    def __init__(self, mask: int) -> None:
        self._mask, self._old = mask & 0o777, 0

    def __enter__(self) -> None:
        stand_alone()
        self._old = os.umask(self._mask)

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        os.umask(self._old)


class User:
    """Acts with these ids and supplementary groups. OSError if it can't; then nothing has changed."""

    __slots__ = ("_uid", "_gid", "_groups", "_undo")

    def __init__(self, uid: int, gid: int, groups: Sequence[int]) -> None:
        self._uid, self._gid, self._groups = uid, gid, groups
        self._undo = ExitStack()

    def __enter__(self) -> None:
        with ExitStack() as undo:
            ours = os.getgroups()
            if set(ours) != set(self._groups):
                calls.set_groups(self._groups)
                undo.callback(calls.set_groups, ours)
            if self._gid != (gid := os.getegid()):
                calls.set_gid(self._gid)
                undo.callback(calls.set_gid, gid)
            if self._uid != (uid := os.geteuid()):
                calls.set_uid(self._uid)
                undo.callback(calls.set_uid, uid)
            self._undo = undo.pop_all()

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self._undo.close()


class WithoutFsetid:
    """Acts without CAP_FSETID, if there: what is written then loses suid and sgid bits."""

    __slots__ = ("_old",)

    def __enter__(self) -> None:
        self._old = calls.capabilities()
        without = [self._old[0] & ~(1 << CAP_FSETID), *self._old[1:]]
        if without != self._old:
            calls.set_capabilities(without)

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        if self._old[0] & 1 << CAP_FSETID:
            calls.set_capabilities(self._old)


class Creators:
    """For a request that makes a file: who does it. When the daemon is not root it makes all of them its own."""

    def __init__(self, state: State, uids: Ids | None, gids: Ids | None) -> None:
        self._state, self._uids, self._gids = state, uids, gids
        self.switch = os.geteuid() == 0
        if self.switch and not calls.can_change_ids():
            raise failed(errno.ENOSYS)
        self._plain = (os.geteuid(), os.getegid()) if not os.getgroups() else None

    def ids(self, uid: int, gid: int) -> tuple[int, int]:
        """The host's ids for those of the guest; no id stays none."""
        host_uid = self._uids.to_host(uid) if self._uids is not None and uid != _KEEP else uid
        host_gid = self._gids.to_host(gid) if self._gids is not None and gid != _KEEP else gid
        return host_uid, host_gid

    def enter(self, call: Call, umask: int, undo: ExitStack) -> None:
        """Act as who sent the request, until `undo` is closed."""
        undo.enter_context(Umask(umask if self._state.agreed & InitFlag.DONT_MASK else 0))
        if self.switch:
            ids = self.ids(call.header.uid, call.header.gid)
            groups = self._groups(call)
            if groups or ids != self._plain:
                undo.enter_context(User(*ids, groups))

    def mode(self, mode: int, umask: int) -> int:
        """The mode of a new file, when the umask is not for the host's kernel to apply."""
        return mode if self._state.agreed & InitFlag.DONT_MASK else mode & ~(umask & 0o777)

    def _groups(self, call: Call) -> list[int]:
        """The supplementary groups that a request names."""
        if not call.header.total_extlen or not self._state.agreed & InitFlag.CREATE_SUPP_GROUP:
            return []
        rest, groups = call.data[-call.header.total_extlen * _UNIT :], list[int]()
        while len(rest) >= _HEADER.size:
            size, type = _HEADER.unpack_from(rest)
            if not _HEADER.size <= size <= len(rest):
                raise failed(errno.EINVAL)
            if type == Extension.GROUPS:
                groups += _group_list(rest[_HEADER.size : size])
            rest = rest[size:]
        return [self.ids(_KEEP, each)[1] for each in groups]


def _group_list(data: bytes) -> list[int]:
    """The numbers of a `fuse_supp_groups`: how many, and each."""
    numbers = memoryview(data[: len(data) // 4 * 4]).cast("I")
    if not len(numbers) or numbers[0] > min(MAX_GROUPS, len(numbers) - 1):
        raise failed(errno.EINVAL)
    return list(numbers[1 : 1 + numbers[0]])
