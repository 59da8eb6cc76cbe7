"""Makes system calls behind a filter, each in a child of its own, and says what came of them.

`python -m tests.sandbox.forbidden ACTION POLICY` prints, for each call, the errno (0 for none) or the name of the signal.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import signal
import socket
import stat
import sys
from collections.abc import Callable

from tests.sandbox.machine import numbers
from tests.sandbox.policies import POLICIES
from vhostuser.sandbox.seccomp import X32, Action, Policy, program
from vhostuser.sandbox.syscalls import LAST
from vhostuser.sandbox.system import filter_calls, machine, prctl

PR_SET_NO_NEW_PRIVS = 38
CLONE_NEWUSER = 0x1000_0000
AF_UNIX, STREAM = int(socket.AF_UNIX), int(socket.SOCK_STREAM)
NOWHERE = 8
"""An address where nothing is."""
FORBIDDEN: dict[str, tuple[int, ...]] = {
    "execve": (NOWHERE, 0, 0),
    "execveat": (-1, NOWHERE, 0, 0, 0),
    "fork": (),
    "clone": (signal.SIGCHLD,),
    "unshare": (CLONE_NEWUSER,),
    "setns": (-1, 0),
    "ptrace": (1 << 20, 0, 0, 0),
    "kill": (0, 0),
    "tgkill": (1, 1, 0),
    "process_vm_readv": (1, 0, 0, 0, 0, 0),
    "pidfd_open": (1, 0),
    "mount": (NOWHERE, NOWHERE, NOWHERE, 0, 0),
    "umount2": (NOWHERE, 0),
    "pivot_root": (NOWHERE, NOWHERE),
    "chroot": (NOWHERE,),
    "open_by_handle_at": (-1, 0, 0),
    "mknodat": (-1, 0, stat.S_IFCHR, 0),
    "mmap": (0, 4096, mmap.PROT_READ | mmap.PROT_EXEC, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0),
    "mprotect": (0, 4096, mmap.PROT_READ | mmap.PROT_EXEC),
    "socket": (AF_UNIX, STREAM, 0),
    "sendto": (-1, NOWHERE, 0, 0, NOWHERE, 110),
    "connect": (-1, 0, 0),
    "bpf": (1 << 20, 0, 0),
    "userfaultfd": (1 << 20,),
    "io_uring_setup": (0, 0),
    "init_module": (0, 0, 0),
    "keyctl": (1 << 20, 0, 0, 0, 0),
    "perf_event_open": (0, 0, 0, 0, 0),
    "personality": (0xFFFF_FFFF,),
}
"""Calls that do no harm if they are made after all."""
FOR_FILES_ONLY: dict[str, tuple[int, ...]] = {
    "openat2": (-1, NOWHERE, NOWHERE, 24),
    "getdents64": (-1, NOWHERE, 0),
    "readlinkat": (-1, NOWHERE, NOWHERE, 0),
    "mkdirat": (-1, NOWHERE, 0),
    "linkat": (-1, NOWHERE, -1, NOWHERE, 0),
    "symlinkat": (NOWHERE, -1, NOWHERE),
    "renameat2": (-1, NOWHERE, -1, NOWHERE, 0),
    "unlinkat": (-1, NOWHERE, 0),
    "fchmodat": (-1, NOWHERE, 0),
    "fchownat": (-1, NOWHERE, 0, 0, 0),
    "fsetxattr": (-1, NOWHERE, NOWHERE, 0, 0),
    "setresuid": (-1 & 0xFFFF_FFFF,) * 3,
    "setgroups": (1 << 20, NOWHERE),
    "capset": (NOWHERE, NOWHERE),
}
"""What another device than a share has no use for either."""
REFUSED: dict[str, tuple[int, ...]] = {
    "clone3": (0, 0),
    "ioctl": (0, 0x5412, 0),
    "prctl": (4, 1, 0, 0, 0),
    "fcntl": (0, 8, 0),
    "setsockopt": (0, 1, 26, 0, 0),
}
"""Calls that fail with an errno in all modes: of no size, TIOCSTI, PR_SET_DUMPABLE, F_SETOWN, SO_ATTACH_FILTER."""


def outcome(action: Action, policy: Callable[[int], Policy], number: int, arguments: tuple[int, ...]) -> int | str:
    """What comes of one call."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.write(writer, bytes([_call(action, policy(os.getpid()), number, arguments)]))
        os._exit(0)
    os.close(writer)
    with open(reader, "rb") as pipe:
        data = pipe.read()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return signal.Signals(-status).name if status < 0 else data[0]


def _call(action: Action, policy: Policy, number: int, arguments: tuple[int, ...]) -> int:
    """The errno of a call in this process, which has a filter from now on."""
    made = program(policy, action, machine())
    prctl(PR_SET_NO_NEW_PRIVS, 1)
    if made is not None and not filter_calls(made):
        raise RuntimeError("the kernel can't filter system calls")
    libc, us = ctypes.CDLL(None, use_errno=True), os.getpid()
    result = libc.syscall(ctypes.c_long(number), *(ctypes.c_long(each) for each in arguments))
    if os.getpid() != us:  # a fork worked
        os._exit(0)
    return ctypes.get_errno() if result == -1 else 0


def main(action: Action, policy: Callable[[int], Policy]) -> None:
    """Make all of them."""
    known = numbers(machine())
    asked = FORBIDDEN | FOR_FILES_ONLY | REFUSED
    calls = {name: (known[name], given) for name, given in asked.items() if name in known}
    calls["openat"] = known["openat"], (-1, NOWHERE, 0)
    calls["newer"] = LAST + 1, ()
    calls["x32"] = X32 | known["getpid"], ()
    print(json.dumps({name: outcome(action, policy, *each) for name, each in calls.items()}))


if __name__ == "__main__":
    main(Action(sys.argv[1]), POLICIES[sys.argv[2]])
