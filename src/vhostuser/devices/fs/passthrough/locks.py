"""POSIX locks of the guest, as locks of open files on the host: each owner has the file open once, for its locks alone."""

from __future__ import annotations

import errno
import fcntl
import os
import threading
from struct import Struct
from typing import Final

from ....fuse import structs as s
from ....fuse.numbers import LockFlag
from ....fuse.rules import Call
from .calls import failed
from .files import OFFSET_MAX
from .inodes import Fd, Inode
from .state import State, arguments

_LOCK: Final = Struct("@hhqqi4x")
"""struct flock: type, whence, start, length, pid."""
_TYPES: Final = (fcntl.F_RDLCK, fcntl.F_WRLCK, fcntl.F_UNLCK)


class Locks:
    """GETLK and SETLK; SETLKW would hold up a thread for as long as a guest likes."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._lock = threading.Lock()

    def getlk(self, call: Call) -> s.FileLock:
        """A lock that is in the way of this one, or that there is none."""
        given, inode = self._asked(call)
        asked = _packed(given)
        file = self._of(inode, given.owner)
        found = fcntl.fcntl(file.number, fcntl.F_OFD_GETLK, asked)
        type, _, start, length, pid = _LOCK.unpack(found)
        if type == fcntl.F_UNLCK:
            return s.FileLock(0, 0, type, 0)
        return s.FileLock(start, start + length - 1 if length else OFFSET_MAX, type, max(pid, 0))

    def setlk(self, call: Call) -> None:
        """Lock or unlock a range. OSError, EAGAIN, if another lock is in the way."""
        given, inode = self._asked(call)
        if given.type == fcntl.F_UNLCK and given.owner not in (inode.locks or ()):
            return
        file = self._of(inode, given.owner)
        fcntl.fcntl(file.number, fcntl.F_OFD_SETLK, _packed(given))

    def setlkw(self, call: Call) -> None:
        """OSError, EOPNOTSUPP."""
        self._asked(call)
        raise failed(errno.EOPNOTSUPP)

    def _asked(self, call: Call) -> tuple[s.LkIn, Inode]:
        """What is asked for, of which inode. OSError if it is none of these locks."""
        given = arguments(call, s.LkIn)
        inode = self._state.opened.file(given.fh, call.header.nodeid).inode
        if given.lk_flags & LockFlag.FLOCK:
            raise failed(errno.EOPNOTSUPP)
        if given.type not in _TYPES or not given.start <= given.end or given.start > OFFSET_MAX:
            raise failed(errno.EINVAL)
        return given, inode

    def _of(self, inode: Inode, owner: int) -> Fd:
        """The open file that has the locks of an owner."""
        with self._lock:
            if inode.locks is None:
                inode.locks = {}
            found = inode.locks.get(owner)
            if found is None:
                found = inode.locks[owner] = self._open(inode)
        return found

    def _open(self, inode: Inode) -> Fd:
        if self._state.options.readonly:
            return self._state.reopen(inode, os.O_RDONLY)
        try:
            return self._state.reopen(inode, os.O_RDWR)
        except OSError:
            return self._state.reopen(inode, os.O_RDONLY)

    def end(self, inode: Inode, owner: int) -> None:
        """The locks of an owner end."""
        if inode.locks:
            inode.locks.pop(owner, None)


def _packed(given: s.LkIn) -> bytes:
    """The lock as the kernel wants it: a length of 0 is up to the end of all files."""
    length = 0 if given.end >= OFFSET_MAX else given.end - given.start + 1
    return _LOCK.pack(given.type, os.SEEK_SET, given.start, length, 0)
