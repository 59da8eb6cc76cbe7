"""`vhu drive shm`: let `vhu-shm` map parts of its files, without a VM."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

from ..drivers.shm import ShmDriver
from ..frontend import Frontend
from .arguments import number, size
from .outcome import put


class Part(NamedTuple):
    """A range of a region; and for a mapping, of which file."""

    shmid: int
    shm_offset: int
    len: int
    file: int = 0
    fd_offset: int = 0
    writable: bool = False


def place(text: str) -> Part:
    """SHMID:OFFSET:LEN; ValueError if it is none."""
    parts = text.split(":")
    if len(parts) != 3:
        raise ValueError(f"{text[:80]!a} is not SHMID:OFFSET:LEN")
    return Part(number(parts[0]), size(parts[1]), size(parts[2]))


def part(text: str) -> Part:
    """SHMID:OFFSET:LEN:FILE[:FD_OFFSET][:rw]; ValueError if it is none."""
    rest = text.removesuffix(":rw")
    parts = rest.split(":")
    if len(parts) not in (4, 5):
        raise ValueError(f"{text[:80]!a} is not SHMID:OFFSET:LEN:FILE[:FD_OFFSET][:rw]")
    fd_offset = size(parts[4]) if len(parts) == 5 else 0
    return Part(number(parts[0]), size(parts[1]), size(parts[2]), number(parts[3]), fd_offset, rest != text)


def _map(frontend: Frontend, options: argparse.Namespace) -> None:
    driver, wanted = ShmDriver(frontend, timeout=options.timeout), options.part
    shmid, shm_offset, length, file, fd_offset, writable = wanted
    driver.map(file, shm_offset=shm_offset, len=length, fd_offset=fd_offset, shmid=shmid, writable=writable)
    _show(driver, shmid, options)


def _unmap(frontend: Frontend, options: argparse.Namespace) -> None:
    driver, wanted = ShmDriver(frontend, timeout=options.timeout), options.place
    driver.unmap(shm_offset=wanted.shm_offset, len=wanted.len, shmid=wanted.shmid)
    _show(driver, wanted.shmid, options)


def _maps(frontend: Frontend, options: argparse.Namespace) -> None:
    _show(ShmDriver(frontend, timeout=options.timeout), options.shmid, options)


def _show(driver: ShmDriver, shmid: int, options: argparse.Namespace) -> None:
    """What is mapped now, one line each."""
    rows = driver.mappings(shmid)
    if options.json:
        put(json.dumps({"shmid": shmid, "mappings": [row._asdict() for row in rows]}))
        return
    for row in rows:
        access = "read-write" if row.writable else "read-only"
        put(f"region {shmid} {row.shm_offset:#x}-{row.end:#x}: the file from {row.fd_offset:#x} on, {access}")
    if not rows:
        put(f"region {shmid}: nothing is mapped")


Row = tuple[Mapping[str, Callable[[str], object]], str, Callable[[Frontend, argparse.Namespace], None]]
ACTIONS: Final[Mapping[str, Row]] = {
    "map": ({"PART": part}, "map SHMID:OFFSET:LEN:FILE[:FD_OFFSET][:rw], and say what is mapped then", _map),
    "unmap": ({"PLACE": place}, "unmap SHMID:OFFSET:LEN, and say what is mapped then", _unmap),
    "maps": ({"SHMID": number}, "what is mapped in that region", _maps),
}
