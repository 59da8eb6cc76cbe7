"""A child that is looked at, and not reaped: until it is nobody else can get its number."""

from __future__ import annotations

import contextlib
import os
import select
import signal


def keep_ended() -> None:
    """Have children that end stay until they are reaped: who ignores SIGCHLD, as some that start programs do, keeps none."""
    if signal.getsignal(signal.SIGCHLD) is signal.SIG_IGN:
        with contextlib.suppress(ValueError):  # not in the main thread
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)


def code_of(pid: int) -> int | None:
    """How a child ended, as Popen has it; None if it runs."""
    found = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG)
    if found is None:
        return None
    return found.si_status if found.si_code == os.CLD_EXITED else -found.si_status


def wait_for_end(pid: int, seconds: float) -> None:
    """Wait until a child has ended, so long at most."""
    fd = os.pidfd_open(pid)
    try:
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        poll.poll(seconds * 1000)
    finally:
        os.close(fd)
