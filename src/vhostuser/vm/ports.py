"""The host's ends of a guest's ports: what comes out of each, until QEMU has gone."""

from __future__ import annotations

import os
import select
import socket
import time
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Final, Self

from .errand import PORTS, TTY

PIECE: Final = 1 << 16
KEYS: Final = 4096


class Ports:
    """A context manager around sockets, a pair for each port. QEMU gets `words` and `fds`, then `started` is called."""

    def __init__(self, names: Sequence[str], *, keyboard: int | None = None) -> None:
        self._pairs = {name: socket.socketpair() for name in names}
        self._open = {ours: name for name, (ours, _) in self._pairs.items()}
        self._keyboard, self._typed = keyboard, b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for pair in self._pairs.values():
            for end in pair:
                end.close()

    @property
    def fds(self) -> list[int]:
        """QEMU's ends."""
        return [theirs.fileno() for _, theirs in self._pairs.values()]

    def words(self) -> list[str]:
        """QEMU's words for them: its bus of serial ports first."""
        words = ["-device", "virtio-serial-pci,id=ports"]
        for name, (_, theirs) in self._pairs.items():
            device = "virtconsole" if name == TTY else "virtserialport"
            words += ["-chardev", f"socket,id={name},fd={theirs.fileno()}"]
            words += ["-device", f"{device},bus=ports.0,nr={PORTS[name]},chardev={name}"]
        return words

    def started(self) -> None:
        """QEMU has its ends: they are closed here, so that its end is seen."""
        for _, theirs in self._pairs.values():
            theirs.close()

    def pieces(self, seconds: float | None) -> Iterator[tuple[str, bytes]]:
        """What comes, and from which port, until all are closed. TimeoutError after `seconds`, if they are given."""
        deadline = None if seconds is None else time.monotonic() + seconds
        while self._open:
            yield from self._turn(deadline)

    def _turn(self, deadline: float | None) -> Iterator[tuple[str, bytes]]:
        keyboard = [self._keyboard] if self._keyboard is not None and not self._typed else []
        console = self._pairs[TTY][0] if TTY in self._pairs else None
        typing = [console] if console in self._open and self._typed else []
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        readable, writable, _ = select.select([*(each.fileno() for each in self._open), *keyboard], typing, [], left)
        if not readable and not writable:
            raise TimeoutError
        if writable and console:
            self._typed = self._typed[console.send(self._typed, socket.MSG_DONTWAIT) :]
        if self._keyboard in readable:
            self._read_keyboard(self._keyboard)
        for each in [each for each in self._open if each.fileno() in readable]:
            yield from self._read(each)

    def _read_keyboard(self, fd: int) -> None:
        self._typed = os.read(fd, KEYS)
        if not self._typed:  # the terminal has gone, or the end of a file
            self._keyboard = None

    def _read(self, sock: socket.socket) -> Iterator[tuple[str, bytes]]:
        try:
            data = sock.recv(PIECE)
        except ConnectionResetError:  # QEMU was killed with something unread
            data = b""
        if data:
            yield self._open[sock], data
        else:
            del self._open[sock]
