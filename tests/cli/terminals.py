"""A terminal without a screen: tmux with a server of its own, in which programs run, keys are typed, and text is read."""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.vm.conftest import give_up
from vhostuser.vm.tmux import TMUX
from vhostuser.vm.tree import FetchError

from .programs import environment, until

SECONDS = 40.0
"""Longer than a program may take to draw on a busy machine."""


class Terminal:
    """One window with a shell in it."""

    def __init__(self, place: Path, columns: int, rows: int) -> None:
        try:
            start = TMUX.command()
        except FetchError as error:
            give_up(str(error))
        self._command = [*start, "-S", str(place / "tmux"), "-f", "/dev/null"]
        self._environment = environment(PS1="$ ", TERM="screen", LC_ALL="C.UTF-8")
        self._do("new-session", "-d", "-x", str(columns), "-y", str(rows), "env PS1='$ ' /bin/sh")
        self.wait("$", "the shell's prompt")

    def _do(self, *words: str) -> str:
        done = subprocess.run(
            [*self._command, *words], env=self._environment, capture_output=True, text=True, timeout=SECONDS, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    @property
    def screen(self) -> str:
        """What is on the screen."""
        return self._do("capture-pane", "-p")

    @property
    def colours(self) -> str:
        """What is on the screen, with the colours."""
        return self._do("capture-pane", "-p", "-e")

    def keys(self, *names: str) -> None:
        """Press keys, by tmux's names."""
        self._do("send-keys", *names)

    def type(self, text: str) -> None:
        """Type characters, as they are."""
        self._do("send-keys", "-l", text)

    def run(self, words: Sequence[str]) -> None:
        """Type a command line. When it ends, its exit code is printed."""
        self.type(f"clear; {shlex.join(words)}; echo ended with $?")
        self.keys("Enter")

    def resize(self, columns: int, rows: int) -> None:
        """Another size."""
        self._do("resize-window", "-x", str(columns), "-y", str(rows))

    def wait(self, text: str, what: str) -> str:
        """Wait until there is `text` on the screen; the screen then."""
        return self.wait_for(lambda screen: text in screen, what)

    def wait_for(self, holds: Callable[[str], bool], what: str) -> str:
        """Wait until the screen is as wanted; the screen then."""
        seen = ""

        def look() -> bool:
            nonlocal seen
            seen = self.screen
            return holds(seen)

        try:
            until(look, what, SECONDS)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{seen}") from None
        return seen

    def close(self) -> None:
        """End the server, and all that runs in it."""
        subprocess.run([*self._command, "kill-server"], capture_output=True, timeout=SECONDS, check=False)


@contextmanager
def terminal(place: Path, columns: int = 100, rows: int = 30) -> Iterator[Terminal]:
    """A terminal, for the block."""
    opened = Terminal(place, columns, rows)
    try:
        yield opened
    finally:
        opened.close()


def vhu_words(*arguments: str | Path) -> list[str]:
    """The command line of `vhu`."""
    return [sys.executable, "-m", "vhostuser", *map(str, arguments)]
