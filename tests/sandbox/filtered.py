"""A plugin for pytest: every request of the tests of a share is done by a thread that has the filter of `vhu-fs`.

`pytest -p tests.sandbox.filtered tests/devices/fs`. A call that is missing in the list ends pytest, and it says where.
"""

from __future__ import annotations

import ctypes
import faulthandler
import functools
import os
import signal
import threading
from collections.abc import Callable
from itertools import count
from typing import TypeVar

from tests.devices.fs import guest
from vhostuser.devices.fs.options import Handles
from vhostuser.devices.fs.passthrough.share import Share
from vhostuser.sandbox.allowed import for_files
from vhostuser.sandbox.seccomp import INSTRUCTION, Action, Policy, program
from vhostuser.sandbox.syscalls import number_of
from vhostuser.sandbox.system import machine, prctl, syscall

PR_SET_NO_NEW_PRIVS, SET_FILTER = 38, 1
done = count()
"""Counts requests."""
T = TypeVar("T")


class FilteredShare(Share):
    """A share whose requests are each done by a thread of their own."""

    def __init__(self, *arguments: object, **options: object) -> None:
        super().__init__(*arguments, **options)  # type: ignore[arg-type]  # as it is asked for
        handles = self._state.options.inode_file_handles is not Handles.NEVER
        for name, method in list(vars(self).items()):
            if callable(method):
                setattr(self, name, functools.partial(behind_filter, method, handles))


def behind_filter(do: Callable[..., T], handles: bool, *arguments: object) -> T:
    """What `do` gives, or raises, in a thread that has the filter."""
    result: list[T] = []
    error: list[BaseException] = []

    def work() -> None:
        try:
            filter_this_thread(for_files(os.getpid(), handles=handles, syslog=None))
            result.append(do(*arguments))
        except BaseException as raised:
            error.append(raised)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    if error:
        raise error.pop()
    next(done)
    return result.pop()


def filter_this_thread(policy: Policy) -> None:
    """Have a filter in this thread, and those that it starts, but no other."""
    made = program(policy, Action.TRAP, machine())
    number = number_of("seccomp", machine())
    if made is None or number is None:
        raise RuntimeError("no filter on this machine")
    kept = ctypes.create_string_buffer(made, len(made))
    given = (ctypes.c_uint64 * 2)(len(made) // INSTRUCTION.size, ctypes.addressof(kept))
    prctl(PR_SET_NO_NEW_PRIVS, 1)
    if syscall(number, SET_FILTER, 0, ctypes.addressof(given)):
        raise OSError(ctypes.get_errno(), "no filter")


def pytest_configure() -> None:
    """Put it in the place of the real one."""
    faulthandler.register(signal.SIGSYS, all_threads=False, chain=True)
    vars(guest)["Share"] = FilteredShare


def pytest_terminal_summary(terminalreporter: object) -> None:
    """Say how many there were, so that nobody takes none for a success."""
    print(f"\n{next(done)} requests behind the filter")
