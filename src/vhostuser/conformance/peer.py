"""The peer under test: one that runs already, or a command that is started, and started again when it has ended."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Protocol, Self

from ..errors import VhostUserError
from ..testing.usage import is_listened_on
from ..transport.listen import AddressError, NobodyListens, connect
from .command import Command, crash_in_words, end_in_words, words_of

APPEARS: Final = 20.0
"""Seconds that a back-end may take to listen."""
GRACE: Final = 2.0
"""Seconds that one may take to end after SIGTERM."""
LINGERS: Final = 0.25
"""Seconds in which one that is dying of a connection has died."""


class Peer(Protocol):
    """A back-end to connect to."""

    def connect(self) -> socket.socket:
        """A new connection. VhostUserError if the back-end is not there."""

    def crashed(self) -> str:
        """How it died since the last connection, if that was no orderly end; empty if it lives, or nobody can know."""

    def renew(self) -> None:
        """It has hung: end it, if it can be started again."""


class WatchedPeer(Peer, Protocol):
    """One that is looked at between rules as well."""

    def take_death(self) -> str:
        """What a process of it died of before another took its place, told once; empty if none did."""


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

    def take_death(self) -> str:
        """As WatchedPeer: nobody can know."""
        return ""

    def renew(self) -> None:
        """As Peer: who started it has to end it."""


class Started:
    """A command that listens on `{socket}`, which is also in its environment as `socket`; started anew once it has ended.

    With `path` that is the socket's name, else one is made up. ValueError if the command is none.
    """

    def __init__(self, command: str | Sequence[str], *, path: str = "", quiet: bool = True) -> None:
        words = words_of(command)
        self._place = tempfile.TemporaryDirectory(prefix="vhu")
        self._path = path or str(Path(self._place.name) / "s")
        self._command = Command(words, self._path, quiet=quiet)
        self._death = ""

    @property
    def starts(self) -> int:
        """How often it was started."""
        return self._command.starts

    def connect(self) -> socket.socket:
        """As Peer. A back-end that ends after each connection is started for each."""
        with contextlib.suppress(_Ended):  # as one does that serves once
            return self._connect()
        try:
            return self._connect()
        except _Ended as end:
            raise VhostUserError(f"{self._command.name} ended ({end}) before it could be connected to") from None

    def crashed(self) -> str:
        """As Peer. Waits a moment for the end of a process whose connection is over."""
        self.linger()
        return self._end()

    def linger(self, seconds: float = LINGERS) -> None:
        """Wait so long for the end of a process that may be about to end."""
        self._command.code(within=seconds)

    def take_death(self) -> str:
        """As WatchedPeer."""
        death, self._death = self._death, ""
        return death

    def renew(self) -> None:
        """As Peer. How it ends now is our doing, and no death."""
        self._death = self._death or self._end()
        self._command.end(GRACE, group=True)

    def kill(self) -> None:
        """End it, and all that it has started, at once: for who can't wait."""
        self._command.kill()

    def close(self) -> None:
        """End it."""
        self.renew()
        self._place.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _connect(self) -> socket.socket:
        if not self._command.runs:
            self._check_foreground()
            self._death = self._death or self._end()
            self._make_room()
            self._command.start()
        try:
            return connect(self._path, wait=APPEARS, check=self._check)
        except NobodyListens:
            raise VhostUserError(f"{self._command.name} runs, but does not listen on {self._path}") from None

    def _check_foreground(self) -> None:
        """Nothing that it has left behind serves: what goes into the background can be neither watched nor ended."""
        if self._command.code() == 0 and is_listened_on(self._path):
            raise Daemonized(self._command.name)

    def _make_room(self) -> None:
        """Take the socket of one that has ended away; nothing else that lies there."""
        try:
            mode = os.lstat(self._path).st_mode
        except OSError:
            return
        if not stat.S_ISSOCK(mode):
            raise AddressError(f"cannot listen on {self._path}", "something that is no socket is there", "try: another path")
        os.unlink(self._path)

    def _check(self) -> None:
        if (code := self._command.code()) is not None:
            raise _Ended(end_in_words(code))

    def _end(self) -> str:
        """How it ended, if it was by a signal or a panic."""
        code = self._command.code()
        return "" if code is None else crash_in_words(code)


class Daemonized(VhostUserError):
    """The command has ended, and what it has left behind serves."""

    def __init__(self, name: str) -> None:
        super().__init__(
            f"{name} has gone into the background, where it is neither watched nor ended, and serves from there"
        )
        self.advice = "try: its option to stay in the foreground"


class _Ended(Exception):
    """The process ended while it was waited for: how."""
