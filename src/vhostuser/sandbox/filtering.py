"""Have the kernel filter the system calls of this process."""

from __future__ import annotations

import faulthandler
import os
import signal
from typing import Final

from .seccomp import Action, Policy, program
from .system import filter_calls, forbid_privileges, machine

_STDERR: Final = 2


def filter_process(policy: Policy, action: Action) -> list[str]:
    """Let this process, in all its threads and for good, call what a policy says. What is not as asked for, for the log.

    SandboxError if something is in the way. The process gets no privileges by running programs any more.
    """
    if action is Action.NONE:
        return []
    made = program(policy, action, machine())
    if action is Action.TRAP:
        faulthandler.register(signal.SIGSYS, _STDERR, all_threads=False, chain=True)
    if made is None:
        return [f"there is no filter of system calls: their numbers on this machine, {os.uname().machine}, are not known"]
    forbid_privileges()
    return [] if filter_calls(made) else ["there is no filter of system calls: the kernel has none"]
