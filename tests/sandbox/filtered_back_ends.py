"""A plugin for pytest: every Backend of a test serves behind the filter that the daemons have.

`pytest -p tests.sandbox.filtered_back_ends tests/devices`. The thread that serves has the filter, and those that it starts;
the front-end of the same process has none. A call that is missing in the list ends pytest, and it says where.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import socket
import threading
from itertools import count

from tests.sandbox.filtered import filter_this_thread
from vhostuser.backend import Backend
from vhostuser.sandbox.allowed import for_device
from vhostuser.sandbox.preload import preload
from vhostuser.transport.loop import SignalWaker

served = count()
"""Counts front-ends."""
filtered = threading.local()
"""Whether this thread has the filter."""


_serve_socket = Backend._serve_socket


def serve_filtered(self: Backend, sock: socket.socket, stop: SignalWaker) -> None:
    """Serve a front-end, with the filter from now on. Pytest's own thread, which goes on to the next test, has none."""
    if threading.current_thread() is not threading.main_thread():
        if not hasattr(filtered, "once"):
            filtered.once = True
            filter_this_thread(for_device(os.getpid(), removes=True, terminal=False))
        next(served)
    _serve_socket(self, sock, stop)


def pytest_configure() -> None:
    """Put it in the place of the real one."""
    preload()
    faulthandler.register(signal.SIGSYS, all_threads=False, chain=True)
    Backend._serve_socket = serve_filtered  # type: ignore[method-assign]  # of all Backends


def pytest_terminal_summary(terminalreporter: object) -> None:
    """Say how many there were, so that nobody takes none for a success."""
    print(f"\n{next(served)} front-ends were served behind the filter")
