"""Files and directories of a virtio-fs device without a VM: by path, below the share's root."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final, NamedTuple

from ..errors import LocalProtocolError, RemoteProtocolError
from ..fuse.numbers import NO_HANDLE, ROOT_ID, Fattr, MappingFlag, Opcode
from ..fuse.rules import is_name
from ..fuse.structs import (
    Attr,
    AttrOut,
    CreateIn,
    Dirent,
    EntryOut,
    FlushIn,
    GetattrIn,
    MkdirIn,
    OpenIn,
    OpenOut,
    ReadIn,
    ReleaseIn,
    RemovemappingIn,
    RemovemappingOne,
    RenameIn,
    SetattrIn,
    SetupmappingIn,
    WriteIn,
    WriteOut,
)
from ..shared_region import SharedRegion
from .fuse import FuseSession

SLOT: Final = 2 << 20
"""Bytes that are mapped at a time, as Linux does."""
LISTED: Final = 1 << 16
"""Bytes of directory entries that are asked for at a time."""
_ENTRY, _OPENED = EntryOut.STRUCT.size, OpenOut.STRUCT.size


class Entry(NamedTuple):
    """What a directory has: a name, the inode's number, and its type, as `stat.S_IFMT` gives it."""

    name: str
    ino: int
    type: int


class FsDriver:
    """The files of a share. Paths begin at its root, with or without a slash, and follow no link.

    Methods raise OSError with the device's errno, and what FuseSession raises.
    """

    def __init__(self, session: FuseSession) -> None:
        self.session = session

    def stat(self, path: str) -> Attr:
        """The attributes of what is there."""
        with self._node(path) as nodeid:
            return _attr(self.session.call(Opcode.GETATTR, nodeid, GetattrIn()))

    def readlink(self, path: str) -> str:
        """What a symbolic link says."""
        with self._node(path) as nodeid:
            return os.fsdecode(self.session.call(Opcode.READLINK, nodeid, room=4096))

    def listdir(self, path: str = "") -> list[Entry]:
        """The entries of a directory, without `.` and `..`, in the device's order."""
        with self._node(path) as nodeid:
            return [each for each in self._entries(nodeid) if each.name not in (".", "..")]

    def walk(self, path: str = "") -> Iterator[tuple[str, Attr]]:
        """All that is at and below a path, and its attributes; a directory comes before what is in it."""
        attr = self.stat(path)
        yield path, attr
        if stat.S_ISDIR(attr.mode):
            for entry in self.listdir(path):
                yield from self.walk(f"{path.rstrip('/')}/{entry.name}" if path else entry.name)

    def read(self, path: str) -> Iterator[bytes]:
        """The bytes of a file, piece by piece."""
        with self._opened(path, os.O_RDONLY) as (nodeid, fh):
            yield from self._read_all(nodeid, fh)

    def write(self, path: str, pieces: Iterable[bytes], *, mode: int = 0o644) -> int:
        """Make a file of these bytes, or make it anew; how many they were. FLUSH has said yes when this returns."""
        folder, name = _split(path)
        with self._node(folder) as parent:
            flags = os.O_WRONLY | os.O_CREAT
            reply = self.session.call(Opcode.CREATE, parent, CreateIn(flags, mode), name, room=_ENTRY + _OPENED)
            nodeid, fh = _entry(reply).nodeid, _opened(reply[_ENTRY:])
            with self._held(nodeid, fh, flags):
                self._truncate(nodeid, fh)
                return self._write_all(nodeid, fh, pieces)

    def mkdir(self, path: str, mode: int = 0o755) -> None:
        """Make a directory."""
        folder, name = _split(path)
        with self._node(folder) as parent:
            made = _entry(self.session.call(Opcode.MKDIR, parent, MkdirIn(mode), name))
            self.session.forget([made.nodeid])

    def unlink(self, path: str) -> None:
        """Take a name that is no directory's away."""
        self._remove(Opcode.UNLINK, path)

    def rmdir(self, path: str) -> None:
        """Take an empty directory away."""
        self._remove(Opcode.RMDIR, path)

    def rename(self, path: str, new: str) -> None:
        """Give something another name."""
        (folder, name), (new_folder, new_name) = _split(path), _split(new)
        with self._node(folder) as parent, self._node(new_folder) as new_parent:
            self.session.call(Opcode.RENAME, parent, RenameIn(new_parent), name, new_name)

    # The window

    def window(self) -> SharedRegion:
        """The DAX window. LocalProtocolError if the device has none."""
        region = self.session.frontend.shm.get(0)
        if region is None:
            raise LocalProtocolError("the device has no window: it offers no shared memory region 0", request="SETUPMAPPING")
        return region

    def read_mapped(self, path: str, moffset: int = 0) -> Iterator[bytes]:
        """The bytes of a file as the window shows them, piece by piece, each mapped at `moffset` for a while."""
        window = self.window()
        with self._node(path) as nodeid:
            size = _attr(self.session.call(Opcode.GETATTR, nodeid, GetattrIn())).size
            for foffset in range(0, size, SLOT):
                with self.mapped(nodeid, foffset, moffset):
                    yield window.read(moffset, min(SLOT, size - foffset))

    @contextmanager
    def mapped(self, nodeid: int, foffset: int, moffset: int, *, size: int = SLOT, writable: bool = False) -> Iterator[None]:
        """In the block, `size` bytes of a file from `foffset` on are in the window at `moffset`."""
        flags = MappingFlag.READ | (MappingFlag.WRITE if writable else 0)
        self.session.call(Opcode.SETUPMAPPING, nodeid, SetupmappingIn(NO_HANDLE, foffset, size, flags, moffset))
        try:
            yield
        finally:
            one = RemovemappingOne(moffset, size).pack()
            self.session.call(Opcode.REMOVEMAPPING, nodeid, RemovemappingIn(1), data=one)

    # Nodes and handles

    @contextmanager
    def _node(self, path: str) -> Iterator[int]:
        """The nodeid of a path, as long as the block lasts."""
        nodes: list[int] = []
        try:
            for name in _names(path):
                reply = self.session.call(Opcode.LOOKUP, nodes[-1] if nodes else ROOT_ID, None, name)
                nodes.append(_entry(reply).nodeid)
            yield nodes[-1] if nodes else ROOT_ID
        finally:
            self.session.forget(nodes)

    @contextmanager
    def _opened(self, path: str, flags: int) -> Iterator[tuple[int, int]]:
        """Nodeid and handle of a file, open as long as the block lasts."""
        with self._node(path) as nodeid:
            fh = _opened(self.session.call(Opcode.OPEN, nodeid, OpenIn(flags)))
            try:
                yield nodeid, fh
            finally:
                self.session.call(Opcode.RELEASE, nodeid, ReleaseIn(fh, flags))

    @contextmanager
    def _held(self, nodeid: int, fh: int, flags: int) -> Iterator[None]:
        """The block with a file that CREATE made, which is given back then."""
        try:
            yield
            self.session.call(Opcode.FLUSH, nodeid, FlushIn(fh))
        finally:
            self.session.call(Opcode.RELEASE, nodeid, ReleaseIn(fh, flags))
            self.session.forget([nodeid])

    def _entries(self, nodeid: int) -> Iterator[Entry]:
        fh = _opened(self.session.call(Opcode.OPENDIR, nodeid, OpenIn(os.O_RDONLY | os.O_DIRECTORY)))
        try:
            offset = 0
            while data := self.session.call(Opcode.READDIR, nodeid, ReadIn(fh, offset, LISTED), room=LISTED):
                for dirent, name in _dirents(data):
                    offset = dirent.off
                    yield Entry(os.fsdecode(name), dirent.ino, dirent.type << 12)
        finally:
            self.session.call(Opcode.RELEASEDIR, nodeid, ReleaseIn(fh))

    def _read_all(self, nodeid: int, fh: int) -> Iterator[bytes]:
        offset, most = 0, self.session.max_write
        while data := self.session.call(Opcode.READ, nodeid, ReadIn(fh, offset, most), room=most):
            offset += len(data)
            yield data

    def _write_all(self, nodeid: int, fh: int, pieces: Iterable[bytes]) -> int:
        offset, most = 0, self.session.max_write
        for piece in pieces:
            start = 0
            while start < len(piece):
                data = piece[start : start + most]
                reply = self.session.call(Opcode.WRITE, nodeid, WriteIn(fh, offset, len(data)), data=data)
                written = WriteOut.unpack(_sized(reply, WriteOut.STRUCT.size)).size
                if not 0 < written <= len(data):
                    raise RemoteProtocolError(f"WRITE size {written} of {len(data)} bytes", request="WRITE", field="size")
                start, offset = start + written, offset + written
        return offset

    def _truncate(self, nodeid: int, fh: int) -> None:
        self.session.call(Opcode.SETATTR, nodeid, SetattrIn(Fattr.SIZE | Fattr.FH, fh))

    def _remove(self, opcode: Opcode, path: str) -> None:
        folder, name = _split(path)
        with self._node(folder) as parent:
            self.session.call(opcode, parent, None, name)


def _names(path: str) -> list[bytes]:
    """The names that a path is made of. LocalProtocolError if one is `.` or `..`, which are the guest's to understand."""
    names = [os.fsencode(name) for name in path.split("/") if name]
    for name in names:
        if not is_name(name):
            raise LocalProtocolError(f"{path[:80]!a} has the name {os.fsdecode(name)!a}", field="path", value=path)
    return names


def _split(path: str) -> tuple[str, bytes]:
    """The folder of a path, and its last name."""
    names: Sequence[bytes] = _names(path)
    if not names:
        raise LocalProtocolError(f"{path!a} is the share itself", field="path", value=path)
    return "/".join(map(os.fsdecode, names[:-1])), names[-1]


def _sized(data: bytes, size: int) -> bytes:
    """The data, if they are so many."""
    if len(data) != size:
        raise RemoteProtocolError(f"an answer has {len(data)} bytes, not {size}", field="len", value=len(data), limit=size)
    return data


def _entry(reply: bytes) -> EntryOut:
    entry = EntryOut.unpack(_sized(reply[:_ENTRY], _ENTRY))
    if not entry.nodeid:
        raise FileNotFoundError(2, "LOOKUP: no such file, and the guest may remember that")
    return entry


def _opened(reply: bytes) -> int:
    """The handle in the answer to an OPEN."""
    return OpenOut.unpack(_sized(reply, _OPENED)).fh


def _attr(reply: bytes) -> Attr:
    return Attr.unpack(AttrOut.unpack(_sized(reply, AttrOut.STRUCT.size)).attr)


def _dirents(data: bytes) -> Iterator[tuple[Dirent, bytes]]:
    """The entries in the answer to a READDIR, and their names."""
    size, at = Dirent.STRUCT.size, 0
    while at + size <= len(data):
        dirent = Dirent.unpack(data[at : at + size])
        name = data[at + size : at + size + dirent.namelen]
        if not dirent.namelen or len(name) < dirent.namelen:
            text = f"READDIR namelen {dirent.namelen}, {len(data) - at - size} bytes follow"
            raise RemoteProtocolError(text, request="READDIR", field="namelen", value=dirent.namelen)
        yield dirent, name
        at += -(-(size + dirent.namelen) // 8) * 8
