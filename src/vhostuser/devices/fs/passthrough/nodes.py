"""What an inode is, whether or not it is open: its attributes, read and changed."""

from __future__ import annotations

import os

from ....fuse import structs as s
from ....fuse.numbers import GetattrFlag
from ....fuse.rules import Call
from .attributes import Attributes
from .state import State, arguments


class Nodes:
    """GETATTR."""

    def __init__(self, state: State, attributes: Attributes) -> None:
        self._state, self._attributes = state, attributes

    def getattr(self, call: Call) -> bytes:
        """The attributes of an inode, or of an open file of it."""
        given, inode = arguments(call, s.GetattrIn), self._state.inode(call)
        self._state.before(inode)
        if given.getattr_flags & GetattrFlag.FH:
            fd = self._state.opened.file(given.fh, inode.nodeid).fd
        else:
            fd = self._state.at(inode)
        return self._attributes.answer(inode, os.fstat(fd.number))
