"""The lists of system calls, of each kind of process, by a word."""

from __future__ import annotations

from collections.abc import Callable

from vhostuser.sandbox.allowed import for_device, for_files, for_keeper
from vhostuser.sandbox.seccomp import Policy

CHILD = 4712
SYSLOG = 7
POLICIES: dict[str, Callable[[int], Policy]] = {
    "files": lambda pid: for_files(pid, handles=False, syslog=None),
    "device": lambda pid: for_device(pid, removes=False, terminal=False),
    "keeper": lambda pid: for_keeper(pid, CHILD),
}
"""What a process of this pid may call."""
EVERY: dict[str, Callable[[int], Policy]] = POLICIES | {
    "files by handles": lambda pid: for_files(pid, handles=True, syslog=None),
    "files with syslog": lambda pid: for_files(pid, handles=False, syslog=SYSLOG),
    "device with a name": lambda pid: for_device(pid, removes=True, terminal=False),
    "device with a terminal": lambda pid: for_device(pid, removes=True, terminal=True),
}
"""Those that differ by options, too."""
