"""The front-end under test: one that connects again and again, or a command that is started for each connection."""

from __future__ import annotations

import contextlib
import signal
import socket
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Protocol, Self

from ..errors import DeadlineExpired, VhostUserError
from ..transport.listen import accept, listen
from .command import Command, crash_in_words, end_in_words, words_of

APPEARS: Final = 20.0
"""Seconds that a front-end may take to connect."""
GRACE: Final = 2.0
"""Seconds that one may take to end after SIGTERM."""
LINGERS: Final = 0.3
"""Seconds in which a front-end that is dying of a connection has died."""
_STEP: Final = 0.1


class FrontendPeer(Protocol):
    """A front-end that connects."""

    def accept(self) -> socket.socket:
        """Its next connection. VhostUserError if none comes."""

    def retire(self) -> bool:
        """Tell it to end, while its connection is served; false if it is not ours to tell."""

    def crashed(self) -> str:
        """How it died of the last connection, which is over; empty if it did not, or nobody can know."""


class Awaited:
    """A front-end that connects to a path, whoever started it, and connects again when a connection is over."""

    def __init__(self, path: str, *, patience: float = APPEARS) -> None:
        self._listener, self._path, self._patience = listen(path), path, patience

    def accept(self) -> socket.socket:
        """As FrontendPeer."""
        return accept(self._listener, self._patience)

    def retire(self) -> bool:
        """As FrontendPeer: it is somebody else's."""
        return False

    def crashed(self) -> str:
        """Nobody can know."""
        return ""

    def close(self) -> None:
        """Listen no more."""
        self._listener.remove_name()
        self._listener.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


class Launched:
    """A command that connects to `{socket}`, which is also in its environment as `socket`: started for each connection.

    With `path` that is the socket's name, else one is made up. ValueError if the command is none.
    """

    def __init__(
        self, command: str | Sequence[str], *, path: str = "", quiet: bool = True, patience: float = APPEARS
    ) -> None:
        words = words_of(command)
        self._place = tempfile.TemporaryDirectory(prefix="vhu")
        self._path = path or str(Path(self._place.name) / "s")
        self._command, self._patience = Command(words, self._path, quiet=quiet), patience
        try:
            self._listener = listen(self._path)
        except VhostUserError:
            self._place.cleanup()
            raise
        self.stuck = False
        """The last one had to be killed: it did not end when it was told to."""

    @property
    def starts(self) -> int:
        """How often it was started."""
        return self._command.starts

    def accept(self) -> socket.socket:
        """As FrontendPeer: of a new process."""
        self._finish()
        self._leave_the_dead()
        self._command.start()
        name, end = self._command.name, time.monotonic() + self._patience
        while time.monotonic() < end:
            with contextlib.suppress(DeadlineExpired):
                return accept(self._listener, _STEP)
            if (code := self._command.code()) is not None:
                raise VhostUserError(f"{name} ended ({end_in_words(code)}) without having connected to {self._path}")
        raise VhostUserError(f"{name} has not connected to {self._path} within {self._patience:g} s")

    def retire(self) -> bool:
        """As FrontendPeer."""
        return self._command.terminate()

    def crashed(self) -> str:
        """As FrontendPeer. One that lives on after its connection is told to end; a crash at that counts too."""
        code = self._finish()
        return "" if code is None else crash_in_words(code, (signal.SIGTERM, signal.SIGKILL))

    def kill(self) -> None:
        """End it, and all that it has started, at once: for who can't wait."""
        self._command.kill()

    def close(self) -> None:
        """End it, and listen no more."""
        self._finish()
        self._listener.remove_name()
        self._listener.close()
        self._place.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _leave_the_dead(self) -> None:
        """Close the connections that wait: one that connects again by itself has made them, and has ended since."""
        self._listener.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                self._listener.accept()[0].close()

    def _finish(self) -> int | None:
        """Its exit status, once it has ended, by itself or because it was told to."""
        self._command.code(within=LINGERS)
        code = self._command.end(GRACE)
        self.stuck = code == -signal.SIGKILL
        return code
