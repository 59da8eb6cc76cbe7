"""The front-end under test as a function of the same process: called in a thread for each connection."""

from __future__ import annotations

import contextlib
import os
import socket
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from ..errors import DeadlineExpired, VhostUserError
from ..transport.listen import accept, listen
from .frontend_peer import APPEARS, LINGERS

ENDS: Final = 10.0
"""Seconds that the function may take to end, once its connection is over."""
_STEP: Final = 0.1


class Called:
    """A FrontendPeer: `connect` gets a path, connects to it, and returns when the back-end is gone.

    What it raises is a crash, unless that is a VhostUserError or an OSError: so a front-end says that it goes.
    """

    def __init__(self, connect: Callable[[str], object], *, patience: float = APPEARS) -> None:
        self._connect, self._patience = connect, patience
        self._place = tempfile.TemporaryDirectory(prefix="vhu")
        self._path = str(Path(self._place.name) / "s")
        self._listener = listen(self._path)
        self._thread: threading.Thread | None = None
        self._raised: list[BaseException] = []

    def accept(self) -> socket.socket:
        """As FrontendPeer: of another call."""
        self._join(ENDS)
        self._raised.clear()
        self._thread = threading.Thread(target=self._run, name="front-end", daemon=True)
        self._thread.start()
        end = time.monotonic() + self._patience
        while time.monotonic() < end:
            with contextlib.suppress(DeadlineExpired):
                return accept(self._listener, _STEP)
            if not self._thread.is_alive():
                why = _words(self._raised[-1]) if self._raised else "returned"
                raise VhostUserError(f"the front-end {why} without having connected to {self._path}")
        raise VhostUserError(f"the front-end has not connected to {self._path} within {self._patience:g} s")

    def retire(self) -> bool:
        """As FrontendPeer: a thread can't be told."""
        return False

    def crashed(self) -> str:
        """As FrontendPeer: what it raised."""
        if self._thread:
            self._thread.join(LINGERS)
        crashes = [each for each in self._raised if not isinstance(each, VhostUserError | OSError)]
        return f"it {_words(crashes[-1])}" if crashes else ""

    def close(self) -> None:
        """Listen no more, and let the last call end. VhostUserError if it does not."""
        self._listener.close()
        with contextlib.suppress(OSError):
            os.unlink(self._path)
        self._place.cleanup()
        self._join(ENDS)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _run(self) -> None:
        try:
            self._connect(self._path)
        except BaseException as error:
            self._raised.append(error)

    def _join(self, seconds: float) -> None:
        if self._thread is None:
            return
        self._thread.join(seconds)
        if self._thread.is_alive():
            raise VhostUserError(f"the front-end has not ended within {seconds:g} s, though its connection is over")


def _words(error: BaseException) -> str:
    return f"raised {type(error).__name__}: {error}"
