"""What a process that serves files for a guest may call.

Measured, with `vhu-fs` under all of its tests, and then reasoned: what does the same as a call that is there, by another
name, is there, too, since another C library, or another Python, takes that. What is not there makes processes, changes
namespaces and mounts, looks into other processes, runs programs or new code, connects to anybody new, or is the kernel's own
business.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import socket
import stat
from typing import Final

from .seccomp import Given, Policy

_BYTES: Final = (
    *("read", "write", "readv", "writev", "pread64", "pwrite64", "preadv", "pwritev", "preadv2", "pwritev2", "lseek"),
    *("sendfile", "copy_file_range", "fallocate", "ftruncate", "fsync", "fdatasync", "syncfs", "fadvise64"),
    *("close", "dup", "dup2", "dup3", "eventfd2"),
)
_FILES: Final = (
    *("open", "openat", "openat2", "stat", "fstat", "lstat", "newfstatat", "statx", "statfs", "fstatfs", "getdents64"),
    *("access", "faccessat", "faccessat2", "readlink", "readlinkat", "fchdir", "umask"),
    *("mkdirat", "symlinkat", "linkat", "unlinkat", "renameat", "renameat2"),
    *("fchmod", "fchmodat", "fchmodat2", "fchown", "fchownat", "utimensat"),
    *("setxattr", "lsetxattr", "fsetxattr", "getxattr", "lgetxattr", "fgetxattr"),
    *("listxattr", "llistxattr", "flistxattr", "removexattr", "lremovexattr", "fremovexattr"),
)
"""All of them are bounded by the root directory, Landlock and the capabilities."""
_MEMORY: Final = ("brk", "munmap", "mremap", "madvise", "memfd_create", "membarrier")
_THREADS: Final = (
    *("futex", "set_robust_list", "rseq", "gettid", "getpid", "sched_yield", "sched_getaffinity", "getcpu"),
    *("rt_sigaction", "rt_sigprocmask", "rt_sigreturn", "sigaltstack", "restart_syscall"),
    *("exit", "exit_group"),
)
_IDS: Final = (
    *("getuid", "geteuid", "getgid", "getegid", "getgroups", "getresuid", "getresgid"),
    *("setresuid", "setresgid", "setgroups", "capget", "capset"),
    *("getrusage", "uname", "sysinfo", "getrandom"),
)
"""A thread acts for users of the guest; to whom, the capabilities and the user namespace say."""
_WAITING: Final = (
    *("clock_gettime", "clock_getres", "clock_nanosleep", "nanosleep", "gettimeofday", "time"),
    *("poll", "ppoll", "select", "pselect6", "epoll_create1", "epoll_ctl", "epoll_wait", "epoll_pwait", "epoll_pwait2"),
)
_SOCKETS: Final = (
    *("accept", "accept4", "sendmsg", "sendmmsg", "recvmsg", "sendto", "recvfrom", "shutdown"),
    *("getsockopt", "getsockname", "getpeername"),
)
"""Those that are there: none is made, nor connected."""
_HANDLES: Final = ("name_to_handle_at", "open_by_handle_at")
_PLAIN: Final = frozenset({*_BYTES, *_FILES, *_MEMORY, *_THREADS, *_IDS, *_WAITING, *_SOCKETS})

_CLONE_FS, _CLONE_THREAD = 0x200, 0x1_0000
_NAMESPACES: Final = 0x7E02_0000
"""CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID and NEWNET."""
_TCGETS, _FIONREAD, _FIONBIO, _FIONCLEX, _FIOCLEX = 0x5401, 0x541B, 0x5421, 0x5450, 0x5451
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

_GIVEN: Final = {
    "clone": Given(argument=0, mask=_CLONE_THREAD | _NAMESPACES, values=(_CLONE_THREAD,)),
    "unshare": Given(argument=0, values=(_CLONE_FS,)),
    "mmap": _NO_CODE,
    "mprotect": _NO_CODE,
    "fcntl": Given(argument=1, values=_FILE_COMMANDS, otherwise=errno.EINVAL),
    "setsockopt": Given(argument=2, values=_WAITS, otherwise=errno.ENOPROTOOPT),
    "mknodat": Given(argument=2, mask=0o170000, values=_MADE),
    "ioctl": Given(argument=1, values=(_TCGETS, _FIONREAD, _FIONBIO, _FIONCLEX, _FIOCLEX), otherwise=errno.ENOTTY),
    "prctl": Given(argument=0, values=(_PR_SET_NAME, _PR_GET_NAME, _PR_SET_VMA), otherwise=errno.EINVAL),
}
"""Threads, but no processes; an umask of a thread's own; no code; no devices; no terminal is typed into."""
_OURSELVES: Final = ("tgkill", "process_vm_readv", "process_vm_writev", "prlimit64")
"""Calls that name a process first: this one. A limit is read of 0, which is this one, too."""


def for_files(pid: int, *, handles: bool, syslog: bool) -> Policy:
    """What process `pid`, as it calls itself, may call; `handles` if it opens files by these, `syslog` if it logs there."""
    ours = {name: Given(argument=0, values=(0, pid)) for name in _OURSELVES}
    refused = {"clone3": errno.ENOSYS} | ({"socket": errno.EACCES} if syslog else {})
    return Policy(allowed=_PLAIN | frozenset(_HANDLES if handles else ()), given=_GIVEN | ours, refused=refused)
