"""Real processes of the commands, with deadlines."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from vhostuser.testing import is_listened_on

SECONDS = 15.0
"""Longer than anything may take on a busy machine; a deadline, not a wait."""
PAGE = 4096
SHM = "vhostuser.cli.shm"
BLK = "vhostuser.cli.blk"
RNG = "vhostuser.cli.rng"
FS = "vhostuser.cli.fs"
CONSOLE = "vhostuser.cli.console"
PMEM = "vhostuser.cli.pmem"
FS = "vhostuser.cli.fs"
VHU = "vhostuser"
Event = dict[str, Any]


def words(module: str, *arguments: str | Path) -> list[str]:
    """The command line that runs a module of the package, with warnings as errors."""
    return [sys.executable, "-W", "error", "-m", module, *map(str, arguments)]


def environment(**changes: str) -> dict[str, str]:
    """This process's environment without what changes the output, and with `changes`."""
    dropped = {"VHU_LOG", "NO_COLOR", "LISTEN_PID", "LISTEN_FDS"}
    return {name: value for name, value in os.environ.items() if name not in dropped} | changes


def run(
    module: str,
    *arguments: str | Path,
    typed: str = "",
    cwd: Path | None = None,
    pass_fds: Sequence[int] = (),
    **changes: str,
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, with `typed` on standard input; `changes` are of its environment."""
    return subprocess.run(
        words(module, *arguments),
        input=typed,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
        cwd=cwd,
        pass_fds=pass_fds,
        env=environment(**changes),
    )


def one_line(text: str) -> str:
    """`text`, which is exactly one line and no traceback."""
    assert text.count("\n") == 1, text
    assert text.endswith("\n")
    assert "Traceback" not in text
    return text.rstrip("\n")


def until(holds: Callable[[], object], what: str, seconds: float = SECONDS) -> None:
    """Wait until something holds, which no fd tells of."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.002)


class Program:
    """A process: lines in, lines out; what it says on standard error is kept."""

    def __init__(self, command: Sequence[str], *, pass_fds: Sequence[int] = (), **changes: str) -> None:
        self._said = tempfile.TemporaryFile("a+b")  # noqa: SIM115  # closed with the program
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            pass_fds=pass_fds,
            env=environment(**changes),
            bufsize=0,
        )
        self._rest = b""

    @property
    def said(self) -> str:
        """All that it has said on standard error."""
        return os.pread(self._said.fileno(), 1 << 20, 0).decode()

    def send(self, line: str) -> None:
        """Type a line."""
        assert self.process.stdin
        self.process.stdin.write(line.encode() + b"\n")

    def close_stdin(self) -> None:
        """Type nothing more."""
        assert self.process.stdin
        self.process.stdin.close()

    def line(self) -> str:
        """The next line of output; empty at its end."""
        assert self.process.stdout
        deadline = time.monotonic() + SECONDS
        while b"\n" not in self._rest:
            left = max(0.0, deadline - time.monotonic())
            assert select.select([self.process.stdout], [], [], left)[0], f"no line of output; it said: {self.said}"
            data = os.read(self.process.stdout.fileno(), 1 << 16)
            if not data:
                return ""
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\n")
        return line.decode()

    def event(self, name: str) -> Event:
        """The next event of this name; what comes before is passed over."""
        while line := self.line():
            found: Event = json.loads(line)
            if found["event"] == name:
                return found
        raise AssertionError(f"no event {name}; it said: {self.said}")

    def ask(self, line: str, answer: str) -> Event:
        """Type a command; the event that answers it."""
        self.send(line)
        return self.event(answer)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal."""
        self.process.send_signal(number)

    def end(self, seconds: float = SECONDS) -> int:
        """Wait for the end; the exit code. It may not have left anything unclosed."""
        code = self.process.wait(seconds)
        assert "Traceback" not in self.said, self.said
        assert "exception ignored" not in self.said.lower(), self.said
        return code

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.process.kill()
        self.process.wait(SECONDS)
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe:
                pipe.close()
        self._said.close()


def vhu(*arguments: str | Path) -> Program:
    """`vhu` with these arguments."""
    return Program(words(VHU, *arguments))


def attach(path: Path, *arguments: str) -> Program:
    """`vhu attach --json`."""
    return vhu("attach", path, "--json", *arguments)


def serving(path: Path, *arguments: str | Path, module: str = SHM) -> Program:
    """A daemon with a socket that listens on `path` already, so that nobody has to wait for it."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        listener.listen(8)
        return Program(words(module, "--fd", str(listener.fileno()), *arguments), pass_fds=[listener.fileno()])


def listening(path: Path, *arguments: str | Path, module: str = SHM) -> Program:
    """A daemon with `--socket-path`, once it listens."""
    program = Program(words(module, "--socket-path", path, *arguments))
    try:
        until(lambda: is_listened_on(path) or program.process.poll() is not None, f"it listens on {path}")
        assert program.process.poll() is None, program.said
    except BaseException:
        program.__exit__(None, None, None)
        raise
    return program
