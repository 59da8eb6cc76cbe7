"""The files that the guest knows by nodeid: each held open by O_PATH, or named by a file handle where fds are scarce.

An inode lives until the guest has forgotten it as often as it was looked up, and until no request works on it any more:
its fd is closed when the last reference to it goes, never under a thread that still uses the number.
"""

from __future__ import annotations

import errno
import os
import stat
import threading
from itertools import count
from typing import Final

from ....fuse.numbers import ROOT_ID
from .calls import FileHandle, failed

Key = tuple[int, int, int]
"""st_dev, st_ino, and the mount: the same file seen through two mounts are two inodes."""
_NEVER: Final = 1 << 62
"""Lookups of the root: it is never forgotten."""


class Fd:
    """An fd that is closed when nobody refers to it any more, or by `close`.

    So its number is good only while a variable holds it: `f(g().number)` hands over the number of a closed file.
    """

    __slots__ = ("number", "__weakref__")

    def __init__(self, number: int) -> None:
        self.number = number

    def detach(self) -> int:
        """Hand the number over: the caller closes it."""
        number, self.number = self.number, -1
        return number

    def close(self) -> None:
        """Close it, unless it already is."""
        if self.number >= 0:
            os.close(self.detach())

    def __del__(self) -> None:
        if self.number >= 0:
            try:
                os.close(self.number)
            except OSError:  # FLUSH has said so, or FSYNC will
                return


class Inode:
    """A file that the guest knows. It has an fd, or a handle."""

    __slots__ = ("nodeid", "key", "type", "fd", "handle", "lookups", "locks")

    def __init__(self, nodeid: int, key: Key, mode: int, fd: Fd | None, handle: FileHandle | None = None) -> None:
        self.nodeid, self.key, self.type = nodeid, key, stat.S_IFMT(mode)
        self.fd, self.handle = fd, handle
        self.lookups = 1
        self.locks: dict[int, Fd] | None = None
        """For each owner of POSIX locks the open file that has them, once there is one."""

    @property
    def mount(self) -> int:
        """The number of the mount that it is on."""
        return self.key[2]

    @property
    def file(self) -> tuple[int, int]:
        """st_dev and st_ino: what it is to the window."""
        return self.key[:2]


class Inodes:
    """All of them, by nodeid and by key. Nodeids are never used twice."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._nodeids = count(ROOT_ID + 1)
        self._by_nodeid: dict[int, Inode] = {}
        self._by_key: dict[Key, Inode] = {}

    def set_root(self, root: Inode) -> None:
        """The only inode is now the root."""
        root.lookups = _NEVER
        with self._lock:
            self._by_nodeid, self._by_key = {ROOT_ID: root}, {root.key: root}

    def get(self, nodeid: int) -> Inode:
        """The inode of a nodeid. OSError, EBADF, if there is none."""
        found = self._by_nodeid.get(nodeid)
        if found is None:
            raise failed(errno.EBADF)
        return found

    def find(self, key: Key) -> Inode | None:
        """The inode with this key that has an fd, looked up once more. (Without, the host may have used its number anew.)"""
        with self._lock:
            found = self._by_key.get(key)
            if found is None or found.fd is None:
                return None
            found.lookups += 1
            return found

    def peek(self, key: Key) -> Inode | None:
        """The inode with this key, not counted."""
        return self._by_key.get(key)

    def add(self, key: Key, mode: int, fd: Fd | None, handle: FileHandle | None) -> Inode:
        """The inode with this key and handle, looked up once more; a new one if there is none."""
        with self._lock:
            found = self._by_key.get(key)
            if found is not None and (found.fd is not None or found.handle == handle):
                found.lookups += 1
                return found
            made = Inode(next(self._nodeids), key, mode, fd, handle)
            self._by_nodeid[made.nodeid] = self._by_key[key] = made
            return made

    def forget(self, nodeid: int, lookups: int) -> Inode | None:
        """Count so many lookups less; the inode, if these were all. An unknown nodeid, the root, too many: no matter."""
        with self._lock:
            found = self._by_nodeid.get(nodeid)
            if found is None or nodeid == ROOT_ID:
                return None
            found.lookups -= min(lookups, found.lookups)
            if found.lookups:
                return None
            del self._by_nodeid[nodeid]
            if self._by_key.get(found.key) is found:
                del self._by_key[found.key]
            return found

    def clear(self) -> None:
        """Forget all, the root too."""
        with self._lock:
            self._by_nodeid, self._by_key = {}, {}

    def __len__(self) -> int:
        return len(self._by_nodeid)
