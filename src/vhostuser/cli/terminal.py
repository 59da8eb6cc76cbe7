"""Terminals: the user's own, raw for a while, and pseudo terminals."""

from __future__ import annotations

import contextlib
import os
import termios
import tty
from collections.abc import Iterator
from typing import Final

from .outcome import CommandError, undone

ESCAPE: Final = b"\x1d"
"""Ctrl-]: what ends a program on a raw terminal."""
_NONE: Final = b"\0"


@contextlib.contextmanager
def raw(fd: int) -> Iterator[bool]:
    """Whether `fd` is a terminal; if so it is raw within the block, however that ends, but for Ctrl-], which is SIGINT.

    The kernel sends the signal, so that it works whatever the program waits for. Lines of output still end as usual, for
    log lines go to the same terminal.
    """
    if not os.isatty(fd):
        yield False
        return
    before = termios.tcgetattr(fd)

    def restore() -> None:
        with contextlib.suppress(termios.error):
            termios.tcsetattr(fd, termios.TCSANOW, before)

    with undone(restore):
        _make_raw(fd)
        yield True


def _make_raw(fd: int) -> None:
    output = termios.tcgetattr(fd)[tty.OFLAG]
    tty.setraw(fd, termios.TCSANOW)
    attributes = termios.tcgetattr(fd)
    attributes[tty.OFLAG] = output
    attributes[tty.LFLAG] |= termios.ISIG | termios.NOFLSH
    keys = attributes[tty.CC]
    keys[termios.VINTR], keys[termios.VQUIT], keys[termios.VSUSP] = ESCAPE, _NONE, _NONE
    termios.tcsetattr(fd, termios.TCSANOW, attributes)


@contextlib.contextmanager
def pseudo_terminal(link: str | None) -> Iterator[tuple[int, str]]:
    """The fd of a new pseudo terminal, whose other end is raw, and the path of that; `link` leads there, if it is given."""
    ours, theirs = os.openpty()
    try:
        path = os.ttyname(theirs)
        tty.setraw(theirs)
    finally:
        os.close(theirs)
    try:
        with _linked(link, path) if link is not None else contextlib.nullcontext():
            yield ours, path
    finally:
        os.close(ours)


@contextlib.contextmanager
def _linked(link: str, path: str) -> Iterator[None]:
    """A symbolic link within the block. CommandError if something is there; in the end only the link itself is removed."""
    try:
        os.symlink(path, link)
    except FileExistsError:
        raise CommandError(f"--pty-link {link}: something is there", "try: remove it, or another path") from None
    made = os.lstat(link)

    def remove() -> None:
        with contextlib.suppress(OSError):
            if os.path.samestat(os.lstat(link), made):
                os.unlink(link)

    with undone(remove):
        yield
