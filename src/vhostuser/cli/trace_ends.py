"""The two ends of `vhu trace`: where front-ends come from, how the back-end is reached, and the command between them."""

from __future__ import annotations

import contextlib
import os
import select
import shlex
import socket
import tempfile
from collections.abc import Callable, Iterator
from typing import Final

from ..transport.listen import AddressError, Listener, NobodyListens, adopt, connect, listen
from ..transport.loop import SignalWaker
from .children import Child, child
from .outcome import CommandError, Exit
from .running import advice

PATIENCE: Final = 10.0
"""Seconds that a back-end which this command started may take until it listens."""
_FD: Final = "fd:"
_COMMAND: Final = "the command of --run"


class FrontEnds:
    """Front-ends, one after the other: those that connect to a socket, or the one that is connected already."""

    def __init__(self, where: str, waker: SignalWaker) -> None:
        self._waker = waker
        self._given: socket.socket | None = None
        self._listener: socket.socket | None = None
        if where.startswith(_FD):
            sock, listens = adopt(number_of(where, "--listen"))
            self._listener, self._given = (sock, None) if listens else (None, sock)
        else:
            self._listener = listen(where)

    @property
    def only_one(self) -> bool:
        """There is never another one."""
        return self._listener is None

    def next(self, ended: Callable[[], bool], process: Child | None) -> socket.socket | None:
        """The next front-end; None once it is over: `ended` says so, or the process has ended, or there is no other."""
        if self._listener is None:
            given, self._given = self._given, None
            return given
        poll = select.poll()
        poll.register(self._listener, select.POLLIN)
        poll.register(self._waker, select.POLLIN)
        with _watched(process, poll), self._waker.alert():
            while not ended():
                gone = process is not None and process.poll() is not None
                ready = [fd for fd, _ in poll.poll(0 if gone else None)]
                self._waker.clear()
                if self._listener.fileno() in ready:
                    return self._listener.accept()[0]
                if gone:
                    break
        return None

    def close(self) -> None:
        """Listen no more; a path goes."""
        if isinstance(self._listener, Listener):
            self._listener.remove_name()
        for sock in (self._listener, self._given):
            if sock is not None:
                sock.close()


@contextlib.contextmanager
def _watched(process: Child | None, poll: select.poll) -> Iterator[None]:
    """Within the block `poll` tells when the process ends, if it has not ended yet."""
    try:
        fd = os.pidfd_open(process.pid) if process is not None and process.poll() is None else -1
    except ProcessLookupError:
        fd = -1
    try:
        if fd >= 0:
            poll.register(fd, select.POLLIN)
        yield
    finally:
        if fd >= 0:
            os.close(fd)


class BackEnd:
    """The back-end: at a path, to which each session connects anew, or connected already."""

    def __init__(self, where: str, command: str = "") -> None:
        """`command` is that of --run, if it is to listen there."""
        self.where, self._command = where, command
        self._given: socket.socket | None = None
        if where.startswith(_FD):
            sock, listens = adopt(number_of(where, "--connect"))
            if listens:
                sock.detach()
                raise CommandError(f"--connect {where}: it listens, and nobody is connected", "try: --listen", Exit.USAGE)
            self._given = sock

    @property
    def only_one(self) -> bool:
        """It can be reached only once."""
        return self.where.startswith(_FD)

    def reach(self, process: Child | None, wait: float) -> socket.socket:
        """A socket to it. AddressError if it is not there, after `wait` seconds; sooner if the process that is it ends."""
        given, self._given = self._given, None
        if given is not None:
            return given
        try:
            return connect(self.where, wait=wait, check=lambda: _alive(process))
        except NobodyListens:
            if process is None:
                raise
            why = f"it runs, but does not listen on {self.where}"
            raise AddressError(_COMMAND, why, advice(self._command, None, "")) from None

    def close(self) -> None:
        """Let go of it."""
        if self._given is not None:
            self._given.close()


def _alive(process: Child | None) -> None:
    if process is not None and (code := process.poll()) is not None:
        raise AddressError(_COMMAND, f"it ended with {code} before it listened")


def number_of(where: str, option: str) -> int:
    """The number in `fd:N`."""
    text = where.removeprefix(_FD)
    if not text.isascii() or not text.isdigit() or len(text) > 9:
        raise CommandError(f"{option} {where[:40]!a}: expected a path or fd:N", code=Exit.USAGE)
    return int(text)


@contextlib.contextmanager
def private_path() -> Iterator[str]:
    """A path for a socket that nobody else knows."""
    with tempfile.TemporaryDirectory(prefix="vhu-trace-") as folder:
        yield f"{folder}/socket"


@contextlib.contextmanager
def running(command: str, path: str, limit: int) -> Iterator[Child]:
    """The command of --run in a shell, with `path` as `$socket` and in place of `{socket}`.

    It may open `limit` fds, as it might without us. It ends with the block, and all that it has started with it.
    """
    quoted = shlex.quote(path)
    before = f"ulimit -S -n {'unlimited' if limit < 0 else limit}\nexport socket={quoted}\n"
    words = ["/bin/sh", "-c", before + command.replace("{socket}", quoted)]
    with child(words, group=True) as process:
        yield process
