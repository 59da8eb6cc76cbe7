"""What another process of this machine holds and does, as far as one may look."""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

_CREDENTIALS: Final = struct.Struct("=iII")
_TICKS: Final = os.sysconf("SC_CLK_TCK")
SETTLES: Final = 0.3
"""Seconds that a process may take to let go of a connection that is over."""
_STEP: Final = 0.02


@dataclass(frozen=True, slots=True)
class Held:
    """Of process `pid`: open fds, and mappings."""

    pid: int
    fds: int
    mappings: int

    def more_than(self, before: Held, most: int) -> str:
        """What it holds more than `before`, in words, where that is more than `most`; empty if nothing is."""
        grown = {"fds": self.fds - before.fds, "mappings": self.mappings - before.mappings}
        return ", ".join(f"{count} more {what}" for what, count in grown.items() if count > most)


def listener_of(sock: socket.socket) -> int:
    """The process that listened where `sock` is connected to; 0 if it is none of this machine's, or hidden."""
    try:
        pid, _, _ = _CREDENTIALS.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    except OSError:
        return 0
    return max(0, int(pid))


def held(pid: int) -> Held | None:
    """What a process holds; None if nobody may look."""
    try:
        with open(f"/proc/{pid}/maps", "rb") as maps:
            return Held(pid, len(os.listdir(f"/proc/{pid}/fd")), sum(1 for _ in maps))
    except OSError:
        return None


def settled(look: Callable[[], Held | None], before: Held | None, most: int) -> Held | None:
    """What a process holds, once that is no more than before, or it had time to let go."""
    end = time.monotonic() + SETTLES
    while (now := look()) and before and now.more_than(before, most) and time.monotonic() < end:
        time.sleep(_STEP)
    return now


def seconds_of_cpu(pid: int) -> float:
    """The time that a process has computed; 0 if nobody may look."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as stat:
            fields = stat.read().rpartition(b")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS
    except (OSError, IndexError, ValueError):
        return 0.0
