"""The share: one method for each request about its files."""

from __future__ import annotations

from ....transport.fds import OwnedFd
from ..options import ShareOptions
from .attributes import Attributes
from .credentials import Creators
from .directories import Directories
from .files import Files
from .names import Lookups
from .nodes import Nodes
from .state import Ids, Mappings, State
from .tree import Tree


class Share:
    """A directory, or a file, of the host, and what a guest knows of it and has open.

    Methods are named after requests. Each takes the Call and gives a struct, or the bytes of the answer, or None for an
    empty one; READ and WRITE also take where the bytes go, or come from, and give how many were moved. What fails is an
    OSError. They may run in several threads at once.
    """

    def __init__(
        self,
        root: OwnedFd,
        options: ShareOptions,
        *,
        window: Mappings | None = None,
        uids: Ids | None = None,
        gids: Ids | None = None,
    ) -> None:
        self._state = state = State(root, options, window)
        self._attributes = attributes = Attributes(state, uids, gids)
        lookups = Lookups(state, attributes)
        creators = Creators(state, uids, gids)
        self._bind_names(lookups)
        self._bind_nodes(Nodes(state, attributes))
        self._bind_tree(Tree(state, lookups, creators))
        self._bind_files(Files(state, attributes, lookups, creators))
        self._bind_directories(Directories(state, lookups))

    def _bind_names(self, lookups: Lookups) -> None:
        self.lookup, self.forget, self.batch_forget = lookups.lookup, lookups.forget, lookups.batch_forget
        self.readlink = lookups.readlink

    def _bind_nodes(self, nodes: Nodes) -> None:
        self.getattr = nodes.getattr

    def _bind_tree(self, tree: Tree) -> None:
        self.mknod, self.mkdir, self.symlink, self.link = tree.mknod, tree.mkdir, tree.symlink, tree.link
        self.unlink, self.rmdir, self.rename, self.rename2 = tree.unlink, tree.rmdir, tree.rename, tree.rename2

    def _bind_files(self, files: Files) -> None:
        self.open, self.create, self.tmpfile, self.release = files.open, files.create, files.tmpfile, files.release
        self.read, self.write = files.read, files.write

    def _bind_directories(self, directories: Directories) -> None:
        self.opendir, self.releasedir = directories.opendir, directories.releasedir
        self.readdir, self.readdirplus = directories.readdir, directories.readdirplus

    @property
    def agreed(self) -> int:
        """The mask of InitFlag that INIT agreed upon."""
        return self._state.agreed

    @agreed.setter
    def agreed(self, mask: int) -> None:
        self._state.agreed = mask

    @property
    def window(self) -> Mappings | None:
        """The window that files are mapped into; None if there is none."""
        return self._state.window

    @window.setter
    def window(self, window: Mappings | None) -> None:
        self._state.window = window

    def reset(self) -> None:
        """Close all that is open and forget all inodes but the root; nothing is agreed upon."""
        self._state.reset()

    def close(self) -> None:
        """The share has ended."""
        self._state.close()
