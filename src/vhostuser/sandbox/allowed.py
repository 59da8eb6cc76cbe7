"""What a process may call: one that serves files for a guest, one that serves another device, and the keeper.

Measured, with the daemons under all of their tests, and then reasoned: what does the same as a call that is there, by
another name, is there, too, since another C library, or another Python, takes that. What is not there makes processes,
changes namespaces and mounts, looks into other processes, runs programs or new code, connects to anybody new, or is the
kernel's own business. Who serves another device than files opens nothing by name any more, either, and acts for nobody else.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import socket
import stat
from typing import Final

from .seccomp import Barred, Given, Policy

_BYTES: Final = (
    *("read", "write", "readv", "writev", "pread64", "pwrite64", "preadv", "pwritev", "preadv2", "pwritev2", "lseek"),
    *("fallocate", "ftruncate", "fsync", "fdatasync", "close", "dup", "dup2", "dup3", "eventfd2", "pipe2"),
)
"""Of what is open: a disk, an image, an area of memory, eventfds, a pipe for signals."""
_LOOKS: Final = ("stat", "fstat", "lstat", "newfstatat", "statx", "fstatfs")
"""How large a file is, and of what kind. The C library asks for what is open by the calls that can be given a name, too."""
_FILES: Final = (
    *("sendfile", "copy_file_range", "syncfs", "fadvise64"),
    *("open", "openat", "openat2", "statfs", "getdents64"),
    *("access", "faccessat", "faccessat2", "readlink", "readlinkat", "fchdir", "umask"),
    *("mkdirat", "symlinkat", "linkat", "unlinkat", "renameat", "renameat2"),
    *("fchmod", "fchmodat", "fchmodat2", "fchown", "fchownat", "utimensat"),
    *("setxattr", "lsetxattr", "fsetxattr", "getxattr", "lgetxattr", "fgetxattr"),
    *("listxattr", "llistxattr", "flistxattr", "removexattr", "lremovexattr", "fremovexattr"),
)
"""All of them are bounded by the root directory, Landlock and the capabilities."""
_HEAP: Final = ("brk", "munmap", "mremap", "madvise")
_MEMORY: Final = ("memfd_create", "membarrier")
_THREADS: Final = (
    *("futex", "set_robust_list", "rseq", "gettid", "getpid", "sched_yield", "sched_getaffinity", "getcpu"),
    *("rt_sigaction", "rt_sigprocmask", "rt_sigreturn", "sigaltstack", "restart_syscall"),
    *("exit", "exit_group"),
)
_ASKS: Final = (
    *("getuid", "geteuid", "getgid", "getegid", "getgroups", "getresuid", "getresgid"),
    *("getrusage", "uname", "sysinfo", "getrandom"),
)
"""Who this is, on what machine; and random bytes."""
_ACTS: Final = ("setresuid", "setresgid", "setgroups", "capget", "capset")
"""A thread acts for users of the guest; to whom, the capabilities and the user namespace say."""
_WAITING: Final = (
    *("clock_gettime", "clock_getres", "clock_nanosleep", "nanosleep", "gettimeofday", "time"),
    *("poll", "ppoll", "select", "pselect6", "epoll_create1", "epoll_ctl", "epoll_wait", "epoll_pwait", "epoll_pwait2"),
)
_SOCKETS: Final = (
    *("accept", "accept4", "sendmsg", "sendmmsg", "recvmsg", "recvfrom", "shutdown"),
    *("getsockopt", "getsockname", "getpeername"),
)
"""Those that are there: none is made, nor connected."""
_HANDLES: Final = ("name_to_handle_at", "open_by_handle_at")
_REMOVES: Final = ("unlink", "unlinkat")
"""The socket's name, in the end. Landlock says in which directory."""
_DEVICE: Final = frozenset({*_BYTES, *_LOOKS, *_HEAP, *_MEMORY, *_THREADS, *_ASKS, *_WAITING, *_SOCKETS})
_SHARE: Final = _DEVICE | {*_FILES, *_ACTS}
_KEEPER: Final = frozenset({"write", "close", "wait4", "waitid", *_LOOKS, *_REMOVES, *_HEAP, *_THREADS, *_ASKS, *_WAITING})
"""It waits for one process, says how that ended, and takes names away. What it logs in syslog goes by `sendto`."""

_CLONE_FS, _CLONE_THREAD = 0x200, 0x1_0000
_NAMESPACES: Final = 0x7E02_0000
"""CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID and NEWNET."""
_FIONREAD, _FIONBIO, _FIONCLEX, _FIOCLEX = 0x541B, 0x5421, 0x5450, 0x5451
_TCGETS, _TCGETS2 = 0x5401, 0x802C_542A
_TCSETS: Final = (0x5402, 0x5403, 0x5404, 0x402C_542B, 0x402C_542C, 0x402C_542D)
"""TCSETS, TCSETSW and TCSETSF, and what newer C libraries take for them: a terminal gets its settings back."""
_PR_SET_NAME, _PR_GET_NAME, _PR_SET_VMA = 15, 16, 0x53564D41
_MADE: Final = (0, stat.S_IFREG, stat.S_IFIFO, stat.S_IFSOCK)
_FILE_COMMANDS: Final = (
    *(fcntl.F_DUPFD, fcntl.F_DUPFD_CLOEXEC, fcntl.F_GETFD, fcntl.F_SETFD, fcntl.F_GETFL, fcntl.F_SETFL),
    *(fcntl.F_GETLK, fcntl.F_SETLK, fcntl.F_SETLKW, fcntl.F_OFD_GETLK, fcntl.F_OFD_SETLK, fcntl.F_OFD_SETLKW),
    *(fcntl.F_ADD_SEALS, fcntl.F_GET_SEALS),
)
"""None that names a process: who owns a file may have the kernel send a signal of any kind to anybody."""
_SO_RCVTIMEO_NEW, _SO_SNDTIMEO_NEW = 66, 67
_WAITS: Final = (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO, _SO_RCVTIMEO_NEW, _SO_SNDTIMEO_NEW)
"""How long a socket waits, and not what program filters it."""
_NO_CODE: Final = Given(argument=2, mask=mmap.PROT_EXEC, values=(0,))

_NO_ADDRESS: Final = Given(argument=5, values=(0,))
"""A length of 0: to whom the socket is connected."""
_IOCTLS: Final = (_TCGETS, _TCGETS2, _FIONREAD, _FIONBIO, _FIONCLEX, _FIOCLEX)

_OF_ALL: Final = {"mmap": _NO_CODE, "mprotect": _NO_CODE, "sendto": _NO_ADDRESS}
_OF_DEVICES: Final = _OF_ALL | {
    "clone": Given(argument=0, mask=_CLONE_THREAD | _NAMESPACES, values=(_CLONE_THREAD,)),
    "fcntl": Given(argument=1, values=_FILE_COMMANDS, otherwise=errno.EINVAL),
    "setsockopt": Given(argument=2, values=_WAITS, otherwise=errno.ENOPROTOOPT),
    "ioctl": Given(argument=1, values=_IOCTLS, otherwise=errno.ENOTTY),
    "prctl": Given(argument=0, values=(_PR_SET_NAME, _PR_GET_NAME, _PR_SET_VMA), otherwise=errno.EINVAL),
}
"""Threads, but no processes; no code; no terminal is typed into."""
_OF_TERMINALS: Final = {"ioctl": Given(argument=1, values=(*_IOCTLS, *_TCSETS), otherwise=errno.ENOTTY)}
_OF_SHARES: Final = _OF_DEVICES | {
    "unshare": Given(argument=0, values=(_CLONE_FS,)),
    "mknodat": Given(argument=2, mask=0o170000, values=_MADE),
}
"""An umask of a thread's own; no devices."""
_OURSELVES: Final = ("tgkill", "process_vm_readv", "process_vm_writev", "prlimit64")
"""Calls that name a process first: this one. A limit is read of 0, which is this one, too."""
_ALWAYS_REFUSED: Final = {"clone3": errno.ENOSYS}
_NO_NAMES: Final = {"open": errno.EACCES, "openat": errno.EACCES}
"""An errno and not the end: a C library may look for a translation, or how many processors there are, and does without."""
_PINNED: Final = ("sendmsg", "sendmmsg", "dup", "dup2", "dup3", "fcntl")
"""What would take a socket by another number, or send to somebody else than it is connected to."""


def for_files(pid: int, *, handles: bool, syslog: int | None) -> Policy:
    """What process `pid`, as it calls itself, may call; `handles` if it opens files by these; `syslog` is where it logs.

    That socket is of a kind that sends to any address (`sendmsg`), which a filter can't see: so it does not send that way,
    and its fd, which has to stay open, is the only one.
    """
    return Policy(
        allowed=_SHARE | frozenset(_HANDLES if handles else ()),
        given=_OF_SHARES | _ours(pid, *_OURSELVES),
        refused=_ALWAYS_REFUSED,
        barred=None if syslog is None else Barred(fd=syslog, calls=_PINNED),
    )


def for_device(pid: int, *, removes: bool, terminal: bool) -> Policy:
    """What process `pid` may call that has open all it serves; `removes` if it takes a name away in the end.

    `terminal` if it gives a terminal back as it was.
    """
    return Policy(
        allowed=_DEVICE | frozenset(_REMOVES if removes else ()),
        given=_OF_DEVICES | (_OF_TERMINALS if terminal else {}) | _ours(pid, *_OURSELVES),
        refused=_ALWAYS_REFUSED | _NO_NAMES,
    )


def for_keeper(pid: int, child: int) -> Policy:
    """What process `pid` may call that waits outside of a sandbox for `child`, to which it sends signals."""
    given = _OF_ALL | _ours(pid, "tgkill") | {"kill": Given(argument=0, values=(child,))}
    return Policy(allowed=_KEEPER, given=given, refused=_ALWAYS_REFUSED | _NO_NAMES)


def _ours(pid: int, *names: str) -> dict[str, Given]:
    return {name: Given(argument=0, values=(0, pid)) for name in names}
