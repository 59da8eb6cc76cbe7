"""Where connections come from: paths, inherited fds, systemd."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
import struct
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Self

from ..errors import DeadlineExpired, VhostUserError

LONGEST_PATH: Final = 107
SYSTEMD_FIRST_FD: Final = 3
CONNECT_TIMEOUT: Final = 5
"""Seconds that a connection may wait for room in the queue of a listener that is busy."""
STEP: Final = 100_000
"""Microseconds of it at a time."""
TURN: Final = 1.0
"""Seconds that who begins to listen waits at most for another process that begins there, too."""
_ABSENT: Final = (errno.ENOENT, errno.ECONNREFUSED)
_TRIES: Final = 3
"""Times that a name is looked at again, which became another socket's while it was looked at."""
_ANOTHER: Final = "try: another --socket-path"


class AddressError(VhostUserError):
    """A path or fd that can't be listened on or connected to; `advice` is one thing to try."""

    def __init__(self, what: str, why: str, advice: str = "") -> None:
        super().__init__(f"{what}: {why}")
        self.what, self.why, self.advice = what, why, advice


class NobodyListens(AddressError):
    """There is no socket at a path, or one that nobody listens on."""


def connect(path: str | os.PathLike[str], *, wait: float = 0.0, check: Callable[[], object] | None = None) -> socket.socket:
    """A socket connected to `path`; tries again for `wait` seconds while nobody listens there. Raises AddressError.

    `check` is called before each try, some times a second: what it raises is the end of it.
    """
    name = _checked(path, "cannot connect to")
    now = time.monotonic()
    deadlines = dict.fromkeys(_ABSENT, now + wait) | {errno.EAGAIN: now + max(wait, CONNECT_TIMEOUT)}
    while True:
        if check:
            check()
        try:
            return _try_to_connect(name)
        except OSError as error:
            if time.monotonic() >= deadlines.get(error.errno or 0, now):
                kind = NobodyListens if error.errno in _ABSENT else AddressError
                raise kind(f"cannot connect to {name}", _words(error), _advice(error)) from None
        time.sleep(0.01)


def _try_to_connect(name: str) -> socket.socket:
    """A socket connected to a path. Raises OSError: EAGAIN if the listener has no room for one more."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("@ll", 0, STEP))
        sock.connect(name)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("@ll", 0, 0))
    except OSError:
        sock.close()
        raise
    return sock


@dataclass(frozen=True, slots=True)
class Name:
    """A name in the file system and what is there: another thing that gets it later is somebody else's."""

    path: str
    found: tuple[int, int, int]
    """Device, inode, and when it was written last: a file system gives an inode's number to another one soon."""
    is_open: bool = False
    """It is, until the name is removed: so nothing else gets its inode's number, and it may be written meanwhile."""

    @classmethod
    def of(cls, path: str, *, is_open: bool = False) -> Self:
        """The name with what is there now. OSError if that is nothing."""
        return cls(path, _identity(path), is_open)

    @property
    def is_same(self) -> bool:
        """What was found is there still."""
        compared = 2 if self.is_open else 3
        try:
            return _identity(self.path)[:compared] == self.found[:compared]
        except OSError:
            return False

    def remove(self) -> bool:
        """Remove the name if it is the same still; whether it was. OSError if that can't be done."""
        if not self.is_same:
            return False
        os.unlink(self.path)
        return True


def _identity(path: str) -> tuple[int, int, int]:
    status = os.lstat(path)
    return status.st_dev, status.st_ino, status.st_mtime_ns


class Listener(socket.socket):
    """A socket that listens on a name."""

    name: Name | None = None
    """Set by `listen`."""

    def remove_name(self) -> None:
        """Remove the name, unless it is somebody else's by now. Before `close`, or else it is a stale one for a moment."""
        if self.name:
            with contextlib.suppress(OSError):
                replace(self.name, is_open=self.fileno() >= 0).remove()


def listen(path: str | os.PathLike[str], prepare: Callable[[], object] | None = None) -> Listener:
    """A socket that listens on `path`. A stale socket there is replaced; anything else is left alone: AddressError.

    `prepare` is called when the name exists and nobody can connect yet, to give it an owner or rights. If it raises, the
    name is gone.
    """
    name = _checked(path, "cannot listen on")
    sock = Listener(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with _turn(name):
            _clear_stale(name)
            sock.bind(name)
            sock.name = Name.of(name)
            if prepare:
                prepare()
            sock.listen(1)
            if not sock.name.is_same:
                raise AddressError(f"cannot listen on {name}", "somebody else has taken the name meanwhile", _ANOTHER)
    except BaseException as error:
        sock.remove_name()
        sock.close()
        if isinstance(error, OSError):
            raise AddressError(f"cannot listen on {name}", _words(error), _ANOTHER) from None
        raise
    return sock


@contextlib.contextmanager
def _turn(name: str) -> Iterator[None]:
    """Until the end of the block other processes that `listen` on `name` wait, though no longer than a TURN.

    The lock is an abstract socket: it takes no file, and is gone when its process is.
    """
    folder, base = os.path.split(name)
    status = os.stat(folder or ".")
    lock = b"\0vhostuser/%x/%x/%b" % (status.st_dev, status.st_ino, os.fsencode(base)[-50:])
    deadline = time.monotonic() + TURN
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        while _is_taken(sock, lock) and time.monotonic() < deadline:
            time.sleep(0.01)
        yield


def _is_taken(sock: socket.socket, lock: bytes) -> bool:
    """Somebody else has this lock; else it is `sock`'s, if there can be one."""
    try:
        sock.bind(lock)
    except OSError as error:
        return error.errno == errno.EADDRINUSE
    return False


def accept(listener: socket.socket, timeout: float | None = None) -> socket.socket:
    """The next connection of `listener`; DeadlineExpired if none comes in `timeout` seconds."""
    listener.settimeout(timeout)
    try:
        return listener.accept()[0]
    except TimeoutError:
        raise DeadlineExpired(f"nobody connected within {timeout:g} s") from None


def adopt(fd: int) -> tuple[socket.socket, bool]:
    """The Unix stream socket behind an inherited fd, and whether it listens. Raises AddressError."""
    what, advice = f"cannot use fd {fd}", "try: --fd with a connected or a listening Unix stream socket"
    try:
        sock = socket.socket(fileno=fd)
    except OSError as error:
        raise AddressError(what, _words(error), advice) from None
    except ValueError as error:
        raise AddressError(what, str(error), advice) from None
    if sock.family != socket.AF_UNIX or sock.type != socket.SOCK_STREAM:
        sock.detach()
        raise AddressError(what, "it is no Unix stream socket", advice)
    try:
        os.set_inheritable(fd, False)
        return sock, bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
    except OSError as error:
        sock.detach()
        raise AddressError(what, _words(error), advice) from None


def systemd_fd() -> int | None:
    """The first socket that systemd passed to this process, or None; the variables that say so are unset."""
    pid, count = os.environ.get("LISTEN_PID"), os.environ.get("LISTEN_FDS")
    if pid != str(os.getpid()) or not (count or "").isdigit() or count == "0":
        return None
    for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"):
        os.environ.pop(name, None)
    return SYSTEMD_FIRST_FD


def _checked(path: str | os.PathLike[str], what: str) -> str:
    """`path` as a string that fits into a socket address."""
    name = os.fspath(path)
    size = len(os.fsencode(name))
    if size > LONGEST_PATH:
        why = f"the path has {size} bytes; a Unix socket path may have at most {LONGEST_PATH}"
        raise AddressError(f"{what} {name}", why, "try: --socket-path /tmp/vhu.sock")
    return name


def _clear_stale(name: str) -> None:
    """Unlink a socket at `name` that nobody listens on, nor is about to; AddressError if something else is there."""
    owner = None
    for _ in range(_TRIES):
        try:
            found, mode = Name.of(name), os.lstat(name).st_mode
        except OSError:
            return
        if not stat.S_ISSOCK(mode):
            raise AddressError(f"cannot listen on {name}", "something that is no socket is there", "try: another path")
        owner = _owner(name)
        if owner is not None or not _refuses(name):
            break
        if found.remove():
            return
    raise AddressError(f"cannot listen on {name}", f"it is in use{owner or ''}", _ANOTHER)


def _refuses(name: str) -> bool:
    """Nobody listens on `name`."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.settimeout(1)
            probe.connect(name)
        except OSError as error:
            return error.errno in (errno.ECONNREFUSED, errno.ENOENT)
    return False


def _owner(name: str) -> str | None:
    """Who listens on `name` or is about to, in words, without disturbing it; None if the kernel's table shows nobody."""
    unconnected = "01"  # of these, who has a name listens, or has not yet begun to
    for line in _lines("/proc/net/unix"):
        fields = line.split(None, 7)
        if len(fields) == 8 and fields[5] == unconnected and fields[7] in (name, os.path.abspath(name)):
            return _holder(fields[6])
    return None


def _holder(inode: str) -> str:
    """` by pid N (command)` of a process that holds socket `inode`, as far as this process may look; else empty."""
    for fd in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            if os.readlink(fd) != f"socket:[{inode}]":
                continue
            command = (fd.parents[1] / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
        except OSError:
            continue
        return f" by pid {fd.parts[2]} ({command[:120]!a})"
    return ""


def _lines(path: str) -> Iterator[str]:
    try:
        with open(path, errors="surrogateescape") as file:
            yield from file.read().splitlines()
    except OSError:
        return


def _words(error: OSError) -> str:
    name = errno.errorcode.get(error.errno or 0, "")
    return f"{error.strerror or error} ({name})" if name else str(error)


def _advice(error: OSError) -> str:
    if error.errno in _ABSENT:
        return "try: start the back-end first, or check the path"
    if error.errno == errno.EAGAIN:
        return "try: end the front-end that it serves now"
    return ""
