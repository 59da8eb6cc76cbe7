"""A guest's side of a share: sends it requests, and takes the answers apart."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, Self

from vhostuser.devices.fs.options import ShareOptions
from vhostuser.devices.fs.passthrough.share import Share
from vhostuser.devices.fs.passthrough.state import Ids, Mappings, Names
from vhostuser.fuse import structs as s
from vhostuser.fuse.numbers import ROOT_ID
from vhostuser.fuse.rules import Call
from vhostuser.protocol.layout import Payload
from vhostuser.transport.fds import OwnedFd

WILD = (1 << 64) - 1


class Entry(NamedTuple):
    """An entry that was looked up, made, or listed."""

    out: s.EntryOut
    attr: s.Attr
    nodeid: int
    fh: int = 0


class Room:
    """Takes what is read."""

    def __init__(self, size: int) -> None:
        self.size, self.data = size, b""

    def preadv(self, fd: int, size: int, offset: int) -> int:
        self.data = os.pread(fd, size, offset)
        return len(self.data)


class Source:
    """Gives what is written."""

    def __init__(self, data: bytes) -> None:
        self.data, self.size = data, len(data)

    def pwritev(self, fd: int, size: int, offset: int) -> int:
        return os.pwrite(fd, self.data[:size], offset)

    def append(self, fd: int, size: int) -> int:
        return os.pwritev(fd, [self.data[:size]], 0, os.RWF_APPEND)


class Guest:
    """Its share, and who makes the requests."""

    def __init__(
        self,
        path: Path,
        options: ShareOptions | None = None,
        *,
        window: Mappings | None = None,
        xattr_names: Names | None = None,
        uids: Ids | None = None,
        gids: Ids | None = None,
    ) -> None:
        root = OwnedFd(os.open(path, os.O_PATH))
        options = options or ShareOptions()
        self.share = Share(root, options, window=window, xattr_names=xattr_names, uids=uids, gids=gids)
        self.uid, self.gid = os.geteuid(), os.getegid()
        self.extensions = 0
        """Units of 8 bytes at the end of the data that are extensions."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.share.close()

    def call(self, nodeid: int, arguments: Payload | None, *names: bytes, data: bytes = b"") -> Call:
        header = s.InHeader(0, 0, 1, nodeid, self.uid, self.gid, 1, self.extensions)
        return Call(header, arguments, names, data)

    def lookup(self, name: bytes, parent: int = ROOT_ID) -> Entry:
        return entry(self.share.lookup(self.call(parent, None, name)))

    def walk(self, path: str) -> Entry:
        """The last entry of a path, each looked up."""
        found, nodeid = None, ROOT_ID
        for name in path.split("/"):
            found = self.lookup(name.encode(), nodeid)
            nodeid = found.nodeid
        if found is None:
            raise ValueError(path)
        return found

    def forget(self, nodeid: int, lookups: int = 1) -> None:
        self.share.forget(self.call(nodeid, s.ForgetIn(lookups)))

    def getattr(self, nodeid: int) -> s.Attr:
        answer = s.AttrOut.unpack(self.share.getattr(self.call(nodeid, s.GetattrIn(0, 0))))
        return s.Attr.unpack(answer.attr)

    def open(self, nodeid: int, flags: int = os.O_RDONLY, open_flags: int = 0) -> int:
        return s.OpenOut.unpack(self.share.open(self.call(nodeid, s.OpenIn(flags, open_flags)))).fh

    def opendir(self, nodeid: int = ROOT_ID) -> int:
        return self.share.opendir(self.call(nodeid, s.OpenIn(0, 0))).fh

    def create(
        self,
        name: bytes,
        flags: int = os.O_RDWR,
        mode: int = 0o644,
        umask: int = 0,
        parent: int = ROOT_ID,
        data: bytes = b"",
    ) -> Entry:
        given = s.CreateIn(flags, mode, umask, 0)
        return created(self.share.create(self.call(parent, given, name, data=data)))

    def mkdir(self, name: bytes, mode: int = 0o755, parent: int = ROOT_ID) -> Entry:
        return entry(self.share.mkdir(self.call(parent, s.MkdirIn(mode, 0), name)))

    def mknod(self, name: bytes, mode: int, rdev: int = 0) -> Entry:
        return entry(self.share.mknod(self.call(ROOT_ID, s.MknodIn(mode, rdev, 0), name)))

    def symlink(self, name: bytes, target: bytes) -> Entry:
        return entry(self.share.symlink(self.call(ROOT_ID, None, name, target)))

    def link(self, nodeid: int, name: bytes, parent: int = ROOT_ID) -> Entry:
        return entry(self.share.link(self.call(parent, s.LinkIn(nodeid), name)))

    def unlink(self, name: bytes, parent: int = ROOT_ID) -> None:
        self.share.unlink(self.call(parent, None, name))

    def rmdir(self, name: bytes) -> None:
        self.share.rmdir(self.call(ROOT_ID, None, name))

    def rename(self, old: bytes, new: bytes, parent: int = ROOT_ID, newdir: int = ROOT_ID) -> None:
        self.share.rename(self.call(parent, s.RenameIn(newdir), old, new))

    def rename2(self, old: bytes, new: bytes, flags: int) -> None:
        self.share.rename2(self.call(ROOT_ID, s.Rename2In(ROOT_ID, flags), old, new))

    def read(self, entry: Entry, size: int, offset: int = 0) -> bytes:
        room = Room(size)
        self.share.read(self.call(entry.nodeid, s.ReadIn(entry.fh, offset, size, 0, 0, 0)), room)
        return room.data

    def write(self, entry: Entry, data: bytes, offset: int = 0, flags: int = 0, open_flags: int = 0) -> int:
        """`flags` are of WriteFlag, `open_flags` those that the file has in the guest now."""
        given = s.WriteIn(entry.fh, offset, len(data), flags, 0, open_flags)
        return self.share.write(self.call(entry.nodeid, given), Source(data))

    def release(self, entry: Entry) -> None:
        self.share.release(self.call(entry.nodeid, s.ReleaseIn(entry.fh, 0, 0, 0)))

    def readdir(self, fh: int, offset: int = 0, size: int = 4096, nodeid: int = ROOT_ID) -> list[tuple[bytes, s.Dirent]]:
        data = self.share.readdir(self.call(nodeid, s.ReadIn(fh, offset, size, 0, 0, 0)))
        return [(name, dirent) for _, name, dirent in dirents(data, 0)]

    def readdirplus(
        self, fh: int, offset: int = 0, size: int = 4096, nodeid: int = ROOT_ID
    ) -> list[tuple[bytes, s.Dirent, Entry]]:
        data = self.share.readdirplus(self.call(nodeid, s.ReadIn(fh, offset, size, 0, 0, 0)))
        return [(name, dirent, entry(head)) for head, name, dirent in dirents(data, s.EntryOut.STRUCT.size)]

    def releasedir(self, fh: int, nodeid: int = ROOT_ID) -> None:
        self.share.releasedir(self.call(nodeid, s.ReleaseIn(fh, 0, 0, 0)))


def entry(data: bytes) -> Entry:
    """What an EntryOut says."""
    out = s.EntryOut.unpack(data)
    return Entry(out, s.Attr.unpack(out.attr), out.nodeid)


def created(data: bytes) -> Entry:
    """What an EntryOut and an OpenOut say."""
    size = s.EntryOut.STRUCT.size
    return entry(data[:size])._replace(fh=s.OpenOut.unpack(data[size:]).fh)


def dirents(data: bytes, extra: int) -> Iterator[tuple[bytes, bytes, s.Dirent]]:
    """The entries of a listing, each behind `extra` bytes."""
    at = 0
    while at < len(data):
        head, at = data[at : at + extra], at + extra
        dirent = s.Dirent.unpack(data[at : at + s.Dirent.STRUCT.size])
        start = at + s.Dirent.STRUCT.size
        yield head, data[start : start + dirent.namelen], dirent
        at = start + dirent.namelen + -dirent.namelen % 8
    if at != len(data):
        raise ValueError(f"a listing of {len(data)} bytes ends at {at}")
