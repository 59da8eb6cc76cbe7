"""Processes that a command starts and that end with it, whatever ends it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Final

from ..unreaped import code_of, keep_ended, wait_for_end
from .outcome import undone

GRACE: Final = 10.0
"""Seconds that a process may take to end after SIGTERM."""
_LOOK: Final = 0.01
_ENDED: Final = (b"Z", b"X")


class Child:
    """A process in a session of its own, and what it has started, which is its group.

    It is not reaped before the group is killed: until then nobody else can get its number, and a signal to the group reaches
    nothing else. With `group` all of it is told to end, and waited for; else the process alone is.
    """

    def __init__(self, process: subprocess.Popen[bytes], *, group: bool) -> None:
        self._process, self._group = process, group
        self._reaped = False

    @property
    def pid(self) -> int:
        """Its number."""
        return self._process.pid

    def poll(self) -> int | None:
        """How it ended, as Popen has it; None if it runs."""
        if self._reaped:
            return self._process.returncode
        return code_of(self.pid)

    def wait(self, seconds: float) -> int:
        """How it ended; subprocess.TimeoutExpired if it does not within so many seconds."""
        if not self._reaped:
            wait_for_end(self.pid, seconds)
        code = self.poll()
        if code is None:
            raise subprocess.TimeoutExpired(self._process.args, seconds)
        return code

    def kill(self) -> None:
        """End it, and all that it has started, at once; from a signal handler, too. Nothing if that has been done."""
        self._signal(signal.SIGKILL, group=True)

    def end(self) -> None:
        """Let it end, and see to it."""
        self._signal(signal.SIGTERM, group=self._group)
        deadline = time.monotonic() + GRACE
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(GRACE)
        while self._group and _lives(self.pid) and time.monotonic() < deadline:
            time.sleep(_LOOK)
        self.kill()
        self._reaped = True  # before it is: from now on its number may become somebody else's
        self._process.wait(GRACE)

    def _signal(self, number: signal.Signals, *, group: bool) -> None:
        if not self._reaped:
            with contextlib.suppress(ProcessLookupError):
                (os.killpg if group else os.kill)(self.pid, number)


def _lives(group: int) -> bool:
    """A process of the group has not ended: one that has, and is not reaped, belongs to it still."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, its_group = path.read_bytes().rpartition(b")")[2].split()[:3]
            if int(its_group) == group and state not in _ENDED:
                return True
    return False


@contextlib.contextmanager
def child(
    command: Sequence[str], *, fds: Sequence[int] = (), said: IO[bytes] | None = None, group: bool = False
) -> Iterator[Child]:
    """A process that runs within the block, in a session of its own: a terminal's Ctrl-C is this command's alone.

    It gets the open files `fds`; its output goes to `said`, or to standard error. With `group` what it has started is told
    to end, too, as what a shell runs has to be; else it is killed when the process has ended.
    """
    keep_ended()
    output = said if said is not None else 2
    process = Child(
        subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, pass_fds=fds, start_new_session=True
        ),
        group=group,
    )
    with undone(process.kill):  # which does nothing if it has ended
        try:
            yield process
        finally:
            process.end()
