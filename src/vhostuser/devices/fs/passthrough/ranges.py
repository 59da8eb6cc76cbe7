"""Ranges of open files: allocated, sought, copied on the host, and written out."""

from __future__ import annotations

import errno
import os
from contextlib import AbstractContextManager, nullcontext
from typing import Final

from ....fuse import structs as s
from ....fuse.numbers import FsyncFlag, InitFlag
from ....fuse.rules import Call
from . import calls
from .calls import failed
from .capability import Capability
from .credentials import WithoutFsetid
from .files import OFFSET_MAX, check_range
from .locks import Locks
from .state import State, arguments

KEEP_SIZE: Final = 0x01
PUNCH_HOLE: Final = 0x02
ZERO_RANGE: Final = 0x10
COPY_MAX: Final = 0x7FFFF000
"""Bytes of one COPY_FILE_RANGE: more than the answer can say would be lost."""
_MODES: Final = KEEP_SIZE | PUNCH_HOLE | ZERO_RANGE
"""What FALLOCATE may do; what moves the rest of a file (COLLAPSE_RANGE, INSERT_RANGE) is not for a shared file."""
_CHANGING: Final = PUNCH_HOLE | ZERO_RANGE
"""Without these, FALLOCATE leaves bytes as they are, and what was stored of them and not written yet."""
_WHENCE: Final = (os.SEEK_DATA, os.SEEK_HOLE)
"""All that the guest can't find out itself."""


class Ranges:
    """FLUSH, FSYNC, FSYNCDIR, FALLOCATE, LSEEK, COPY_FILE_RANGE."""

    def __init__(self, state: State, locks: Locks, capability: Capability) -> None:
        self._state, self._locks, self._capability = state, locks, capability

    def flush(self, call: Call) -> None:
        """What close(2) of a file says. The locks of who closes it end."""
        given, nodeid = arguments(call, s.FlushIn), call.header.nodeid
        file = self._state.opened.file(given.fh, nodeid)
        self._locks.end(file.inode, given.lock_owner)
        self._state.write_back(file.inode)
        self._state.check(file)
        os.close(os.dup(file.fd.number))

    def fsync(self, call: Call) -> None:
        """Write a file out."""
        given = arguments(call, s.FsyncIn)
        file = self._state.opened.file(given.fh, call.header.nodeid)
        self._state.write_back(file.inode)
        self._state.tell(file)
        _sync(file.fd.number, given)

    def fsyncdir(self, call: Call) -> None:
        """Write a directory out."""
        given = arguments(call, s.FsyncIn)
        directory = self._state.opened.directory(given.fh, call.header.nodeid)
        _sync(directory.fd.number, given)

    def fallocate(self, call: Call) -> None:
        """Allocate, punch or zero a range."""
        given = arguments(call, s.FallocateIn)
        file = self._state.opened.file(given.fh, call.header.nodeid)
        if given.mode & ~_MODES:
            raise failed(errno.EOPNOTSUPP)
        if given.length > OFFSET_MAX:
            raise failed(errno.EINVAL)
        check_range(given.offset, given.length)
        start, end = given.offset, given.offset + given.length
        self._state.before(file.inode, start, end)
        self._capability.drop(file.fd)
        with self._changing(call):
            calls.fallocate(file.fd.number, given.mode, given.offset, given.length)
        self._state.after(file.inode, start if given.mode & _CHANGING else end, end)

    def _changing(self, call: Call) -> AbstractContextManager[None]:
        """Change a file for a user who may not leave suid and sgid bits on it, if taking them is our part."""
        ours = self._state.agreed & InitFlag.HANDLE_KILLPRIV_V2 and call.header.uid
        return WithoutFsetid() if ours else nullcontext()

    def lseek(self, call: Call) -> s.LseekOut:
        """Where data, or a hole, begins."""
        given = arguments(call, s.LseekIn)
        file = self._state.opened.file(given.fh, call.header.nodeid)
        if given.whence not in _WHENCE:
            raise failed(errno.EINVAL)
        if given.offset > OFFSET_MAX:
            raise failed(errno.ENXIO)
        self._state.settled(file.inode, 0, OFFSET_MAX)
        return s.LseekOut(os.lseek(file.fd.number, given.offset, given.whence))

    def copy_file_range(self, call: Call) -> s.WriteOut:
        """Copy bytes from one open file to another; how many."""
        given = arguments(call, s.CopyFileRangeIn)
        source = self._state.opened.file(given.fh_in, call.header.nodeid)
        target = self._state.opened.file(given.fh_out, given.nodeid_out)
        if given.flags:
            raise failed(errno.EINVAL)
        size = min(given.len, COPY_MAX)
        check_range(given.off_in, size)
        check_range(given.off_out, size)
        self._state.settled(source.inode, given.off_in, given.off_in + size)
        self._state.before(target.inode, given.off_out, given.off_out + size)
        self._capability.drop(target.fd)
        with self._changing(call):
            copied = os.copy_file_range(source.fd.number, target.fd.number, size, given.off_in, given.off_out)
        self._state.after(target.inode, given.off_out, given.off_out + copied)
        return s.WriteOut(copied)


def _sync(fd: int, given: s.FsyncIn) -> None:
    if given.fsync_flags & FsyncFlag.FDATASYNC:
        os.fdatasync(fd)
    else:
        os.fsync(fd)
