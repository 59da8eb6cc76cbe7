"""`vhu drive fs`: use a virtio-fs device's files without a VM."""

from __future__ import annotations

import argparse
import json
import os
import stat
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Final

from ..drivers.fs import FsDriver
from ..drivers.fuse import FuseSession
from ..errors import LocalProtocolError
from ..frontend import Frontend
from ..fuse.structs import Attr
from .outcome import CommandError, put, put_bytes

PIECE: Final = 1 << 20
"""Bytes that are read of a file of the host at a time."""


@contextmanager
def _share(frontend: Frontend, options: argparse.Namespace) -> Iterator[FsDriver]:
    """The device's files, until the session is over; what it refuses is told as what it is."""
    session = FuseSession(frontend, timeout=options.timeout)
    try:
        yield FsDriver(session)
    except LocalProtocolError as error:
        raise CommandError(str(error)) from None
    except OSError as error:
        raise CommandError(f"the device says: {error.strerror}") from None
    session.destroy()


def _ls(frontend: Frontend, options: argparse.Namespace) -> None:
    with _share(frontend, options) as share:
        entries = sorted(share.listdir(options.path))
    if options.json:
        put(json.dumps([{"name": name, "ino": ino, "type": _kind(kind)} for name, ino, kind in entries]))
        return
    for name, _, kind in entries:
        put(f"{_kind(kind):9} {_shown(name)}")


def _stat(frontend: Frontend, options: argparse.Namespace) -> None:
    with _share(frontend, options) as share:
        attr = share.stat(options.path)
    if options.json:
        put(json.dumps(_as_dict(attr)))
        return
    put(f"{stat.filemode(attr.mode)} {attr.nlink} {attr.uid}:{attr.gid} {attr.size} bytes, inode {attr.ino}")


def _cat(frontend: Frontend, options: argparse.Namespace) -> None:
    with _share(frontend, options) as share:
        _give(share.read(options.path), options)


def _map(frontend: Frontend, options: argparse.Namespace) -> None:
    with _share(frontend, options) as share:
        _give(share.read_mapped(options.path), options)


def _put(frontend: Frontend, options: argparse.Namespace) -> None:
    with _share(frontend, options) as share:
        size = share.write(options.path, _pieces(options.file))
    put(json.dumps({"path": options.path, "size": size}) if options.json else f"{size} bytes written")


def _find(frontend: Frontend, options: argparse.Namespace) -> None:
    with _share(frontend, options) as share:
        for path, attr in share.walk(options.path):
            put(json.dumps({"path": path, **_as_dict(attr)}) if options.json else _shown(path))


def _give(pieces: Iterable[bytes], options: argparse.Namespace) -> None:
    """Bytes to standard output as they come; or all of them in hexadecimal."""
    if options.json:
        data = b"".join(pieces)
        put(json.dumps({"path": options.path, "size": len(data), "data": data.hex()}))
        return
    for piece in pieces:
        put_bytes(piece)


def _pieces(file: str) -> Iterator[bytes]:
    """The bytes of a file of the host, or of standard input."""
    try:
        with sys.stdin.buffer if file == "-" else open(file, "rb") as source:
            while piece := source.read(PIECE):
                yield piece
    except OSError as error:
        raise CommandError(f"cannot read {file}: {error.strerror}") from None


def _kind(mode: int) -> str:
    names = {
        stat.S_IFDIR: "directory",
        stat.S_IFREG: "file",
        stat.S_IFLNK: "link",
        stat.S_IFIFO: "fifo",
        stat.S_IFSOCK: "socket",
        stat.S_IFCHR: "char",
        stat.S_IFBLK: "block",
    }
    return names.get(stat.S_IFMT(mode), "unknown")


def _as_dict(attr: Attr) -> dict[str, object]:
    """What `vhu drive fs stat --json` says."""
    names = ("ino", "size", "blocks", "nlink", "uid", "gid", "rdev", "blksize")
    times = {name: getattr(attr, name) + getattr(attr, f"{name}nsec") / 1e9 for name in ("atime", "mtime", "ctime")}
    kind = {"type": _kind(attr.mode), "mode": f"{stat.S_IMODE(attr.mode):04o}"}
    return {**kind, **{name: getattr(attr, name) for name in names}, **times}


def _shown(name: str) -> str:
    """A name as it may go to a terminal: nothing in it does anything there."""
    text = os.fsencode(name).decode(errors="backslashreplace")
    return text if text.isprintable() else ascii(text)


Row = tuple[Mapping[str, Callable[[str], object]], str, Callable[[Frontend, argparse.Namespace], None]]
_PATH: Final[Mapping[str, Callable[[str], object]]] = {"PATH": os.fsdecode}
ACTIONS: Final[Mapping[str, Row]] = {
    "ls": (_PATH, "the entries of a directory; / is the share", _ls),
    "stat": (_PATH, "what is at PATH", _stat),
    "cat": (_PATH, "a file to standard output, by READ", _cat),
    "map": (_PATH, "the same through the DAX window", _map),
    "put": ({"PATH": os.fsdecode, "FILE": os.fsdecode}, "write a file from FILE, or - (standard input)", _put),
    "find": (_PATH, "all that is below PATH", _find),
}
