"""Where `vhu-fs` listens: its socket with the rights of virtiofsd's, and the lock file beside it."""

from __future__ import annotations

import contextlib
import fcntl
import grp
import os
import socket
import stat
from collections.abc import Collection
from types import TracebackType
from typing import Self

from ..limited_log import printable
from ..transport.fds import OwnedFd
from ..transport.listen import Name, listen
from .outcome import CommandError, Exit

_LOCK: int = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW


class Place:
    """Names in the file system that are this program's while it runs: what is outside of its sandbox. Starts with none."""

    def __init__(self) -> None:
        self._lock: OwnedFd | None = None
        self._names: list[Name] = []

    @property
    def fds(self) -> Collection[int]:
        """The fd of the lock file."""
        return [self._lock.fileno()] if self._lock else []

    def listen(self, path: str, group: str | None) -> socket.socket:
        """A socket that listens on `path`, for this user, or for a group as well. Raises CommandError, AddressError."""
        number = _group(group)
        self._take_lock(path)
        umask = os.umask(0o177)
        try:
            sock = listen(path, lambda: None if number is None else _open_to_group(path, number))
        finally:
            os.umask(umask)
        if sock.name:
            self._names.append(sock.name)
        return sock

    def _take_lock(self, path: str) -> None:
        """Lock PATH.pid, which says who has it."""
        name = f"{path}.pid"
        try:
            fd = OwnedFd(os.open(name, _LOCK, 0o600))
        except OSError as error:
            text = f"cannot open {printable(name)}: {error.strerror}"
            raise CommandError(text, "try: another --socket-path") from None
        try:
            _lock(fd.fileno(), name, path)
        except BaseException:
            fd.close()
            raise
        self._lock = fd
        self._names.append(Name.of(name, is_open=True))

    def clean_up(self) -> None:
        """Remove the names, the lock's last."""
        for name in reversed(self._names):
            with contextlib.suppress(OSError):
                name.remove()
        self.abandon()

    def abandon(self) -> None:
        """Leave the names to another process."""
        self._names.clear()
        if self._lock:
            self._lock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.clean_up()


def _lock(fd: int, name: str, path: str) -> None:
    """Lock an open file, and write this process's pid to it; CommandError if another one has it."""
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        raise CommandError(f"cannot lock {printable(name)}: it is no regular file", "try: another --socket-path")
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        same = os.stat(name).st_ino == os.fstat(fd).st_ino
    except OSError:
        same = False
    if not same:
        owner = os.pread(fd, 20, 0).decode(errors="replace").strip()
        text = f"{printable(path)} is in use by pid {owner or 'unknown'}, which has locked {printable(name)}"
        raise CommandError(text, "try: another --socket-path")
    os.ftruncate(fd, 0)
    os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)


def _open_to_group(path: str, number: int) -> None:
    """Let a group connect. What else may have got this name meanwhile, in a directory of somebody else's, stays as it is."""
    with OwnedFd(os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)) as found:
        if not stat.S_ISSOCK(os.fstat(found.fileno()).st_mode):
            raise CommandError(f"{printable(path)} is no socket any more", "try: a directory that nobody else may write to")
        os.chown(name := f"/proc/self/fd/{found.fileno()}", -1, number)
        os.chmod(name, 0o660)


def _group(name: str | None) -> int | None:
    if name is None:
        return None
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        text = f"--socket-group {printable(name[:80])}: there is no such group"
        raise CommandError(text, "try: getent group", Exit.USAGE) from None
