"""A filter of system calls: the program that the kernel runs before each ("seccomp(2)", classic BPF). Pure: it makes bytes.

What a policy does not speak of is forbidden, and what becomes of that the Action says. Two things are the same for all
actions: a call that the policy refuses fails with its errno, since the C library and Python do without then; and so does one
that is newer than our list (ENOSYS). A call of another machine's, or of x32, is forbidden, whatever its number is.

All instructions but those about arguments are such that the kernel (Linux 5.11) finds out once, for each number, that it is
always allowed, and runs nothing any more.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from struct import Struct
from typing import Final

from .syscalls import LAST, MACHINES, number_of


class Action(Enum):
    """What a forbidden call is, by virtiofsd's names: the end, or just a line in the kernel's log, or a SIGSYS."""

    NONE = "none"
    KILL = "kill"
    LOG = "log"
    TRAP = "trap"


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """That the bits `mask` of an argument are one of these values. Its upper 32 bits don't matter to any of these calls."""

    argument: int
    values: tuple[int, ...]
    mask: int = 0xFFFF_FFFF
    otherwise: int | None = None
    """The errno of a call with other values; None if it is forbidden."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Barred:
    """That these calls fail (EPERM) if their first argument is this fd; with others they are as they would be."""

    fd: int
    calls: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """What a process may call, by name: always, or given its arguments; and what fails with an errno."""

    allowed: frozenset[str]
    given: Mapping[str, Given]
    refused: Mapping[str, int]
    barred: Barred | None = None


Instruction = tuple[int, int, int, int]
"""Code, how many are skipped if it is true and if not, and a number."""
INSTRUCTION: Final = Struct("=HBBI")
LOAD, AND, JUMP_EQUAL, JUMP_GREATER, JUMP_GREATER_EQUAL, RETURN = 0x20, 0x54, 0x15, 0x25, 0x35, 0x06
NUMBER, ARCHITECTURE, ARGUMENTS = 0, 4, 16
"""Where in `struct seccomp_data` what is loaded lies; of an argument, 64 bits, the lower half is the first one."""
ARCHITECTURES: Final = {"x86_64": 0xC000_003E, "aarch64": 0xC000_00B7}
"""What the kernel calls the machines (AUDIT_ARCH)."""
X32: Final = 0x4000_0000
"""Numbers from here on are those of x32, a second set of the same calls on x86_64."""
ALLOW, ERRNO = 0x7FFF_0000, 0x0005_0000
RETURNED: Final = {Action.KILL: 0x8000_0000, Action.LOG: 0x7FFC_0000, Action.TRAP: 0x0003_0000}


def program(policy: Policy, action: Action, machine: str) -> bytes | None:
    """The filter, one `struct sock_filter` after another; None if there is to be none, or this machine is not known."""
    if action is Action.NONE or machine not in MACHINES:
        return None
    return b"".join(INSTRUCTION.pack(*each) for each in _instructions(policy, RETURNED[action], machine))


def _instructions(policy: Policy, forbidden: int, machine: str) -> Iterator[Instruction]:
    yield _load(ARCHITECTURE)
    yield JUMP_EQUAL, 1, 0, ARCHITECTURES[machine]
    yield _return(forbidden)
    yield _load(NUMBER)
    if machine == "x86_64":
        yield from _if(JUMP_GREATER_EQUAL, X32, _return(forbidden))
    yield from _if(JUMP_GREATER, LAST, _return(ERRNO | errno.ENOSYS))
    if policy.barred:
        yield from _barred(policy.barred, machine)
    for number in _numbers(policy.allowed, machine):
        yield from _if(JUMP_EQUAL, number, _return(ALLOW))
    for name, number in policy.refused.items():
        for each in _numbers([name], machine):
            yield from _if(JUMP_EQUAL, each, _return(ERRNO | number))
    for name, given in policy.given.items():
        for each in _numbers([name], machine):
            yield from _if(JUMP_EQUAL, each, *_checked(given, forbidden))
    yield _return(forbidden)


def _barred(barred: Barred, machine: str) -> Iterator[Instruction]:
    """Look at the fd of some calls; go on, with the number of the call as before, where it is another one."""
    for number in _numbers(barred.calls, machine):
        is_ours = _if(JUMP_EQUAL, barred.fd, _return(ERRNO | errno.EPERM))
        yield from _if(JUMP_EQUAL, number, _load(ARGUMENTS), *is_ours, _load(NUMBER))


def _numbers(names: Iterable[str], machine: str) -> list[int]:
    """The numbers of those of these calls that the machine has."""
    return sorted(found for name in names if (found := number_of(name, machine)) is not None)


def _load(offset: int) -> Instruction:
    return LOAD, 0, 0, offset


def _return(value: int) -> Instruction:
    return RETURN, 0, 0, value


def _if(jump: int, number: int, *then: Instruction) -> Iterator[Instruction]:
    """Do `then` if the comparison holds."""
    yield jump, 0, len(then), number
    yield from then


def _checked(given: Given, forbidden: int) -> Iterator[Instruction]:
    """Look at an argument, and return."""
    yield _load(ARGUMENTS + 8 * given.argument)
    yield AND, 0, 0, given.mask
    for value in given.values:
        yield from _if(JUMP_EQUAL, value, _return(ALLOW))
    yield _return(forbidden if given.otherwise is None else ERRNO | given.otherwise)
