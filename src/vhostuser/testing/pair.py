"""Our two sides, or one of them and a raw end, joined by a socketpair."""

from __future__ import annotations

import contextlib
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from typing import NamedTuple, Unpack

from ..backend import Backend, BackendOptions
from ..device import Device
from ..frontend import Frontend, FrontendOptions
from .raw_frontend import RawFrontend
from .usage import is_listened_on, wait_until
from .wire import DEADLINE


class Served:
    """A Backend that runs in a thread; `error` is the exception that ended it, if one did."""

    def __init__(self, device: Device, **options: Unpack[BackendOptions]) -> None:
        self.device = device
        self.backend = Backend(device, **options)
        self.error: BaseException | None = None
        self._thread: threading.Thread | None = None

    def connected(self) -> socket.socket:
        """Serve one end of a socketpair; the other one."""
        ours, theirs = socket.socketpair()
        self._start(lambda: self.backend.serve_fd(theirs.detach()))
        return ours

    def at(self, path: str, *, once: bool = False) -> None:
        """Serve `path`; returns when somebody may connect."""
        self._start(lambda: self.backend.serve(path, once=once))
        wait_until(lambda: is_listened_on(path) or self.ended, f"{path} is listened on")

    @property
    def ended(self) -> bool:
        """The Backend does not serve any more."""
        return self._thread is not None and not self._thread.is_alive()

    def join(self, within: float = DEADLINE) -> None:
        """Wait until the Backend has ended by itself; AssertionError if it does not in time."""
        if self._thread:
            self._thread.join(within)
            if self._thread.is_alive():
                raise AssertionError(f"the back-end did not end within {within:g} s")

    def stop(self) -> None:
        """Stop the Backend and wait for its end."""
        self.backend.stop()
        self.join()

    def _start(self, serve: Callable[[], None]) -> None:
        self._thread = threading.Thread(target=self._run, args=(serve,), name="back-end", daemon=True)
        self._thread.start()

    def _run(self, serve: Callable[[], None]) -> None:
        try:
            serve()
        except BaseException as error:
            self.error = error.with_traceback(None)


class ServedRawFrontend(RawFrontend):
    """A raw front-end whose peer is a Backend of this process."""

    def __init__(self, served: Served, *, deadline: float = DEADLINE) -> None:
        super().__init__(served.connected(), deadline=deadline)
        self.served = served


class Joined(NamedTuple):
    """Both sides of a connection."""

    frontend: Frontend
    served: Served


@contextlib.contextmanager
def joined(
    device: Device, *, backend_options: BackendOptions | None = None, **options: Unpack[FrontendOptions]
) -> Iterator[Joined]:
    """A Frontend (with `options`) connected to a Backend in a thread; both end with the block."""
    served = Served(device, **(backend_options or {}))
    try:
        with Frontend(served.connected(), **options) as frontend:
            yield Joined(frontend, served)
    finally:
        served.stop()


@contextlib.contextmanager
def raw_frontend(
    device: Device, *, deadline: float = DEADLINE, **options: Unpack[BackendOptions]
) -> Iterator[ServedRawFrontend]:
    """A raw front-end connected to a Backend (with `options`) in a thread, which ends with the block."""
    served = Served(device, **options)
    try:
        with ServedRawFrontend(served, deadline=deadline) as raw:
            yield raw
    finally:
        served.stop()


@contextlib.contextmanager
def listening(device: Device, **options: Unpack[BackendOptions]) -> Iterator[tuple[str, Served]]:
    """A Backend in a thread that listens on a path of its own: the path and the Backend."""
    served = Served(device, **options)
    with tempfile.TemporaryDirectory(prefix="vhu-") as directory:
        path = f"{directory}/socket"
        try:
            served.at(path)
            yield path, served
        finally:
            served.stop()
