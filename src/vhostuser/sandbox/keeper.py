"""The process outside: it waits for the one in the sandbox, hands signals on to it, and takes away what that can't reach.

It has a filter of system calls of its own, though nothing of a guest's gets to it. Three things make it safe to have two. A
signal that comes before the child can act on it waits, for the child begins with them blocked (`ready` lets them in). The
terminal's keys reach the keeper alone, for the child is in a group of its own. And if the keeper is killed, the kernel kills
the child.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import signal
from collections.abc import Collection
from typing import Final, Protocol

from .allowed import for_keeper
from .capabilities import drop_all_but, mask
from .filtering import filter_process
from .seccomp import Action
from .system import SandboxError, prctl

log = logging.getLogger(__name__)
RELAYED: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
KEPT: Final = mask("kill", "dac_override")
"""Capabilities of the keeper: the child may run as another user, and the socket may be in another one's directory."""
_PR_SET_PDEATHSIG: Final = 1
_WHY: Final[dict[int, str]] = {
    signal.SIGSYS: ": it made a system call that is forbidden, which the kernel's log names; try: --seccomp log"
}


class Outside(Protocol):
    """What is outside of the sandbox: files that are locked, a socket's name."""

    @property
    def fds(self) -> Collection[int]:
        """What the keeper keeps open."""

    def clean_up(self) -> None:
        """Take away what is there: for the keeper, in the end."""

    def abandon(self) -> None:
        """Leave it to the keeper: for the child, to which these names will mean other files."""


def split(outside: Outside, action: Action, logs: Collection[int]) -> int:
    """Fork. Returns in the child alone, with signals blocked: what tells that the keeper is there, for `follow`.

    The keeper cleans up when the child has ended, and ends with its exit code, or 128 and the signal that killed it.
    `action` is what becomes of a system call that it never needs; it logs by the fds `logs`.
    """
    hold()
    alive, keeper = os.pipe2(os.O_CLOEXEC)
    try:
        child = os.fork()
    except OSError as error:
        raise SandboxError("start the process in the sandbox", error.errno or 0) from None
    if child:
        _keep(child, outside, action, {0, 1, 2, keeper, *outside.fds, *logs})
    outside.abandon()
    os.close(keeper)
    os.setpgid(0, 0)
    return alive


def follow(alive: int) -> None:
    """Die when the keeper dies. To be called once this process is who it will be, for who changes that forgets it."""
    prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    gone = select.select([alive], [], [], 0)[0]
    os.close(alive)
    if gone:
        os._exit(1)


def hold() -> None:
    """Let signals wait, so that none comes between what is made outside and the keeper that takes it away.

    Who ignores SIGCHLD, as some that start programs do, can't wait for a child: that ends here, too.
    """
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_BLOCK, RELAYED)


def ready() -> None:
    """Let signals in."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, RELAYED)


def _keep(child: int, outside: Outside, action: Action, fds: set[int]) -> None:
    """Be the keeper, which has these fds. Never returns."""
    code = 1
    try:
        _close_all_but(fds)
        _relay_to(child)
        drop_all_but(KEPT)
        with contextlib.suppress(SandboxError):  # the child can't have a filter either, and says so
            filter_process(for_keeper(os.getpid(), child), action)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        outside.clean_up()
        if code < 0:
            log.error("the process in the sandbox was killed by %s%s", signal.Signals(-code).name, _WHY.get(-code, ""))
    finally:
        os._exit(code if code >= 0 else 128 - code)


def _close_all_but(fds: set[int]) -> None:
    """Close every other fd: a socket that is held here would not look closed when the child ends."""
    for fd in sorted({int(name) for name in os.listdir("/proc/self/fd")} - fds):
        with contextlib.suppress(OSError):
            os.close(fd)


def _relay_to(child: int) -> None:
    def relay(number: int, frame: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, number)

    for each in RELAYED:
        signal.signal(each, relay)
    ready()
