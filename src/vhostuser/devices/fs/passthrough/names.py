"""Names: which inode one means, and when the guest has forgotten an inode."""

from __future__ import annotations

import errno
import os
import stat
from typing import Final

from ....fuse import structs as s
from ....fuse.rules import Call
from .attributes import Attributes
from .calls import failed, mount_id
from .found import Found, look, look_at
from .inodes import Inode
from .state import PATH, State, arguments, name_of

_FORGET: Final = s.ForgetOne.STRUCT


class Lookups:
    """LOOKUP, FORGET, BATCH_FORGET, READLINK."""

    def __init__(self, state: State, attributes: Attributes) -> None:
        self._state, self._attributes = state, attributes

    def lookup(self, call: Call) -> bytes:
        """The inode of a name in a directory."""
        return self.entry(self._state.inode(call), name_of(call))

    def entry(self, parent: Inode, name: bytes) -> bytes:
        """An EntryOut: what `name` is in `parent`, looked up once more."""
        inode, found = self.find(parent, name)
        return self._attributes.entry(inode, parent, found)

    def listed(self, parent: Inode, name: bytes, ino: int) -> bytes:
        """The same of a name that was listed with this inode number: one that is new is opened without a look before."""
        if self._state.inodes.peek((parent.key[0], ino, parent.mount)) is not None:
            return self.entry(parent, name)
        at = self._state.at(parent)
        inode, found = self._seen(*self._meet(parent, at.number, name))
        return self._attributes.entry(inode, parent, found)

    def find(self, parent: Inode, name: bytes) -> tuple[Inode, Found]:
        """The inode of `name` in `parent`, looked up once more, and its attributes."""
        at = self._state.at(parent)
        found = look(at.number, name)
        mount = mount_id(at.number, name) if stat.S_ISDIR(found.st_mode) else parent.mount
        inode = self._state.inodes.find((found.st_dev, found.st_ino, mount))
        if inode is None:
            inode, found = self._meet(parent, at.number, name)
        return self._seen(inode, found)

    def _seen(self, inode: Inode, found: Found) -> tuple[Inode, Found]:
        """The same, once the window shows the file so. If it can't the inode was not looked up."""
        try:
            self._state.seen(inode, found)
        except OSError:
            self._state.inodes.forget(inode.nodeid, 1)
            raise
        return inode, found

    def _meet(self, parent: Inode, directory: int, name: bytes) -> tuple[Inode, Found]:
        """The same of an inode that is new, or one that has no fd."""
        fd = self._state.kept(os.open(name, PATH, dir_fd=directory))
        found = look_at(fd.number)
        mount = mount_id(fd.number) if stat.S_ISDIR(found.st_mode) else parent.mount
        return self._state.adopt(fd, found, mount), found

    def forget(self, call: Call) -> None:
        """Count lookups less."""
        self._state.inodes.forget(call.header.nodeid, arguments(call, s.ForgetIn).nlookup)

    def batch_forget(self, call: Call) -> None:
        """Count lookups less, of several inodes."""
        count = arguments(call, s.BatchForgetIn).count
        if len(call.data) != count * _FORGET.size:
            raise failed(errno.EINVAL)
        for nodeid, lookups in _FORGET.iter_unpack(call.data):
            self._state.inodes.forget(nodeid, lookups)

    def readlink(self, call: Call) -> bytes:
        """What a symbolic link says."""
        inode = self._state.inode(call)
        if inode.type != stat.S_IFLNK:
            raise failed(errno.EINVAL)
        at = self._state.at(inode)
        return os.readlink(b"", dir_fd=at.number)
