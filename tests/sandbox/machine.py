"""The kernel's side of a filter: what it returns for a system call, and the numbers that its headers give."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from struct import Struct

from tests.fuse.kernel_header import fetched
from vhostuser.sandbox.seccomp import (
    AND,
    INSTRUCTION,
    JUMP_EQUAL,
    JUMP_GREATER,
    JUMP_GREATER_EQUAL,
    LOAD,
    RETURN,
)

_DATA = Struct("=iIQ6Q")
"""struct seccomp_data"""
_NUMBER = re.compile(r"^#define __NR(?:3264)?_(\w+)\s+(\d+)$", re.MULTILINE)
_HEADERS = {
    "x86_64": ("usr/lib/linux/uapi/x86/asm/unistd_64.h", "usr/include/x86_64-linux-gnu/asm/unistd_64.h"),
    "aarch64": ("usr/lib/linux/uapi/arm64/asm/unistd_64.h", "usr/include/asm-generic/unistd.h"),
}


def verdict(program: bytes, architecture: int, number: int, arguments: Sequence[int] = ()) -> int:
    """What the filter returns."""
    low = number - (1 << 32) if number >> 31 else number
    data = _DATA.pack(low, architecture, 0, *arguments, *[0] * (6 - len(arguments)))
    code = list(INSTRUCTION.iter_unpack(program))
    at = accumulator = 0
    while True:
        operation, true, false, value = map(int, code[at])
        at += 1
        if operation == LOAD:
            accumulator = int.from_bytes(data[value : value + 4], "little")
        elif operation == AND:
            accumulator &= value
        elif operation == RETURN:
            return value
        else:
            holds = {
                JUMP_EQUAL: accumulator == value,
                JUMP_GREATER: accumulator > value,
                JUMP_GREATER_EQUAL: accumulator >= value,
            }[operation]
            at += true if holds else false


def numbers(machine: str) -> dict[str, int]:
    """All system calls of a machine, as the kernel's header has them: the fetched one, or else this system's."""
    new, old = _HEADERS[machine]
    found = [path for path in (fetched() / new, Path("/") / old) if path.exists()]
    if not found:
        raise FileNotFoundError(f"no {old}: run `make vm` again, or install linux-libc-dev")
    names = {name: int(number) for name, number in _NUMBER.findall(found[0].read_text())}
    return {"newfstatat": names.get("fstatat", -1)} | names
