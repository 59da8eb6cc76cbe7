"""Ids of a user namespace: which of them are which outside ("user_namespaces(7)")."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from .system import NEW_USERS, SandboxError, unshare

IDS: Final = 1 << 32
ADVICE: Final = "try: --sandbox chroot as root, or --sandbox none"
_NO_SUBIDS: Final = "try: give this user a range in /etc/subuid and /etc/subgid, and install newuidmap and newgidmap"


class IdRange(NamedTuple):
    """`size` ids from `inside` on in the namespace are those from `outside` on."""

    inside: int
    outside: int
    size: int

    def __str__(self) -> str:
        return f"{self.inside} {self.outside} {self.size}"


def parse_id_range(text: str) -> IdRange:
    """The range of `:INSIDE:OUTSIDE:COUNT:`, with any separator; ValueError if it is none."""
    fields = text[1:-1].split(text[0]) if len(text) > 2 and text[0] == text[-1] and not text[0].isalnum() else []
    if len(fields) != 3 or not all(each.isascii() and each.isdigit() and len(each) <= 10 for each in fields):
        raise ValueError(f"{text[:80]!a} is not :NAMESPACE_ID:HOST_ID:COUNT:")
    found = IdRange(*map(int, fields))
    if not found.size or max(found.inside, found.outside) + found.size >= IDS:
        raise ValueError(f"{text[:80]!a}: count must be above 0, and no id may pass {IDS - 2}")
    return found


class Maps(NamedTuple):
    """The ids of users and those of groups."""

    uids: tuple[IdRange, ...] = ()
    gids: tuple[IdRange, ...] = ()


OWN: Final = Maps()
"""Those of this process alone."""


def enter_user_namespace(maps: Maps) -> bool:
    """Make a user namespace and be in it, with these ids; where none are given with this process's own alone.

    Returns whether a process in it may change its groups: not if its maps were made without privileges.
    """
    own = Maps(
        maps.uids or (IdRange(os.geteuid(), os.geteuid(), 1),), maps.gids or (IdRange(os.getegid(), os.getegid(), 1),)
    )
    alone = _is_own(own.uids, os.geteuid()) and _is_own(own.gids, os.getegid())
    if alone:
        if maps.gids and not os.geteuid():
            _change("leave the groups of the host", lambda: os.setgroups([]))  # nobody can afterwards
        unshare(NEW_USERS, "a user namespace", ADVICE)
        _write("setgroups", "deny")
        _write("uid_map", str(own.uids[0]))
        _write("gid_map", str(own.gids[0]))
    else:
        _enter_with_help(own)
    return not _groups_are_denied()


def _groups_are_denied() -> bool:
    """By us, or by newgidmap."""
    try:
        with open("/proc/self/setgroups", encoding="ascii") as file:
            return file.read().strip() == "deny"
    except OSError:
        return False


def become_inner(maps: Maps, *, groups: bool) -> None:
    """Be user and group 0 of the namespace, or the first ones that it has, if it was given some; in no other groups, if
    `groups` can be changed.
    """
    if maps.gids:
        if groups:
            _change("leave the groups of the host", lambda: os.setgroups([]))
        gid = _first(maps.gids)
        _change(f"be group {gid} of the user namespace", lambda: os.setresgid(gid, gid, gid))
    if maps.uids:
        uid = _first(maps.uids)
        _change(f"be user {uid} of the user namespace", lambda: os.setresuid(uid, uid, uid))


def _change(what: str, call: Callable[[], None]) -> None:
    try:
        call()
    except OSError as error:
        raise SandboxError(what, error.errno or 0, ADVICE) from None


def _first(ranges: Sequence[IdRange]) -> int:
    return 0 if any(not each.inside for each in ranges) else ranges[0].inside


def _is_own(ranges: Sequence[IdRange], id: int) -> bool:
    """It is what a process may map without privileges."""
    return len(ranges) == 1 and ranges[0].outside == id and ranges[0].size == 1


def _write(name: str, text: str, process: int | str = "self") -> None:
    try:
        with open(f"/proc/{process}/{name}", "w", encoding="ascii") as file:
            file.write(text)
    except OSError as error:
        raise SandboxError(f"write {text!r} to {name} of the user namespace", error.errno or 0, ADVICE) from None


def _enter_with_help(maps: Maps) -> None:
    """Only a process outside may write such maps: one that is forked before."""
    go_read, go_write = os.pipe2(os.O_CLOEXEC)
    pid = os.getpid()
    helper = os.fork()
    if not helper:
        os.close(go_write)
        _help(go_read, pid, maps)
    os.close(go_read)
    try:
        unshare(NEW_USERS, "a user namespace", ADVICE)
        os.write(go_write, b"!")
    finally:
        os.close(go_write)
        status = os.waitstatus_to_exitcode(os.waitpid(helper, 0)[1])
    if status:
        raise SandboxError(f"map ids into the user namespace ({_words(maps)})", status, _NO_SUBIDS)


def _words(maps: Maps) -> str:
    return "; ".join(f"{name} {', '.join(map(str, each))}" for name, each in zip(("uids", "gids"), maps, strict=True))


def _help(go: int, pid: int, maps: Maps) -> None:
    """Be the helper: map once there is a namespace. Never returns; the exit code is an errno."""
    code = errno.EPERM
    try:
        if os.read(go, 1) and all(_map(pid, *each) for each in (("newuidmap", maps.uids), ("newgidmap", maps.gids))):
            code = 0
    except SandboxError as error:
        code = error.errno
    finally:
        os._exit(code)


def _map(pid: int, tool: str, ranges: Sequence[IdRange]) -> bool:
    """Write one map: as root oneself, else by the program for that."""
    if not os.geteuid():
        _write("uid_map" if tool == "newuidmap" else "gid_map", "\n".join(map(str, ranges)), pid)
        return True
    words = [word for each in ranges for word in str(each).split()]
    return os.spawnvp(os.P_WAIT, tool, [tool, str(pid), *words]) == 0
