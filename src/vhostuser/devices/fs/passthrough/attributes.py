"""What a file is, packed for the guest: on its own, as the answer to GETATTR, or as that to a lookup.

These are made for each name that is looked up or listed, so they go from stat(2) to bytes at once.
"""

from __future__ import annotations

import os
import stat
from struct import Struct
from typing import Final

from ....fuse import structs as s
from ....fuse.numbers import AttrFlag, InitFlag
from ..idmap import IDENTITY
from ..options import TIMEOUTS
from .found import Found
from .inodes import Inode
from .state import Ids, State

_SECOND: Final = 1_000_000_000
_U64: Final = (1 << 64) - 1
_U32: Final = (1 << 32) - 1
_pack: Final = s.Attr.STRUCT.pack
_nodeid: Final = Struct("=Q").pack
_ATTR: Final = bytes(s.Attr.STRUCT.size)
_SAME: Final = (None, IDENTITY)
"""What leaves ids as they are."""


class Attributes:
    """Packs attributes as one share tells them: how long they hold, whose the files are, and what may be mapped."""

    def __init__(self, state: State, uids: Ids | None, gids: Ids | None) -> None:
        self._state, self._uids, self._gids = state, uids, gids
        self._translated = uids not in _SAME or gids not in _SAME
        seconds = TIMEOUTS[state.options.cache]
        self.seconds, self.nanoseconds = int(seconds), int(seconds % 1 * _SECOND)
        entry = s.EntryOut(0, 0, self.seconds, self.seconds, self.nanoseconds, self.nanoseconds, _ATTR)
        self._entry = entry.pack()[_NODEID_SIZE : -len(_ATTR)]
        self._attr = s.AttrOut(self.seconds, self.nanoseconds, _ATTR).pack()[: -len(_ATTR)]

    def entry(self, inode: Inode, parent: Inode | None, found: Found) -> bytes:
        """An EntryOut: the inode that was found in `parent`."""
        return _nodeid(inode.nodeid) + self._entry + self.attr(found, self._flags(inode, parent))

    def answer(self, inode: Inode, found: Found) -> bytes:
        """An AttrOut."""
        return self._attr + self.attr(found, self._flags(inode, None))

    def ids(self, uid: int, gid: int) -> tuple[int, int]:
        """The guest's ids for those of the host."""
        guest_uid = uid if self._uids is None else self._uids.to_guest(uid)
        return guest_uid, gid if self._gids is None else self._gids.to_guest(gid)

    def attr(self, found: Found, flags: int) -> bytes:
        """An Attr."""
        if not isinstance(found, os.stat_result):
            uid, gid = found.st_uid, found.st_gid
            return found.attr(*(self.ids(uid, gid) if self._translated else (uid, gid)), flags)
        mode, ino, _, nlink, uid, gid, size = found[:7]
        atime, atimensec = divmod(found.st_atime_ns, _SECOND)
        mtime, mtimensec = divmod(found.st_mtime_ns, _SECOND)
        ctime, ctimensec = divmod(found.st_ctime_ns, _SECOND)
        if self._translated:
            uid, gid = self.ids(uid, gid)
        return _pack(
            ino,
            size,
            found.st_blocks,
            atime & _U64,
            mtime & _U64,
            ctime & _U64,
            atimensec,
            mtimensec,
            ctimensec,
            mode,
            nlink & _U32,
            uid,
            gid,
            found.st_rdev & _U32,
            found.st_blksize & _U32,
            flags,
        )

    def _flags(self, inode: Inode, parent: Inode | None) -> int:
        """Whether a regular file is mapped, and whether a directory is another file system than its parent."""
        state = self._state
        if inode.type == stat.S_IFREG:
            return AttrFlag.DAX if state.maps else 0
        if parent is None or inode.type != stat.S_IFDIR or not state.agreed & InitFlag.SUBMOUNTS:
            return 0
        other = inode.mount != parent.mount or inode.key[0] != parent.key[0]
        return AttrFlag.SUBMOUNT if other and state.options.announce_submounts else 0


_NODEID_SIZE: Final = len(_nodeid(0))
