"""Regular files: opened, made, read, written, released."""

from __future__ import annotations

import errno
import os
import stat
from contextlib import nullcontext
from typing import Final

from ....fuse import structs as s
from ....fuse.numbers import FopenFlag, InitFlag, OpenFlag, WriteFlag
from ....fuse.rules import Call
from ..options import Cache
from ..transfer import Incoming, Outgoing
from .attributes import Attributes
from .calls import failed
from .capability import Capability
from .closing import Closing
from .credentials import Creators, WithoutFsetid
from .found import look_at
from .inodes import Fd, Inode
from .names import Lookups
from .opened import OpenFile
from .state import State, arguments, name_of

OFFSET_MAX: Final = (1 << 63) - 1
FOPEN: Final = {
    Cache.AUTO: 0,
    Cache.ALWAYS: FopenFlag.KEEP_CACHE,
    Cache.NEVER: FopenFlag.DIRECT_IO,
    Cache.METADATA: FopenFlag.DIRECT_IO,
}
"""What the guest's kernel is told of an open file."""


_open_out: Final = s.OpenOut.STRUCT.pack


class Files:
    """OPEN, CREATE, TMPFILE, READ, WRITE, RELEASE."""

    def __init__(
        self, state: State, attributes: Attributes, lookups: Lookups, creators: Creators, capability: Capability
    ) -> None:
        self._state, self._attributes, self._lookups, self._creators = state, attributes, lookups, creators
        self._capability, self._closing = capability, Closing(state)
        self._fopen = FOPEN[state.options.cache]
        direct, noatime = state.options.allow_direct_io, state.options.preserve_noatime
        self._ignored = (0 if direct else os.O_DIRECT) | (0 if noatime else os.O_NOATIME)

    def open(self, call: Call) -> bytes:
        """Open an inode."""
        given, inode = arguments(call, s.OpenIn), self._state.inode(call)
        if inode.type != stat.S_IFREG:
            raise failed(errno.EISDIR if inode.type == stat.S_IFDIR else errno.EBADF)
        fh, fd = self._open(inode, given.flags, given.open_flags)
        return self._opened(inode, fh, fd)

    def _opened(self, inode: Inode, fh: int, fd: Fd) -> bytes:
        """An OpenOut."""
        return _open_out(fh, self._fopen | self._closing.flags(inode, fd), 0)

    def _open(self, inode: Inode, flags: int, open_flags: int) -> tuple[int, Fd]:
        """An inode that is opened anew, and its `fh`."""
        flags = self._flags(flags)
        if flags & os.O_TRUNC:
            self._state.before(inode, 0, 0)
        shortening = self._state.shrinking(inode, 0) if flags & os.O_TRUNC else nullcontext()
        with shortening, WithoutFsetid() if open_flags & OpenFlag.KILL_SUIDGID else nullcontext():
            fd, appends = self._reopen(inode, flags)
        if flags & os.O_TRUNC:
            self._capability.drop(fd)
            self._state.after(inode, 0, 0)
        elif self._state.window is not None:
            self._state.seen(inode, os.fstat(fd.number))
        return self._state.add_file(inode, fd, appends=appends), fd

    def _reopen(self, inode: Inode, flags: int) -> tuple[Fd, bool]:
        """An inode opened anew, and whether only with O_APPEND, as a file must be that can only be appended to."""
        try:
            return self._state.reopen(inode, flags & ~os.O_APPEND), False
        except PermissionError:
            if not flags & os.O_APPEND:
                raise
            return self._state.reopen(inode, flags), True

    def _flags(self, flags: int) -> int:
        """The flags to open a file with, given those of the guest; with a write-back cache it reads what is only written."""
        if self._knows_the_end():
            flags &= ~os.O_APPEND
            if flags & os.O_ACCMODE == os.O_WRONLY:
                flags = flags & ~os.O_ACCMODE | os.O_RDWR
        return flags & ~self._ignored

    def create(self, call: Call) -> bytes:
        """Make a file and open it, or open the one that is there. The answer is an EntryOut and an OpenOut."""
        given, parent, name = arguments(call, s.CreateIn), self._state.inode(call), name_of(call)
        at = self._state.at(parent)
        self._state.check_room(2)
        try:
            fd = self._make(call, given, at.number, name, os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW)
        except FileExistsError:
            if given.flags & os.O_EXCL:
                raise
            return self._existing(parent, name, given)
        return self._made(parent, fd)

    def tmpfile(self, call: Call) -> bytes:
        """Make a file that has no name, in the file system of a directory, and open it."""
        given, parent = arguments(call, s.CreateIn), self._state.inode(call)
        at = self._state.at(parent)
        return self._made(parent, self._make(call, given, at.number, b".", os.O_TMPFILE | given.flags & os.O_EXCL))

    def _make(self, call: Call, given: s.CreateIn, directory: int, name: bytes, how: int) -> Fd:
        flags = self._flags(given.flags) & _CREATED | how | os.O_CLOEXEC | os.O_NONBLOCK
        mode = self._creators.mode(given.mode, given.umask) & 0o7777
        with self._creators.acting(call, given.umask):
            return self._state.kept(os.open(name, flags, mode, dir_fd=directory))

    def _made(self, parent: Inode, fd: Fd) -> bytes:
        """The answer of a file that is new."""
        found = look_at(fd.number)
        path = os.open(b"%d" % fd.number, os.O_PATH | os.O_CLOEXEC, dir_fd=self._state.proc.number)
        inode = self._state.adopt(self._state.kept(path), found, parent.mount)
        fh = self._state.add_file(inode, fd)
        return self._attributes.entry(inode, parent, found) + self._opened(inode, fh, fd)

    def _existing(self, parent: Inode, name: bytes, given: s.CreateIn) -> bytes:
        """The answer of a file that was there."""
        inode, _ = self._lookups.find(parent, name)
        try:
            if inode.type != stat.S_IFREG:
                raise failed(errno.EISDIR if inode.type == stat.S_IFDIR else errno.EBADF)
            fh, fd = self._open(inode, given.flags, given.open_flags)
            found = os.fstat(fd.number)
        except OSError:
            self._state.inodes.forget(inode.nodeid, 1)
            raise
        return self._attributes.entry(inode, parent, found) + self._opened(inode, fh, fd)

    def read(self, call: Call, room: Outgoing) -> int:
        """Move bytes of a file to the guest; how many."""
        given = arguments(call, s.ReadIn)
        file = self._state.opened.file(given.fh, call.header.nodeid)
        size = given.size if given.size <= room.size else room.size  # twice as fast as min()
        check_range(given.offset, size)
        if self._state.window is not None:
            self._state.settled(file.inode, given.offset, given.offset + size)
        return room.preadv(file.fd.number, size, given.offset)

    def write(self, call: Call, source: Incoming) -> int:
        """Move bytes of the guest to a file; how many."""
        given = arguments(call, s.WriteIn)
        file = self._state.opened.file(given.fh, call.header.nodeid)
        if given.size > source.size:
            raise failed(errno.EINVAL)
        if given.offset > OFFSET_MAX - given.size:
            raise failed(errno.EFBIG)
        self._state.before(file.inode, given.offset, given.offset + given.size)
        self._capability.drop(file.fd)
        if not given.write_flags & WriteFlag.KILL_SUIDGID:
            written = self._put(file, given, source)
        else:
            with WithoutFsetid():
                written = self._put(file, given, source)
        self._state.after(file.inode, given.offset, given.offset + written)
        return written

    def _put(self, file: OpenFile, given: s.WriteIn, source: Incoming) -> int:
        """Write to the end, if the guest's file has O_APPEND now and it is no page of its cache, which has its place."""
        if given.flags & os.O_APPEND and not given.write_flags & WriteFlag.CACHE and not self._knows_the_end():
            return source.append(file.fd.number, given.size)
        if file.appends:
            raise failed(errno.EPERM)
        return source.pwritev(file.fd.number, given.size, given.offset)

    def _knows_the_end(self) -> int:
        """Whether the guest has a write-back cache, and so knows itself where files end."""
        return self._state.agreed & InitFlag.WRITEBACK_CACHE

    def release(self, call: Call) -> None:
        """Close a file. Nobody hears what fails of it, so nobody is told."""
        given, nodeid = arguments(call, s.ReleaseIn), call.header.nodeid
        file = self._state.opened.file(given.fh, nodeid)
        self._state.opened.release_file(given.fh, nodeid)
        self._state.write_back(file.inode)


_CREATED: Final = os.O_ACCMODE | os.O_TRUNC | os.O_DIRECT | os.O_SYNC | os.O_DSYNC | os.O_NOATIME


def check_range(offset: int, size: int) -> None:
    """OSError, EINVAL, if a file can't have bytes there."""
    if offset > OFFSET_MAX - size:
        raise failed(errno.EINVAL)
