"""The peer under test: one that runs already, or a command that is started, and started again when it has ended."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import socket
import subprocess
import tempfile
from collections.abc import Collection, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Protocol, Self

from ..errors import VhostUserError
from ..transport.listen import AddressError, connect

APPEARS: Final = 20.0
"""Seconds that a back-end may take to listen."""
GRACE: Final = 2.0
RUST_PANIC: Final = 101
SHELL: Final = 128


class Peer(Protocol):
    """A back-end to connect to."""

    def connect(self) -> socket.socket:
        """A new connection. VhostUserError if the back-end is not there."""

    def crashed(self) -> str:
        """How it died since the last connection, if that was no orderly end; empty if it lives, or nobody can know."""

    def renew(self) -> None:
        """It has hung: end it, if it can be started again."""


class Listening:
    """A back-end that listens on a path, whoever started it."""

    def __init__(self, path: str, *, patience: float = APPEARS) -> None:
        self._path, self._patience = path, patience

    def connect(self) -> socket.socket:
        """As Peer."""
        return connect(self._path, wait=self._patience)

    def crashed(self) -> str:
        """Nobody can know."""
        return ""

    def renew(self) -> None:
        """As Peer: who started it has to end it."""


class Started:
    """A command that listens on `{socket}`, which is also in its environment as `socket`; started anew once it has ended.

    With `path` that is the socket's name, else one is made up.
    """

    def __init__(self, command: str | Sequence[str], *, path: str = "", quiet: bool = True) -> None:
        self._place = tempfile.TemporaryDirectory(prefix="vhu")
        self._path = path or str(Path(self._place.name) / "s")
        words = shlex.split(command) if isinstance(command, str) else list(command)
        self._words = [word.replace("{socket}", self._path) for word in words]
        self._output = subprocess.DEVNULL if quiet else None
        self._process: subprocess.Popen[bytes] | None = None

    def connect(self) -> socket.socket:
        """As Peer. A back-end that ends after each connection is started for each."""
        with contextlib.suppress(AddressError, _Ended):  # it may be about to end, as one does that serves once
            return self._connect()
        try:
            return self._connect()
        except _Ended:
            raise VhostUserError(f"{self._words[0]} ended before it could be connected to; {self._end()}") from None

    def crashed(self) -> str:
        """As Peer. Waits a moment for the end of a process whose connection is over."""
        if self._process is None:
            return ""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(0.2)
        return self._end()

    def renew(self) -> None:
        """As Peer."""
        if self._process is None:
            return
        if self._process.poll() is None:
            self._signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(GRACE)
        self._signal(signal.SIGKILL)  # whom it has started and left
        self._process.wait()

    def close(self) -> None:
        """End it."""
        self.renew()
        self._place.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _connect(self) -> socket.socket:
        if self._process is None or self._process.poll() is not None:
            self._start()
        return connect(self._path, wait=APPEARS, check=self._check)

    def _start(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path)
        environment = {**os.environ, "socket": self._path}
        try:
            self._process = subprocess.Popen(
                self._words,
                stdin=subprocess.DEVNULL,
                stdout=self._output,
                stderr=self._output,
                env=environment,
                start_new_session=True,
            )
        except OSError as error:
            raise VhostUserError(f"cannot start {self._words[0]}: {error.strerror or error}") from None

    def _signal(self, number: signal.Signals) -> None:
        """Send a signal to the command and all that it has started."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)

    def _check(self) -> None:
        if self._process is not None and self._process.poll() is not None:
            raise _Ended

    def _end(self) -> str:
        """How it ended, if it was by a signal or a panic."""
        code = self._process.poll() if self._process else None
        return "" if code is None else crash_in_words(code)


def crash_in_words(code: int, orderly: Collection[int] = ()) -> str:
    """How a process died that ended with this code, or the shell around it did (128 and the signal); empty if in order."""
    number = -code if code < 0 else code - SHELL if code > SHELL else 0
    if number and number not in orderly and number in set(signal.Signals):
        return f"killed by {signal.Signals(number).name}"
    return f"exit code {code}, a panic" if code == RUST_PANIC else ""


class _Ended(Exception):
    """The process ended while it was waited for."""
