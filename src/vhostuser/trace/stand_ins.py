"""Fds in place of those that were recorded: of the same kind and size, with nothing in them."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
from typing import Final

from ..protocol.numbers import END_OF_FILE_OFFSETS
from ..protocol.numbers import FrontendRequest as Q
from ..protocol.rules import Channel
from ..transport.fds import OwnedFd, close_all
from .capture_error import CaptureError
from .event import FdNote, Message

_SEALS: Final = {"seal": fcntl.F_SEAL_SEAL, "shrink": fcntl.F_SEAL_SHRINK, "grow": fcntl.F_SEAL_GROW}


class StandIns:
    """Makes them, and keeps files by inode: what was one file is one file again. With `files` those on disk are opened.

    `channel` is our end of the back-end channel, once there is one.
    """

    def __init__(self, *, files: bool = False) -> None:
        self._real = files
        self._files: dict[tuple[int, int], OwnedFd] = {}
        self._ends: list[OwnedFd] = []
        self.channel: socket.socket | None = None

    def for_message(self, message: Message) -> list[OwnedFd]:
        """Fds to send with a message; the caller closes them."""
        made: list[OwnedFd] = []
        try:
            for note in message.fds:
                made.append(self._channel() if _hands_over(message) else self._made(note))
        except BaseException:
            close_all(made)
            raise
        return made

    def take_channel(self) -> socket.socket | None:
        """The back-end channel that was made last, once."""
        channel, self.channel = self.channel, None
        return channel

    def close(self) -> None:
        """Close what was kept."""
        close_all(self._files.values())
        close_all(self._ends)
        self._files, self._ends = {}, []
        if channel := self.take_channel():
            channel.close()

    def _channel(self) -> OwnedFd:
        if channel := self.take_channel():
            channel.close()
        self.channel, theirs = socket.socketpair()
        return OwnedFd(theirs.detach())

    def _made(self, note: FdNote) -> OwnedFd:
        match note.kind:
            case "eventfd":
                return OwnedFd(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK))
            case "file" | "memfd":
                return self._file(note)
            case "socket":
                ours, theirs = socket.socketpair()
                self._ends.append(OwnedFd(ours.detach()))
                return OwnedFd(theirs.detach())
            case "pipe":
                ends = [OwnedFd(fd) for fd in os.pipe()]
                given = ends.pop(note.access == "w")
                self._ends += ends
                return given
        return OwnedFd(os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC))

    def _file(self, note: FdNote) -> OwnedFd:
        """The file of an inode, opened anew, as it was opened then."""
        key = (note.dev, note.ino)
        if key not in self._files or not note.ino:
            real = self._opened(note) if self._real and note.kind == "file" else None
            if old := self._files.pop(key, None):
                old.close()
            self._files[key] = real or _memory(note)
        kept = self._files[key].fileno()
        with contextlib.suppress(OSError, OverflowError):  # sealed, or on disk and read-only, or larger than any file
            if os.fstat(kept).st_size < note.size:
                os.ftruncate(kept, note.size)
        if note.access == "r":
            return OwnedFd(os.open(f"/proc/self/fd/{kept}", os.O_RDONLY | os.O_CLOEXEC))
        return OwnedFd(os.dup(kept))

    def _opened(self, note: FdNote) -> OwnedFd | None:
        """The file at the recorded path, read-only, if it is the size that it was."""
        with contextlib.suppress(OSError, ValueError):
            fd = OwnedFd(os.open(note.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK))
            if os.fstat(fd.fileno()).st_size == note.size:
                return fd
            fd.close()
        return None


def _memory(note: FdNote) -> OwnedFd:
    """A memfd of the size and with the seals that were recorded; it takes no memory until it is touched."""
    if note.size >= END_OF_FILE_OFFSETS:
        raise CaptureError(f"no file has the {note.size} bytes that are recorded of {note.path or note.kind}")
    fd = OwnedFd(os.memfd_create("vhostuser-replay", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING))
    try:
        os.ftruncate(fd.fileno(), note.size)
        if seals := sum(_SEALS.get(name, 0) for name in note.seals):
            fcntl.fcntl(fd.fileno(), fcntl.F_ADD_SEALS, seals)
    except BaseException:
        fd.close()
        raise
    return fd


def _hands_over(message: Message) -> bool:
    return message.channel is Channel.FRONTEND and message.request == Q.SET_BACKEND_REQ_FD
