"""Enter a sandbox: from then on the process has the shared directory, the files that are open, and a few capabilities.

`namespace` makes the directory the root of a mount namespace of its own, and has a pid, network and IPC namespace; `chroot`
only makes it the root; `none` leaves the root as it is. Landlock, the capabilities, no_new_privs and the filter of system
calls are the same for all.
"""

from __future__ import annotations

import os
import resource
import threading
from dataclasses import dataclass
from enum import Enum
from typing import Final, NamedTuple

from .allowed import for_files
from .capabilities import MINIMAL, drop_all_but, permitted
from .filtering import filter_process
from .idmaps import ADVICE, OWN, Maps, become_inner, enter_user_namespace
from .keeper import Outside, follow, split
from .landlock import restrict_to
from .preload import close_imports
from .seccomp import Action
from .system import (
    AT_FDCWD,
    NEW_IPC,
    NEW_MOUNTS,
    NEW_NET,
    NEW_PIDS,
    SandboxError,
    attach_tree,
    clone_tree,
    forbid_devices,
    make_mounts_private,
    pivot_root_here,
    unmount_here,
    unshare,
)

OPEN_FILES: Final = 1_000_000
_FDS: Final = "/proc/self/fd"
_FOLDER: Final = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC


class Mode(Enum):
    """What the root directory becomes."""

    NAMESPACE = "namespace"
    CHROOT = "chroot"
    NONE = "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is to be confined, and how much."""

    mode: Mode = Mode.NAMESPACE
    capabilities: int = MINIMAL
    maps: Maps = OWN
    open_files: int | None = None
    """The limit of open files: 0 leaves it, None is as many as make sense."""
    landlock: bool = True
    seccomp: Action = Action.KILL
    """What becomes of a system call that is not needed."""
    handles: bool = True
    """Whether files may be opened by their handles."""
    syslog: int | None = None
    """The socket of syslog's, if there is one: an fd that stays open."""


class Inside(NamedTuple):
    """What a process in a sandbox has: fds that are its own to close."""

    root: int
    """The shared directory (O_PATH)."""
    fds: int
    """The directory /proc/self/fd (O_PATH), by which an fd is opened again."""
    notes: tuple[str, ...]
    """What could not be done, for the log."""


def enter(root: int, plan: Plan, outside: Outside) -> Inside:
    """Enter a sandbox around the directory `root`, an fd that stays the caller's. Raises SandboxError.

    The process forks: the child returns, with signals blocked until `keeper.ready`, and the parent waits outside with what
    `outside` has. There must be no other thread.
    """
    if threading.active_count() > 1:
        raise RuntimeError("a sandbox is entered by one thread: others would stay outside")
    notes = _limit_files(plan.open_files)
    groups = _new_namespaces(plan)
    alive = split(outside, plan.seccomp, () if plan.syslog is None else (plan.syslog,))
    inside = _change_root(root, plan)
    become_inner(plan.maps, groups=groups)
    notes += _confine(inside[0], plan)
    follow(alive)
    os.umask(0)
    close_imports()
    notes += _filter(plan)
    return Inside(*inside, tuple(notes))


def _limit_files(wanted: int | None) -> list[str]:
    """Let so many files be open, or as many as may be."""
    if wanted == 0:
        return []
    count = wanted or min(OPEN_FILES, _nr_open())
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (count, count))
    except (OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        return [f"cannot set the limit of open files to {count}: the hard limit, {hard}, is used instead"]
    return []


def _nr_open() -> int:
    """The most open files that the kernel lets a process have."""
    try:
        with open("/proc/sys/fs/nr_open", encoding="ascii") as file:
            return int(file.read())
    except (OSError, ValueError):
        return OPEN_FILES


def _new_namespaces(plan: Plan) -> bool:
    """What must be made before the fork: those whose first process the child is to be. Whether it may change its groups."""
    if plan.mode is not Mode.NAMESPACE:
        return True
    groups = not (os.geteuid() or any(plan.maps)) or enter_user_namespace(plan.maps)
    unshare(NEW_PIDS, "a pid namespace", ADVICE)
    return groups


def _change_root(root: int, plan: Plan) -> tuple[int, int]:
    """Make the directory the root as the mode says: it, and /proc/self/fd, as they are from there."""
    if plan.mode is Mode.NAMESPACE:
        return _pivot(root)
    fds = _open_fds()
    if plan.mode is Mode.CHROOT:
        try:
            os.fchdir(root)
            os.chroot(".")
        except OSError as error:
            advice = "try: --sandbox namespace, or --sandbox none"
            raise SandboxError("chroot into the shared directory", error.errno or 0, advice) from None
    return os.open(f"/proc/self/fd/{root}", _FOLDER) if plan.mode is Mode.NONE else os.open("/", _FOLDER), fds


def _open_fds() -> int:
    try:
        return os.open(_FDS, _FOLDER)
    except OSError as error:
        raise SandboxError(f"open {_FDS}", error.errno or 0, "try: mount /proc") from None


def _pivot(root: int) -> tuple[int, int]:
    """A mount namespace whose root is the directory. Clones of mounts lead nowhere: `..` ends at their own root.

    Of all that is open only the working directory is found again in the new namespace.
    """
    os.fchdir(root)
    unshare(NEW_MOUNTS, "a mount namespace", ADVICE)
    unshare(NEW_NET | NEW_IPC, "a network and an IPC namespace", ADVICE)
    make_mounts_private()
    fds = clone_tree(AT_FDCWD, _FDS, _FDS)
    tree = clone_tree(AT_FDCWD, ".", "the shared directory")
    forbid_devices(tree)
    attach_tree(tree)
    os.fchdir(tree)
    pivot_root_here()
    unmount_here()
    os.chdir("/")
    return tree, fds


def _confine(root: int, plan: Plan) -> list[str]:
    """Take away all that serving does not need; what could not be."""
    notes: list[str] = []
    missing = plan.capabilities & ~MINIMAL & ~permitted()
    if missing:
        notes.append(f"capabilities {missing:#x} were asked for, but this process does not have them")
    drop_all_but(plan.capabilities)
    if plan.landlock and not restrict_to(root):
        notes.append("the kernel has no Landlock: only the root directory and the capabilities confine this process")
    return notes


def _filter(plan: Plan) -> list[str]:
    """Forbid system calls: what was set up before could not be set up any more. What is not as asked for."""
    return filter_process(for_files(os.getpid(), handles=plan.handles, syslog=plan.syslog), plan.seccomp)
