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
from pathlib import Path
from typing import Final

from ..errors import DeadlineExpired, VhostUserError

LONGEST_PATH: Final = 107
SYSTEMD_FIRST_FD: Final = 3
CONNECT_TIMEOUT: Final = 5
"""Seconds that a connection may wait for room in the queue of a listener that is busy."""
STEP: Final = 100_000
"""Microseconds of it at a time."""


class AddressError(VhostUserError):
    """A path or fd that can't be listened on or connected to; `advice` is one thing to try."""

    def __init__(self, what: str, why: str, advice: str = "") -> None:
        super().__init__(f"{what}: {why}")
        self.what, self.why, self.advice = what, why, advice


def connect(path: str | os.PathLike[str], *, wait: float = 0.0, check: Callable[[], object] | None = None) -> socket.socket:
    """A socket connected to `path`; tries again for `wait` seconds while nobody listens there. Raises AddressError.

    `check` is called before each try, some times a second: what it raises is the end of it.
    """
    name = _checked(path, "cannot connect to")
    now = time.monotonic()
    deadlines = dict.fromkeys((errno.ENOENT, errno.ECONNREFUSED), now + wait) | {
        errno.EAGAIN: now + max(wait, CONNECT_TIMEOUT)
    }
    while True:
        if check:
            check()
        try:
            return _try_to_connect(name)
        except OSError as error:
            if time.monotonic() >= deadlines.get(error.errno or 0, now):
                raise AddressError(f"cannot connect to {name}", _words(error), _advice(error)) from None
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


def listen(path: str | os.PathLike[str], prepare: Callable[[], object] | None = None) -> socket.socket:
    """A socket that listens on `path`. A stale socket there is replaced; anything else is left alone: AddressError.

    `prepare` is called when the name exists and nobody can connect yet, to give it an owner or rights. If it raises, the
    name is gone.
    """
    name = _checked(path, "cannot listen on")
    _clear_stale(name)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    inode = None
    try:
        sock.bind(name)
        inode = os.lstat(name).st_ino
        if prepare:
            prepare()
        sock.listen(1)
    except BaseException as error:
        sock.close()
        _unlink_same(name, inode)
        if isinstance(error, OSError):
            raise AddressError(f"cannot listen on {name}", _words(error), "try: another --socket-path") from None
        raise
    return sock


def _unlink_same(name: str, inode: int | None) -> None:
    """Remove `name` if it is that inode's still."""
    with contextlib.suppress(OSError):
        if os.lstat(name).st_ino == inode:
            os.unlink(name)


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
    """Unlink a socket at `name` that nobody listens on; AddressError if something else is there."""
    try:
        mode = os.lstat(name).st_mode
    except OSError:
        return
    if not stat.S_ISSOCK(mode):
        raise AddressError(f"cannot listen on {name}", "something that is no socket is there", "try: another path")
    owner = _listener(name)
    if owner is None and _refuses(name):
        os.unlink(name)
        return
    raise AddressError(f"cannot listen on {name}", f"it is in use{owner or ''}", "try: another --socket-path")


def _refuses(name: str) -> bool:
    """Nobody listens on `name`."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.settimeout(1)
            probe.connect(name)
        except OSError as error:
            return error.errno == errno.ECONNREFUSED
    return False


def _listener(name: str) -> str | None:
    """Who listens on `name`, in words, without disturbing it; None if the kernel's table shows nobody."""
    listening = "00010000"
    for line in _lines("/proc/net/unix"):
        fields = line.split(None, 7)
        if len(fields) == 8 and fields[3] == listening and fields[7] in (name, os.path.abspath(name)):
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
    if error.errno in (errno.ENOENT, errno.ECONNREFUSED):
        return "try: start the back-end first, or check the path"
    if error.errno == errno.EAGAIN:
        return "try: end the front-end that it serves now"
    return ""
