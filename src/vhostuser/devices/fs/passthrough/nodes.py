"""What an inode is, whether or not it is open: its attributes, read and changed, and those of its file system."""

from __future__ import annotations

import errno
import os
import stat
from contextlib import nullcontext
from dataclasses import replace
from typing import Final

from ....fuse import structs as s
from ....fuse.numbers import Fattr, GetattrFlag
from ....fuse.rules import Call
from . import calls
from .attributes import Attributes
from .calls import UTIME_NOW, UTIME_OMIT, failed
from .capability import Capability
from .credentials import Creators, WithoutFsetid
from .files import OFFSET_MAX, check_range
from .found import look_at
from .inodes import Fd, Inode
from .state import State, arguments

_KEEP: Final = -1
"""The id that chown(2) leaves as it is."""
_TIMES: Final = Fattr.ATIME | Fattr.MTIME | Fattr.ATIME_NOW | Fattr.MTIME_NOW
_U32: Final = (1 << 32) - 1
_SYNC_TYPE: Final = 0x6000
"""AT_STATX_SYNC_TYPE: what STATX may ask of the host beside the file itself."""


class Nodes:
    """GETATTR, SETATTR, STATX, ACCESS, STATFS, SYNCFS."""

    def __init__(self, state: State, attributes: Attributes, creators: Creators, capability: Capability) -> None:
        self._state, self._attributes, self._creators = state, attributes, creators
        self._capability = capability

    def getattr(self, call: Call) -> bytes:
        """The attributes of an inode, or of an open file of it."""
        given, inode = arguments(call, s.GetattrIn), self._state.inode(call)
        fd = self._file(inode, given.fh if given.getattr_flags & GetattrFlag.FH else None)
        found = look_at(fd.number)
        self._state.seen(inode, found)
        return self._attributes.answer(inode, found)

    def statx(self, call: Call) -> s.StatxOut:
        """More of an inode, or of an open file of it: when it was made, what kind of file it is."""
        given, inode = arguments(call, s.StatxIn), self._state.inode(call)
        fd = self._file(inode, given.fh if given.getattr_flags & GetattrFlag.FH else None)
        raw = calls.statx(fd.number, given.sx_flags & _SYNC_TYPE, given.sx_mask & calls.STATX_ALL)
        self._state.seen(inode, os.fstat(fd.number))
        found = s.Statx.unpack(raw)
        uid, gid = self._attributes.ids(found.uid, found.gid)
        found = replace(found, uid=uid, gid=gid)
        return s.StatxOut(self._attributes.seconds, self._attributes.nanoseconds, 0, found.pack())

    def _file(self, inode: Inode, fh: int | None) -> Fd:
        """An open file of an inode: that of `fh`, or any."""
        return self._state.at(inode) if fh is None else self._state.opened.file(fh, inode.nodeid).fd

    def setattr(self, call: Call) -> bytes:
        """Change mode, owner, size and times, in this order; the answer is what they are then."""
        given, inode = arguments(call, s.SetattrIn), self._state.inode(call)
        fh = given.fh if given.valid & Fattr.FH else None
        file = self._file(inode, fh)
        at = self._state.at(inode)
        path = b"%d" % at.number
        if given.valid & Fattr.MODE:
            os.chmod(path, given.mode & 0o7777, dir_fd=self._state.proc.number)
        if given.valid & (Fattr.UID | Fattr.GID):
            self._chown(inode, path, given)
        if given.valid & Fattr.SIZE:
            self._truncate(inode, file if fh is not None else None, given)
        if given.valid & _TIMES:
            times = _atime(given), _mtime(given)
            self._state.before(inode, 0, OFFSET_MAX)  # to write it later would make it younger again
            calls.set_times(self._state.proc.number, path, *times)
        found = os.fstat(file.number)
        self._state.seen(inode, found)
        return self._attributes.answer(inode, found)

    def _chown(self, inode: Inode, path: bytes, given: s.SetattrIn) -> None:
        asked = given.uid if given.valid & Fattr.UID else _U32, given.gid if given.valid & Fattr.GID else _U32
        uid, gid = (_KEEP if each == _U32 else each for each in self._creators.ids(*asked))
        self._capability.drop_of(inode)
        os.chown(path, uid, gid, dir_fd=self._state.proc.number)

    def _truncate(self, inode: Inode, file: Fd | None, given: s.SetattrIn) -> None:
        if inode.type != stat.S_IFREG:
            raise failed(errno.EISDIR if inode.type == stat.S_IFDIR else errno.EINVAL)
        check_range(given.size, 0)
        self._state.before(inode, given.size, given.size)
        file = file or self._state.reopen(inode, os.O_WRONLY)
        self._capability.drop(file)
        creating = WithoutFsetid() if given.valid & Fattr.KILL_SUIDGID else nullcontext()
        with self._state.shrinking(inode, given.size), creating:
            os.ftruncate(file.number, given.size)
        self._state.after(inode, given.size, given.size)

    def access(self, call: Call) -> None:
        """Whether who asks may do this to an inode, by its mode alone. OSError, EACCES, if not."""
        mask, header = arguments(call, s.AccessIn).mask, call.header
        at = self._state.at(self._state.inode(call))
        found = os.fstat(at.number)
        uid, gid = self._attributes.ids(found.st_uid, found.st_gid)
        mode = stat.S_IMODE(found.st_mode)
        if header.uid == 0:
            anyone = mode & 0o111 or stat.S_ISDIR(found.st_mode)
            granted = os.R_OK | os.W_OK | (os.X_OK if anyone else 0)
        else:
            granted = mode >> (6 if header.uid == uid else 3 if header.gid == gid else 0)
        if mask & (os.R_OK | os.W_OK | os.X_OK) & ~granted:
            raise failed(errno.EACCES)

    def statfs(self, call: Call) -> s.Kstatfs:
        """How full the file system of an inode is."""
        at = self._state.at(self._state.inode(call))
        found = os.fstatvfs(at.number)
        free = found.f_files, found.f_ffree
        return s.Kstatfs(
            found.f_blocks, found.f_bfree, found.f_bavail, *free, found.f_bsize, found.f_namemax, found.f_frsize
        )

    def syncfs(self, call: Call) -> None:
        """Write out the file system of an inode, and what the guest changed in the window."""
        arguments(call, s.SyncfsIn)
        inode = self._state.inode(call)
        self._state.write_back_all()
        file = self._state.reopen(inode, os.O_RDONLY)
        calls.syncfs(file.number)


def _atime(given: s.SetattrIn) -> tuple[int, int]:
    """Seconds and nanoseconds to set: a time, now, or none."""
    return _time(given.valid & Fattr.ATIME, given.valid & Fattr.ATIME_NOW, given.atime, given.atimensec)


def _mtime(given: s.SetattrIn) -> tuple[int, int]:
    return _time(given.valid & Fattr.MTIME, given.valid & Fattr.MTIME_NOW, given.mtime, given.mtimensec)


def _time(set: int, now: int, seconds: int, nanoseconds: int) -> tuple[int, int]:
    if now:
        return 0, UTIME_NOW
    if not set:
        return 0, UTIME_OMIT
    if nanoseconds >= 1_000_000_000:
        raise failed(errno.EINVAL)
    return seconds - (1 << 64) if seconds >> 63 else seconds, nanoseconds
