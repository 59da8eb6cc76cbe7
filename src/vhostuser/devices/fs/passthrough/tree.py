"""What changes directories: files that are made, linked, renamed and deleted."""

from __future__ import annotations

import errno
import os
import stat
from typing import Final

from ....fuse import structs as s
from ....fuse.rules import Call
from . import calls
from .calls import failed
from .credentials import Creators
from .names import Lookups
from .state import State, arguments, name_of

RENAME_NOREPLACE: Final = 1
RENAME_EXCHANGE: Final = 2
_MADE: Final = frozenset({0, stat.S_IFREG, stat.S_IFIFO, stat.S_IFSOCK})
"""What MKNOD makes: no device, which would be one of the host."""


class Tree:
    """MKNOD, MKDIR, SYMLINK, LINK, UNLINK, RMDIR, RENAME, RENAME2."""

    def __init__(self, state: State, lookups: Lookups, creators: Creators) -> None:
        self._state, self._lookups, self._creators = state, lookups, creators

    def mknod(self, call: Call) -> bytes:
        """Make a file, a FIFO or a socket. OSError, EPERM, if it is to be a device."""
        given, parent, name = arguments(call, s.MknodIn), self._state.inode(call), name_of(call)
        if stat.S_IFMT(given.mode) not in _MADE:
            raise failed(errno.EPERM)
        at = self._state.at(parent)
        self._state.check_room(1)
        with self._creators.acting(call, given.umask):
            os.mknod(name, self._creators.mode(given.mode, given.umask), dir_fd=at.number)
        return self._lookups.entry(parent, name)

    def mkdir(self, call: Call) -> bytes:
        """Make a directory."""
        given, parent, name = arguments(call, s.MkdirIn), self._state.inode(call), name_of(call)
        at = self._state.at(parent)
        self._state.check_room(1)
        with self._creators.acting(call, given.umask):
            os.mkdir(name, self._creators.mode(given.mode, given.umask), dir_fd=at.number)
        return self._lookups.entry(parent, name)

    def symlink(self, call: Call) -> bytes:
        """Make a symbolic link: its name, then what it says, which is the guest's business."""
        parent, name = self._state.inode(call), name_of(call)
        at = self._state.at(parent)
        self._state.check_room(1)
        with self._creators.acting(call, 0):
            os.symlink(call.names[1], name, dir_fd=at.number)
        return self._lookups.entry(parent, name)

    def link(self, call: Call) -> bytes:
        """Give an inode one name more."""
        given, parent, name = arguments(call, s.LinkIn), self._state.inode(call), name_of(call)
        file, at = self._state.at(self._state.inodes.get(given.oldnodeid)), self._state.at(parent)
        source = b"%d" % file.number
        os.link(source, name, src_dir_fd=self._state.proc.number, dst_dir_fd=at.number, follow_symlinks=True)
        return self._lookups.entry(parent, name)

    def unlink(self, call: Call) -> None:
        """Delete the name of a file."""
        at = self._state.at(self._state.inode(call))
        os.unlink(name_of(call), dir_fd=at.number)

    def rmdir(self, call: Call) -> None:
        """Delete an empty directory."""
        at = self._state.at(self._state.inode(call))
        os.rmdir(name_of(call), dir_fd=at.number)

    def rename(self, call: Call) -> None:
        """Rename a file, over another if there is one."""
        self._rename(call, arguments(call, s.RenameIn).newdir, 0)

    def rename2(self, call: Call) -> None:
        """Rename a file over none, or let two change places. OSError, EINVAL, for other flags: whiteouts are devices."""
        given = arguments(call, s.Rename2In)
        if given.flags & ~(RENAME_NOREPLACE | RENAME_EXCHANGE):
            raise failed(errno.EINVAL)
        self._rename(call, given.newdir, given.flags)

    def _rename(self, call: Call, newdir: int, flags: int) -> None:
        old, new = self._state.at(self._state.inode(call)), self._state.at(self._state.inodes.get(newdir))
        names = name_of(call, 0), name_of(call, 1)
        if flags:
            calls.rename(old.number, names[0], new.number, names[1], flags)
        else:
            os.rename(names[0], names[1], src_dir_fd=old.number, dst_dir_fd=new.number)
