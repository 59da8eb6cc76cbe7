"""The share: one method for each request about its files."""

from __future__ import annotations

import errno
import stat

from ....transport.fds import OwnedFd
from ..options import ShareOptions
from .attributes import Attributes
from .calls import failed
from .capability import Capability
from .credentials import Creators
from .directories import Directories
from .files import Files
from .inodes import Inode
from .locks import Locks
from .names import Lookups
from .nodes import Nodes
from .ranges import Ranges
from .state import Ids, Mappings, Names, State
from .tree import Tree
from .xattrs import Xattrs


class Share:
    """A directory, or a file, of the host, and what a guest knows of it and has open.

    Methods are named after requests. Each takes the Call and gives a struct, or the bytes of the answer, or None for an
    empty one; READ and WRITE also take where the bytes go, or come from, and give how many were moved. What fails is an
    OSError. They may run in several threads at once. That a share is read-only is for the server to know (`admission`).
    """

    def __init__(
        self,
        root: OwnedFd,
        options: ShareOptions,
        *,
        window: Mappings | None = None,
        xattr_names: Names | None = None,
        uids: Ids | None = None,
        gids: Ids | None = None,
        fds: OwnedFd | None = None,
    ) -> None:
        self._state = state = State(root, options, window, fds)
        self.compiled = state.opened.compiled
        """What does ordinary requests without Python, if anything does."""
        attributes = Attributes(state, uids, gids)
        creators = Creators(state, uids, gids)
        capability = Capability(state, xattr_names)
        lookups, locks = Lookups(state, attributes), Locks(state)
        self._bind_names(lookups, Tree(state, lookups, creators), Directories(state, lookups))
        self._bind_files(Files(state, attributes, lookups, creators, capability), Ranges(state, locks, capability), locks)
        self._bind_nodes(Nodes(state, attributes, creators, capability), Xattrs(state, xattr_names))

    def _bind_names(self, lookups: Lookups, tree: Tree, directories: Directories) -> None:
        self.lookup, self.forget, self.batch_forget = lookups.lookup, lookups.forget, lookups.batch_forget
        self.readlink = lookups.readlink
        self.mknod, self.mkdir, self.symlink, self.link = tree.mknod, tree.mkdir, tree.symlink, tree.link
        self.unlink, self.rmdir, self.rename, self.rename2 = tree.unlink, tree.rmdir, tree.rename, tree.rename2
        self.opendir, self.releasedir = directories.opendir, directories.releasedir
        self.readdir, self.readdirplus = directories.readdir, directories.readdirplus

    def _bind_files(self, files: Files, ranges: Ranges, locks: Locks) -> None:
        self.open, self.create, self.tmpfile, self.release = files.open, files.create, files.tmpfile, files.release
        self.read, self.write = files.read, files.write
        self.flush, self.fsync, self.fsyncdir = ranges.flush, ranges.fsync, ranges.fsyncdir
        self.fallocate, self.lseek, self.copy_file_range = ranges.fallocate, ranges.lseek, ranges.copy_file_range
        self.getlk, self.setlk, self.setlkw = locks.getlk, locks.setlk, locks.setlkw

    def _bind_nodes(self, nodes: Nodes, xattrs: Xattrs) -> None:
        self.getattr, self.setattr, self.statx, self.access = nodes.getattr, nodes.setattr, nodes.statx, nodes.access
        self.statfs, self.syncfs = nodes.statfs, nodes.syncfs
        self.setxattr, self.getxattr = xattrs.setxattr, xattrs.getxattr
        self.listxattr, self.removexattr = xattrs.listxattr, xattrs.removexattr

    def file(self, nodeid: int) -> MappedInode:
        """The file of an inode, to map it. OSError, EBADF, if there is none, or it is no regular file."""
        inode = self._state.inodes.get(nodeid)
        if inode.type != stat.S_IFREG:
            raise failed(errno.EBADF)
        return MappedInode(self._state, inode)

    @property
    def agreed(self) -> int:
        """The mask of InitFlag that INIT agreed upon."""
        return self._state.agreed

    @agreed.setter
    def agreed(self, mask: int) -> None:
        self._state.begin(mask)

    @property
    def window(self) -> Mappings | None:
        """The window that files are mapped into; None if there is none."""
        return self._state.window

    @window.setter
    def window(self, window: Mappings | None) -> None:
        self._state.use(window)

    def reset(self) -> None:
        """Close all that is open and forget all inodes but the root; nothing is agreed upon."""
        self._state.reset()

    def close(self) -> None:
        """The share has ended."""
        self._state.close()


class MappedInode:
    """A file that is mapped: mappings of the same `key`, st_dev and st_ino, are of the same file."""

    def __init__(self, state: State, inode: Inode) -> None:
        self._state, self._inode = state, inode
        self._fd = state.at(inode)  # what is mapped outlives its name and the guest's interest in it
        self.key = inode.file

    def open(self, flags: int) -> OwnedFd:
        """Open it anew, by its inode."""
        return OwnedFd(self._state.reopen_at(self._fd, flags).detach())
