"""A small pool of fds of all kinds, made when they are first wanted, and a socket that takes all at once or nothing."""

from __future__ import annotations

import array
import contextlib
import os
import socket
import tempfile
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Final, Self

from vhostuser.testing import memory_file, read_only
from vhostuser.transport.fds import HasFileno, OwnedFd

MEMORY: Final = 16
"""Pages of the memory that a front-end shares."""


class Pool:
    """The fds of one input; all of them are closed with it."""

    def __init__(self) -> None:
        self._stack = contextlib.ExitStack()
        self._made: dict[str, HasFileno] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self._stack.close()

    def get(self, kind: str) -> HasFileno:
        """The fd of a kind."""
        if kind not in self._made:
            self._made[kind] = KINDS[kind](self)
        return self._made[kind]

    def keep(self, fd: int) -> OwnedFd:
        """An fd that is closed with the pool."""
        return self._stack.enter_context(OwnedFd(fd))

    def memory(self, pages: int, *, seal: bool) -> OwnedFd:
        """A memfd that is."""
        return self._stack.enter_context(memory_file(pages, fill=b"", seal=seal))

    def read_only(self) -> OwnedFd:
        """The sealed memory, to be read."""
        return self._stack.enter_context(read_only(self._sealed()))

    def pair(self) -> tuple[socket.socket, socket.socket]:
        """Two joined sockets, the first of which neither waits nor is read before its end."""
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        return self._stack.enter_context(ours), self._stack.enter_context(theirs)

    def pipe(self) -> tuple[OwnedFd, OwnedFd]:
        """Both ends of a pipe."""
        reads, writes = os.pipe()
        return self.keep(reads), self.keep(writes)

    def listener(self) -> socket.socket:
        """A socket that listens, where nobody finds it."""
        made = self._stack.enter_context(socket.socket(socket.AF_UNIX))
        made.bind(b"")  # a name of the kernel's choice
        made.listen(1)
        return made

    def file(self) -> OwnedFd:
        """A file on a disk, or what stands for one."""
        made = self.keep(os.open(tempfile.gettempdir(), os.O_TMPFILE | os.O_RDWR))
        os.ftruncate(made.fileno(), MEMORY << 12)
        return made

    def _sealed(self) -> OwnedFd:
        found = self.get("sealed")
        if not isinstance(found, OwnedFd):
            raise TypeError(found)
        return found


KINDS: Final[dict[str, Callable[[Pool], HasFileno]]] = {
    "sealed": lambda pool: pool.memory(MEMORY, seal=True),
    "eventfd": lambda pool: pool.keep(os.eventfd(0, os.EFD_NONBLOCK)),
    "plain": lambda pool: pool.memory(MEMORY, seal=False),
    "socket": lambda pool: pool.pair()[1],
    "short": lambda pool: pool.memory(1, seal=False),
    "read-only": lambda pool: pool.read_only(),
    "eventfd that waits": lambda pool: pool.keep(os.eventfd(0)),
    "semaphore": lambda pool: pool.keep(os.eventfd(5, os.EFD_SEMAPHORE)),
    "file": lambda pool: pool.file(),
    "pipe": lambda pool: pool.pipe()[0],
    "pipe's other end": lambda pool: pool.pipe()[1],
    "listener": lambda pool: pool.listener(),
    "directory": lambda pool: pool.keep(os.open("/", os.O_PATH | os.O_DIRECTORY)),
    "null": lambda pool: pool.keep(os.open("/dev/null", os.O_RDWR)),
    "zero": lambda pool: pool.keep(os.open("/dev/zero", os.O_RDWR)),
}


def send(sock: socket.socket, data: bytes, fds: Sequence[HasFileno] = ()) -> None:
    """Send bytes, with fds at the first of them, if there is room for them and somebody to take them."""
    numbers = array.array("i", [fd.fileno() for fd in fds])
    control = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, numbers)] if numbers else []
    with contextlib.suppress(BlockingIOError, BrokenPipeError, ConnectionResetError):
        sock.sendmsg([data], control, socket.MSG_NOSIGNAL)
