"""What a process holds: fds, shared mappings, threads; and a check that nothing is left behind."""

from __future__ import annotations

import contextlib
import gc
import os
import time
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from .wire import DEADLINE

_STEP: Final = 0.005
_LISTENING: Final = "00010000"


class Usage(NamedTuple):
    """How much a process holds."""

    fds: int
    mappings: int
    """Shared mappings: files and memfds. What the allocator maps for itself is not counted."""
    threads: int


def usage(pid: int | str = "self") -> Usage:
    """What process `pid` holds now."""
    with open(f"/proc/{pid}/maps") as maps:
        shared = sum(line.split(maxsplit=2)[1][3] == "s" for line in maps)
    return Usage(len(os.listdir(f"/proc/{pid}/fd")), shared, len(os.listdir(f"/proc/{pid}/task")))


def wait_until(holds: Callable[[], bool], what: str, *, within: float = DEADLINE) -> None:
    """Wait until `holds()`; AssertionError with `what` if it does not within that many seconds.

    For what gives no sign when it happens: looks every few milliseconds.
    """
    end = time.monotonic() + within
    while not holds():
        if time.monotonic() >= end:
            raise AssertionError(f"not within {within:g} s: {what}")
        time.sleep(_STEP)


def is_listened_on(path: str | os.PathLike[str]) -> bool:
    """Somebody listens on the socket at `path`: a connection to it works. (It exists a moment before that.)"""
    with open("/proc/net/unix", errors="surrogateescape") as table:
        rows = [line.split() for line in table]
    return any(row[-1] == os.fspath(path) and row[3] == _LISTENING for row in rows)


@contextlib.contextmanager
def leaving_nothing(pid: int | str = "self", *, within: float = DEADLINE) -> Iterator[Usage]:
    """Check that at the end a process holds no more than at the start, once it had `within` seconds; yields the start.

    Nothing is collected in between: what only the garbage collector would close counts as left behind.
    """
    gc.collect()
    before = usage(pid)
    gc.disable()
    try:
        yield before
        after = before

        def clean() -> bool:
            nonlocal after
            after = usage(pid)
            return all(now <= then for now, then in zip(after, before, strict=True))

        with contextlib.suppress(AssertionError):
            wait_until(clean, "", within=within)
        if not clean():
            raise AssertionError(f"left behind: {before} became {after}")
    finally:
        gc.enable()


def region_permissions(address: int, len: int, pid: int | str = "self") -> list[tuple[int, int, str]]:
    """What lies in a range of address space: (offset in it, bytes, permissions as in /proc/pid/maps), in order."""
    found = []
    with open(f"/proc/{pid}/maps") as maps:
        for line in maps:
            limits, permissions, _ = line.split(maxsplit=2)
            start, end = (int(part, 16) for part in limits.split("-"))
            low, high = max(start, address), min(end, address + len)
            if low < high:
                found.append((low - address, high - low, permissions))
    return found
