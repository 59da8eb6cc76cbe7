"""Processes that a command starts and that end with it, whatever ends it."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator, Sequence
from typing import IO, Final

from .outcome import undone

GRACE: Final = 10.0
"""Seconds that a process may take to end after SIGTERM."""
Child = subprocess.Popen[bytes]


@contextlib.contextmanager
def child(command: Sequence[str], *, fds: Sequence[int] = (), said: IO[bytes] | None = None) -> Iterator[Child]:
    """A process that runs within the block, in a session of its own: a terminal's Ctrl-C is this command's alone.

    It gets the open files `fds`; its output goes to `said`, or to standard error.
    """
    output = said if said is not None else 2
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, pass_fds=fds, start_new_session=True
    )
    with undone(process.kill):  # which does nothing if it has ended
        try:
            yield process
        finally:
            end(process)


def end(process: Child) -> None:
    """Let a process end, and see to it."""
    process.terminate()
    try:
        process.wait(GRACE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(GRACE)
