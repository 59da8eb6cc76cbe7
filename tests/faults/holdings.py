"""What this process holds, exactly: each open file, each shared mapping, each reservation of address space, each thread."""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Final

from vhostuser import SharedRegion
from vhostuser.memory import mapping
from vhostuser.testing import region_permissions

SETTLE: Final = 3.0
"""Seconds for what ends by itself, such as a thread."""
_reserved: set[int] = set()
_reserve, _release = mapping.reserve, mapping.release


def count_reservations() -> None:
    """Note every reservation from now on: nothing in /proc tells them from others."""

    def reserve(len: int) -> int:
        address = _reserve(len)
        _reserved.add(address)
        return address

    def release(address: int, len: int) -> None:
        _release(address, len)
        _reserved.discard(address)

    mapping.reserve, mapping.release = reserve, release


def held() -> Counter[str]:
    """All of it, by name."""
    found = Counter(f"thread {thread.name}" for thread in threading.enumerate())
    for name in os.listdir("/proc/self/fd"):
        try:
            found["fd " + os.readlink(f"/proc/self/fd/{name}")] += 1
        except FileNotFoundError:  # the listing's own
            continue
    with open("/proc/self/maps") as maps:
        for line in maps:
            limits, permissions, offset, *_, inode_and_path = line.split(maxsplit=4)
            if permissions[3] == "s":
                start, end = (int(part, 16) for part in limits.split("-"))
                found[f"mapping of {end - start:#x} bytes {permissions} at {offset} of {inode_and_path.strip()}"] += 1
    found["reservation"] = len(_reserved)
    return +found


def differences(before: Counter[str], now: Callable[[], Counter[str]] = held) -> list[str]:
    """What is more or less than before, once it had some time to settle."""
    end = time.monotonic() + SETTLE
    while (after := now()) != before and time.monotonic() < end:
        time.sleep(0.002)
    more, less = after - before, before - after
    return [f"left behind: {name}" for name in more] + [f"lost: {name}" for name in less]


def window_problems(region: SharedRegion) -> list[str]:
    """Where a window's pages are not what its table says, or a hole."""
    wanted = {(each.shm_offset, each.len, "rw-s" if each.writable else "r--s") for each in region.mappings}
    pages = region_permissions(region.address, region.size)
    there = {row for row in pages if row[2][3] == "s"}
    holes = region.size - sum(row[1] for row in pages)
    said = [] if there == wanted else [f"the window has {sorted(there)}, its table {sorted(wanted)}"]
    return said + ([f"the window has a hole of {holes:#x} bytes"] if holes else [])
