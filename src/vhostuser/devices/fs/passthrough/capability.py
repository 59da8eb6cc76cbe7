"""The capabilities of an executable: they don't outlive a change of the file, or of its owner.

The host's kernel sees to that, unless the attribute has another name on the host, which means nothing to it.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import Final

from .inodes import Fd, Inode
from .named import Named
from .state import Names, State

NAME: Final = b"security.capability"
_NONE: Final = (errno.ENODATA, errno.EOPNOTSUPP)


class Capability:
    """Removes the attribute, where that is our part."""

    def __init__(self, state: State, names: Names | None) -> None:
        self._state = state
        self.name = _renamed(names) if names is not None and state.options.xattr else None
        """Its name on the host; None if the host knows it."""

    def drop(self, fd: Fd) -> None:
        """Remove it from an open file that is about to change."""
        if self.name is not None:
            _remove(self.name, lambda name: os.removexattr(fd.number, name))

    def drop_of(self, inode: Inode) -> None:
        """Remove it from an inode that is about to change hands."""
        if self.name is not None:
            with Named(self._state.at(inode), self._state.proc) as path:
                _remove(self.name, lambda name: os.removexattr(path, name))


def _renamed(names: Names) -> bytes | None:
    try:
        name = names.client_to_host(NAME)
    except OSError:
        return None
    return name if name != NAME else None


def _remove(name: bytes, remove: Callable[[bytes], None]) -> None:
    try:
        remove(name)
    except OSError as error:
        if error.errno not in _NONE:
            raise
