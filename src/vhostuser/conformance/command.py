"""A command that is the peer: started in a session of its own, told to end, and killed with all that it has started."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
from collections.abc import Collection, Sequence
from typing import Final

from ..errors import VhostUserError
from ..unreaped import code_of, keep_ended, wait_for_end

RUST_PANIC: Final = 101
SHELL: Final = 128
SANITIZERS: Final = ("ASAN_OPTIONS", "HWASAN_OPTIONS", "MSAN_OPTIONS", "TSAN_OPTIONS", "UBSAN_OPTIONS")
"""Where the sanitizers of compilers look. What they find is to be a death by a signal: else it is an exit like any other."""


class Command:
    """A command line with `{socket}` in it for a path, which is in its environment as `socket`, too: a process at a time.

    A process that has ended is not reaped before its group is killed. Until then nobody else can get its number: a signal to
    the group reaches what it has started, and nothing else.
    """

    def __init__(self, words: Sequence[str], path: str, *, quiet: bool = True) -> None:
        self._words = [word.replace("{socket}", path) for word in words]
        aborting = {name: f"abort_on_error=1:{os.environ.get(name, '')}".rstrip(":") for name in SANITIZERS}
        self._environment = {**os.environ, **aborting, "socket": path}
        self._output = subprocess.DEVNULL if quiet else None
        self._process: subprocess.Popen[bytes] | None = None
        self.starts = 0
        """How often it was started."""

    @property
    def name(self) -> str:
        """The program."""
        return self._words[0]

    @property
    def runs(self) -> bool:
        """It was started, and has not ended."""
        return self._process is not None and self.code() is None

    def start(self) -> None:
        """Start it; what there was of it before is over. VhostUserError if it is no program."""
        self.end(0)
        keep_ended()
        try:
            self._process = subprocess.Popen(
                self._words,
                stdin=subprocess.DEVNULL,
                stdout=self._output,
                stderr=self._output,
                env=self._environment,
                start_new_session=True,
            )
        except OSError as error:
            raise VhostUserError(f"cannot start {self.name}: {error.strerror or error}") from None
        self.starts += 1

    def code(self, *, within: float = 0.0) -> int | None:
        """How it ended, as Popen has it; None if it was not started, or does not end within so many seconds."""
        if self._process is None:
            return None
        if within:
            wait_for_end(self._process.pid, within)
        return code_of(self._process.pid)

    def terminate(self, *, group: bool = False) -> bool:
        """Tell it to end, and with `group` all that it has started; false if there is none."""
        return self._signal(signal.SIGTERM, group=group)

    def kill(self) -> None:
        """End it, and all that it has started, at once. It is still to be reaped, by `end`."""
        self._signal(signal.SIGKILL, group=True)

    def end(self, grace: float, *, group: bool = False) -> int | None:
        """Let it end, and see to it; how it ended, None if there is none."""
        if self._process is None:
            return None
        if self.code() is None and grace:
            self.terminate(group=group)
            self.code(within=grace)
        self.kill()
        process, self._process = self._process, None
        return process.wait()

    def _signal(self, number: signal.Signals, *, group: bool) -> bool:
        if self._process is None:
            return False
        with contextlib.suppress(ProcessLookupError):
            (os.killpg if group else os.kill)(self._process.pid, number)
        return True


def words_of(command: str | Sequence[str]) -> list[str]:
    """The words of a command line; ValueError if it has none, or a quotation in it has no end."""
    words = shlex.split(command) if isinstance(command, str) else list(command)
    if not words:
        raise ValueError("the command line is empty")
    return words


def end_in_words(code: int) -> str:
    """How a process ended."""
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"


def crash_in_words(code: int, orderly: Collection[int] = ()) -> str:
    """How a process died that ended with this code, or the shell around it did (128 and the signal); empty if in order."""
    number = -code if code < 0 else code - SHELL if code > SHELL else 0
    if number and number not in orderly and number in set(signal.Signals):
        return f"killed by {signal.Signals(number).name}"
    return f"exit code {code}, a panic" if code == RUST_PANIC else ""
