"""The system calls that a sandbox is made of and `os` lacks."""

from __future__ import annotations

import ctypes
import errno
import os
import sys
from typing import Final

from ..errors import VhostUserError
from .seccomp import INSTRUCTION
from .syscalls import MACHINES, number_of

NEW_MOUNTS: Final = 0x0002_0000
NEW_IPC: Final = 0x0800_0000
NEW_USERS: Final = 0x1000_0000
NEW_PIDS: Final = 0x2000_0000
NEW_NET: Final = 0x4000_0000

MS_REC, MS_SLAVE = 0x4000, 0x8_0000
MNT_DETACH: Final = 2
AT_FDCWD, AT_EMPTY_PATH, AT_RECURSIVE = -100, 0x1000, 0x8000
_CLONE, _FROM_EMPTY = 1, 4
_NODEV, _NOSUID = 4, 2

_OPEN_TREE, _MOVE_MOUNT, _MOUNT_SETATTR = 428, 429, 442
_PIVOT_ROOT: Final = {"x86_64": 155, "ppc64le": 203, "ppc64": 203, "s390x": 217, "i686": 217, "armv7l": 218}
_PIVOT_ROOT_ELSEWHERE: Final = 41
_PR_SET_NO_NEW_PRIVS: Final = 38
_SET_FILTER, _ALL_THREADS = 1, 1
_SECCOMP_ADVICE: Final = "try: --seccomp none"

_libc = ctypes.CDLL(None, use_errno=True)
_syscall, _unshare, _prctl, _mount, _umount2 = _libc.syscall, _libc.unshare, _libc.prctl, _libc.mount, _libc.umount2
_syscall.restype = ctypes.c_long
_long, _text = ctypes.c_long, ctypes.c_char_p
_unshare.argtypes = (ctypes.c_int,)
_prctl.argtypes = (ctypes.c_int, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong)
_mount.argtypes = (_text, _text, _text, ctypes.c_ulong, _text)
_umount2.argtypes = (_text, ctypes.c_int)


class SandboxError(VhostUserError):
    """A sandbox can't be entered: what failed and why; `advice` is one thing to try, `errno` the system's word for it."""

    def __init__(self, what: str, number: int, advice: str = "") -> None:
        super().__init__(f"cannot {what}: {os.strerror(number)} ({errno.errorcode.get(number, number)})")
        self.errno, self.advice = number, advice


def checked(result: int, what: str, advice: str = "") -> int:
    """`result` of a call; SandboxError if it is negative."""
    if result < 0:
        raise SandboxError(what, ctypes.get_errno(), advice)
    return result


def syscall(number: int, *arguments: int | bytes) -> int:
    """The result of a system call; -1 if it failed, and then ctypes knows why."""
    result: int = _syscall(_long(number), *(each if isinstance(each, bytes) else _long(each) for each in arguments))
    return result


def unshare(flags: int, what: str, advice: str) -> None:
    """Leave namespaces for new ones; SandboxError says it is not possible to make `what`."""
    checked(_unshare(flags), f"make {what}", advice)


def prctl(option: int, *arguments: int) -> int:
    """The result of a prctl; -1 if it failed."""
    first, second, third, fourth = (*arguments, 0, 0, 0, 0)[:4]
    result: int = _prctl(option, first, second, third, fourth)
    return result


def forbid_privileges() -> None:
    """Get no privileges by running programs any more: without that a process may not confine itself."""
    checked(prctl(_PR_SET_NO_NEW_PRIVS, 1), "set no_new_privs")


def clone_tree(folder: int, path: str, what: str) -> int:
    """An fd of a mount of its own, attached nowhere, of what is at `path` and all that is mounted below."""
    flags = _CLONE | os.O_CLOEXEC | AT_RECURSIVE
    return checked(syscall(_OPEN_TREE, folder, os.fsencode(path) + b"\0", flags), f"clone the mount of {what}")


def attach_tree(tree: int) -> None:
    """Mount what `clone_tree` gave over the working directory."""
    moved = syscall(_MOVE_MOUNT, tree, b"\0", AT_FDCWD, b".\0", _FROM_EMPTY)
    checked(moved, "mount the shared directory over itself")


def forbid_devices(tree: int) -> None:
    """Let no device node below this mount be opened; Linux before 5.12 can't."""
    attributes = (ctypes.c_uint64 * 4)(_NODEV | _NOSUID, 0, 0, 0)
    where = ctypes.addressof(attributes)
    flags = AT_EMPTY_PATH | AT_RECURSIVE
    result = syscall(_MOUNT_SETATTR, tree, b"\0", flags, where, ctypes.sizeof(attributes))
    if result < 0 and ctypes.get_errno() != errno.ENOSYS:
        checked(result, "forbid devices in the shared directory")


def make_mounts_private() -> None:
    """What is mounted here from now on is not seen outside."""
    checked(_mount(b"", b"/", None, MS_REC | MS_SLAVE, None), "make mounts private")


def pivot_root_here() -> None:
    """Let the working directory, a mount, be the root, with the former root mounted over it."""
    number = _PIVOT_ROOT.get(os.uname().machine, _PIVOT_ROOT_ELSEWHERE)
    checked(syscall(number, b".\0", b".\0"), "pivot_root into the shared directory")


def unmount_here() -> None:
    """Take away what is mounted over the working directory, with all below it."""
    checked(_umount2(b".", MNT_DETACH), "unmount the former root")


class _Program(ctypes.Structure):
    """A `struct sock_fprog`: how many instructions, and where."""

    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))


def machine() -> str:
    """The kind of machine whose system calls this process makes; empty for a process of 32 bits, which are others."""
    return os.uname().machine if sys.maxsize >> 32 else ""


def filter_calls(program: bytes) -> bool:
    """Have a filter look at all system calls of this process from now on, in all its threads; False if the kernel can't.

    The process must have no_new_privs. SandboxError if something else is in the way.
    """
    kept = ctypes.create_string_buffer(program, len(program))
    given = _Program(len(program) // INSTRUCTION.size, ctypes.addressof(kept))
    number = number_of("seccomp", machine()) if machine() in MACHINES else None
    result = syscall(number, _SET_FILTER, _ALL_THREADS, ctypes.addressof(given)) if number is not None else -1
    if number is None or (result < 0 and ctypes.get_errno() == errno.ENOSYS):
        return False
    if result > 0:
        raise SandboxError(f"filter the system calls of thread {result}", errno.EBUSY, _SECCOMP_ADVICE)
    checked(result, "filter system calls", _SECCOMP_ADVICE)
    return True
