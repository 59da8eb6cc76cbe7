"""Whom a new file belongs to: one thread acts for a user of the guest, with its umask, and is itself again afterwards.

Only the effective ids change, so that the capabilities come back with them. umask and working directory become the
thread's own the first time it needs them.
"""

from __future__ import annotations

import errno
import os
import threading
from functools import cached_property
from types import TracebackType
from typing import Final, NamedTuple

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


class Ours(NamedTuple):
    """The effective ids and the supplementary groups that the threads of the daemon have."""

    uid: int
    gid: int
    groups: list[int]


class Acting:
    """Acts with an umask and, if they are given, with other ids. OSError if it can't; then nothing has changed."""

    __slots__ = ("_mask", "_ours", "_theirs")

    def __init__(self, mask: int, ours: Ours, theirs: Ours | None) -> None:
        self._mask, self._ours, self._theirs = mask, ours, theirs

    def __enter__(self) -> None:
        if not _thread.alone:
            stand_alone()
        if self._theirs is not None:
            _become(self._theirs, self._ours)
        self._mask = os.umask(self._mask)

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        os.umask(self._mask)
        if self._theirs is not None:
            _return(self._ours, self._theirs)


def _become(theirs: Ours, ours: Ours) -> None:
    """The user last: without it nothing may be changed. If that fails, all is as before."""
    try:
        if theirs.groups != ours.groups:
            calls.set_groups(theirs.groups)
        if theirs.gid != ours.gid:
            calls.set_gid(theirs.gid)
        if theirs.uid != ours.uid:
            calls.set_uid(theirs.uid)
    except BaseException:
        _return(ours, theirs)
        raise


def _return(ours: Ours, theirs: Ours) -> None:
    if theirs.uid != ours.uid:
        calls.set_uid(ours.uid)
    if theirs.gid != ours.gid:
        calls.set_gid(ours.gid)
    if theirs.groups != ours.groups:
        calls.set_groups(ours.groups)


class Creators:
    """For a request that makes a file: who does it. When the daemon is not root it makes all of them its own."""

    def __init__(self, state: State, uids: Ids | None, gids: Ids | None) -> None:
        self._state, self._uids, self._gids = state, uids, gids

    @cached_property
    def _is_plain(self) -> bool:
        """Whether a request of our own ids is done as we are."""
        return self._uids is None and self._gids is None and not self._ours.groups

    @cached_property
    def _ours(self) -> Ours:
        """Ours when the first file is made: until then the daemon may give up what it has."""
        ours = Ours(os.geteuid(), os.getegid(), os.getgroups())
        if ours.uid == 0 and not calls.can_change_ids():
            raise failed(errno.ENOSYS)
        return ours

    def ids(self, uid: int, gid: int) -> tuple[int, int]:
        """The host's ids for those of the guest; no id stays none."""
        host_uid = self._uids.to_host(uid) if self._uids is not None and uid != _KEEP else uid
        host_gid = self._gids.to_host(gid) if self._gids is not None and gid != _KEEP else gid
        return host_uid, host_gid

    def acting(self, call: Call, umask: int) -> Acting:
        """To act as who sent the request."""
        ours, header = self._ours, call.header
        mask = umask & 0o777 if self._state.agreed & InitFlag.DONT_MASK else 0
        if ours.uid != 0 or (self._is_plain and (header.uid, header.gid, header.total_extlen) == (ours.uid, ours.gid, 0)):
            return Acting(mask, ours, None)
        if _KEEP in (header.uid, header.gid):  # which would leave them ours
            raise failed(errno.EOVERFLOW)
        groups = self._groups(call) if header.total_extlen else []
        theirs = Ours(*self.ids(header.uid, header.gid), groups)
        return Acting(mask, ours, None if theirs == ours else theirs)

    def mode(self, mode: int, umask: int) -> int:
        """The mode of a new file, when the umask is not for the host's kernel to apply."""
        mode &= 0o177777
        return mode if self._state.agreed & InitFlag.DONT_MASK else mode & ~(umask & 0o777)

    def _groups(self, call: Call) -> list[int]:
        """The supplementary groups that a request names."""
        if not self._state.agreed & InitFlag.CREATE_SUPP_GROUP:
            return []
        rest, groups = memoryview(call.data)[-call.header.total_extlen * _UNIT :], list[int]()
        while len(rest) >= _HEADER.size:
            size, type = _HEADER.unpack_from(rest)
            if not _HEADER.size <= size <= len(rest):
                raise failed(errno.EINVAL)
            if type == Extension.GROUPS:
                groups += _group_list(rest[_HEADER.size : size])
            rest = rest[size:]
        return [self.ids(_KEEP, each)[1] for each in groups]


def _group_list(data: memoryview) -> list[int]:
    """The numbers of a `fuse_supp_groups`: how many, and each."""
    numbers = data[: len(data) // 4 * 4].cast("I")
    if not len(numbers) or numbers[0] > min(MAX_GROUPS, len(numbers) - 1):
        raise failed(errno.EINVAL)
    return list(numbers[1 : 1 + numbers[0]])
