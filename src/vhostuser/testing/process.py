"""A back-end in a process of its own, which a test may signal or kill."""

from __future__ import annotations

import importlib
import os
import resource
import signal
import socket
import subprocess
import sys
from types import FrameType, TracebackType
from typing import IO, Any, Final, Self

from ..backend import Backend
from .wire import DEADLINE

_RUN: Final = "from vhostuser.testing.process import run; run()"


class BackendProcess:
    """A Backend in a new Python process: `device` names a Device class as `module:Class`.

    It serves one end of a socketpair (`socket` is the other) or, with `path`, listens there. SIGTERM and SIGINT stop it.
    `flags` are for the interpreter, `environment` is added to this process's; `limits` sets resource limits by number.
    """

    def __init__(
        self,
        device: str,
        *,
        path: str | None = None,
        flags: tuple[str, ...] = (),
        environment: dict[str, str] | None = None,
        limits: dict[int, int] | None = None,
        stdout: int | IO[bytes] | None = None,
        stderr: int | IO[bytes] | None = subprocess.PIPE,
    ) -> None:
        self.path = path
        self.socket: socket.socket | None = None
        theirs: socket.socket | None = None
        if path is None:
            self.socket, theirs = socket.socketpair()
        where = path or str(theirs.fileno() if theirs else -1)
        words = ",".join(f"{number}={value}" for number, value in (limits or {}).items())
        self.process = subprocess.Popen(
            [sys.executable, "-X", "dev", "-W", "error", *flags, "-c", _RUN, device, where, words],
            pass_fds=[theirs.fileno()] if theirs else [],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **(environment or {})},
            stdout=stdout,
            stderr=stderr,
        )
        if theirs:
            theirs.close()

    @property
    def pid(self) -> int:
        """The process's id."""
        return self.process.pid

    def signal(self, number: int) -> None:
        """Send it a signal."""
        self.process.send_signal(number)

    def wait(self, within: float = DEADLINE) -> tuple[int, str]:
        """Wait for its end: the exit status, and what it wrote to standard error. AssertionError if it does not end."""
        try:
            _, errors = self.process.communicate(timeout=within)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the back-end process did not end within {within:g} s") from None
        return self.process.returncode, (errors or b"").decode(errors="replace")

    def close(self) -> None:
        """Kill it if it still runs."""
        if self.socket:
            self.socket.close()
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(DEADLINE)
        for stream in (self.process.stdout, self.process.stderr):
            if stream:
                stream.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def run() -> None:
    """What the new process does: serve the device of `sys.argv` until a signal says stop."""
    device, where, words = sys.argv[1:4]
    _set_limits(words)
    module, _, name = device.partition(":")
    made: Any = getattr(importlib.import_module(module), name)()
    backend = Backend(made)

    def stop(number: int, frame: FrameType | None) -> None:
        backend.stop()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    if where.isdigit():
        backend.serve_fd(int(where))
    else:
        backend.serve(where)


def _set_limits(words: str) -> None:
    for word in filter(None, words.split(",")):
        number, _, value = word.partition("=")
        resource.setrlimit(int(number), (int(value), int(value)))
