"""A sweep over the faults of one operation: every call that it makes fails in every way, the 1st, 2nd, n-th time.

Run as a process with the shim preloaded; says in JSON how many trials there were of each call, and what was wrong.
"""

from __future__ import annotations

import errno
import gc
import json
import logging
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator
from itertools import count
from typing import Final

from .device_operations import OPERATIONS
from .holdings import count_reservations, differences, held
from .operations import Operation
from .shim import SHORT, TRUNCATED, Fault, Shim
from .worlds import EXPECTED, TIMEOUT, World, record_servings

FOR_GOOD: Final = 1000
"""Times that a call fails that does not work any more."""
SLOW: Final = TIMEOUT + 2
"""Seconds that an act may take: what a peer waits for is tried until the deadline where memory is short."""
E = errno
PASSING: Final = frozenset({E.EINTR, E.EAGAIN, SHORT, TRUNCATED})
"""What no call does over and over."""
TRIED_TWICE: Final = frozenset({"mmap", "mremap", "fstat", "fstatfs", "fcntl", "open"})
"""Where the plain way leaves it to the long way what fails."""
FORGIVEN: Final = frozenset(
    (call, number) for call in ("sendmsg", "send", "sendmmsg") for number in (E.ENOMEM, E.ENOBUFS, E.ETOOMANYREFS)
)
"""What is tried again: nobody may see that it failed once."""
QUICK: Final[dict[str, tuple[int, ...]]] = {
    "socket": (E.EMFILE,),
    "socketpair": (E.EMFILE,),
    "accept": (E.EMFILE, E.EINTR),
    "connect": (E.EACCES,),
    "getsockname": (E.ENOBUFS,),
    "setsockopt": (E.ENOMEM,),
    "eventfd": (E.EMFILE,),
    "memfd_create": (E.ENFILE,),
    "ftruncate": (E.ENOSPC, E.EINTR),
    "mmap": (E.ENOMEM, E.EACCES),
    "mremap": (E.ENOMEM,),
    "fstat": (E.EIO,),
    "fstatfs": (E.EIO,),
    "fcntl": (E.ENOMEM,),
    "dup": (E.EMFILE,),
    "ioctl": (E.EBADF,),
    "open": (E.EMFILE, E.EACCES),
    "poll": (E.EINTR,),
    "close": (E.EIO,),
    "pthread_create": (E.EAGAIN,),
    "sendmsg": (E.ENOMEM, SHORT),
    "send": (E.EINTR, E.ENOMEM, SHORT),
    "sendmmsg": (E.ENOMEM, SHORT),
    "recvmsg": (E.ENOMEM, SHORT, TRUNCATED),
    "pread": (E.EIO, E.EINTR, SHORT),
    "pwrite": (E.ENOSPC, E.EIO, E.EINTR, SHORT),
    "fdatasync": (E.EIO, E.EINTR),
    "fallocate": (E.ENOSPC, E.EIO, E.EINTR),
    "copy": (E.ENOSPC, E.EIO),
}
MORE: Final[dict[str, tuple[int, ...]]] = {
    "socket": (E.ENFILE, E.ENOMEM, E.EACCES),
    "socketpair": (E.ENFILE, E.ENOMEM),
    "accept": (E.ENFILE, E.ENOMEM, E.EAGAIN, E.ECONNABORTED),
    "connect": (E.EAGAIN, E.EINTR, E.ENOMEM),
    "eventfd": (E.ENFILE, E.ENOMEM),
    "memfd_create": (E.EMFILE, E.ENOMEM),
    "ftruncate": (E.EIO, E.ENOMEM),
    "mmap": (E.EAGAIN, E.ENFILE),
    "mremap": (E.EAGAIN,),
    "fstat": (E.ENOMEM,),
    "fcntl": (E.EINVAL, E.EPERM),
    "dup": (E.ENFILE,),
    "open": (E.ENFILE, E.ENOMEM, E.EIO),
    "close": (E.EINTR, E.ENOSPC),
    "sendmsg": (E.EINTR, E.EAGAIN, E.ENOBUFS, E.ETOOMANYREFS, E.EPIPE),
    "send": (E.EAGAIN, E.ENOBUFS, E.EPIPE),
    "sendmmsg": (E.EAGAIN, E.EINTR, E.ETOOMANYREFS),
    "recvmsg": (E.EINTR, E.EAGAIN, E.ECONNRESET),
    "pwrite": (E.EDQUOT,),
    "fdatasync": (E.ENOSPC,),
    "copy": (E.EINTR,),
}


def _some() -> Iterator[int]:
    """The first ones, and from there on each seventh."""
    yield from range(1, 4)
    yield from count(4, 7)


def name_of(number: int) -> str:
    return {SHORT: "SHORT", TRUNCATED: "MSG_CTRUNC"}.get(number) or errno.errorcode[number]


class Sweep:
    """The trials of one operation, and what was wrong in them."""

    def __init__(self, name: str, *, thorough: bool) -> None:
        self._operation, self._thorough = OPERATIONS[name], thorough
        self._shim = Shim()
        self._trial(Fault("", 1))  # what is there after the first time is there for good
        self.trials: Counter[str] = Counter()
        self.problems: list[str] = []

    def run(self, only: tuple[str, ...] = ()) -> None:
        """All of them, or those of some calls."""
        for call in only or (() if self._thorough else self._operation.calls) or QUICK:
            for number in QUICK[call] + (MORE.get(call, ()) if self._thorough else ()):
                for times in (1, FOR_GOOD) if self._may_last(call, number) else (1,):
                    self._each(call, number, times)

    def _may_last(self, call: str, number: int) -> bool:
        """Whether it is worth while, and in the nature of it, that the call fails for good."""
        return number not in PASSING and call != "accept" and (self._thorough or call in TRIED_TWICE)

    def _each(self, call: str, number: int, times: int) -> None:
        for first in count(1) if self._thorough else _some():
            hits, found = self._trial(Fault(call, number, first, times))
            text = f"{call} {name_of(number)} at {first}{' and for good' if times > 1 else ''}"
            self.problems += [f"{text}: {problem}" for problem in found]
            if not hits:
                return
            self.trials[call] += 1
            if times > 1 and not self._thorough:
                return

    def _trial(self, fault: Fault) -> tuple[int, list[str]]:
        before = held()
        found: list[str] = []
        with self._operation.world() as world:
            hits = _meet(world, self._operation, self._shim, fault, found)
        return hits, found + differences(before)


def _meet(world: World, operation: Operation, shim: Shim, fault: Fault, found: list[str]) -> int:
    """Let the act of an operation meet a fault: how many calls it hit."""
    operation.prepare(world)
    tables, holdings, began = world.tables(), held(), time.monotonic()
    failure = ""
    with shim.failing(fault, world.whose) as hits:
        try:
            operation.act(world)
        except EXPECTED as error:
            failure = f"{type(error).__name__}: {error}"
        except BaseException as error:
            failure = f"{type(error).__name__}: {error}"
            found.append(f"fails with {failure}")
    if time.monotonic() - began > SLOW:
        found.append(f"takes {time.monotonic() - began:.1f} s")
    if failure and not hits[0]:
        found.append(f"fails without a fault: {failure}")
    if not failure and not operation.ends and not world_lives(world, operation):
        found.append("works, and the connection ends all the same")
    if failure and fault.times == 1 and (fault.call, fault.number) in FORGIVEN:
        found.append(f"fails though it would work at the second try: {failure}")
    if failure and operation.never_fails:
        found.append(f"may not fail, but: {failure}")
    if failure and not operation.never_fails and (world.served is None or world_lives(world, operation)):
        found += _after(world, operation, tables, holdings, failure)
    found += world.problems()
    return hits[0]


def world_lives(world: World, operation: Operation) -> bool:
    try:
        return world.alive()
    except EXPECTED:
        return not operation.atomic
    except AssertionError:
        return True  # it does not answer, as the next try will say


def _after(world: World, operation: Operation, tables: object, holdings: Counter[str], failure: str) -> list[str]:
    """What is wrong after a failure, and with another try."""
    found: list[str] = []
    if operation.atomic:
        found += [f"{text}, after {failure}" for text in differences(holdings)]
        if (now := world.tables()) != tables:
            found.append(f"{_changed(tables, now)}, after {failure}")
    try:
        operation.act(world)
    except BaseException as error:
        if not operation.lasting:
            found.append(f"fails again, without a fault: {type(error).__name__}: {error}, after {failure}")
    return found


def _changed(before: object, now: object) -> str:
    """Which parts are not as before."""
    if not isinstance(before, tuple) or not isinstance(now, tuple):
        return f"{before} became {now}"
    return " and ".join(f"{old} became {new}" for old, new in zip(before, now, strict=True) if old != new)


def main() -> None:
    """Sweep the operations of the first argument, by commas; `thorough` may follow, and names of calls."""
    names, *words = sys.argv[1:]
    logging.disable(logging.CRITICAL)
    unraisable: list[str] = []
    sys.unraisablehook = lambda raised: unraisable.append(f"unraisable: {raised.exc_value!r} in {raised.object!r}")
    count_reservations()
    record_servings()
    gc.collect()
    gc.disable()
    said = {}
    for name in names.split(","):
        sweep = Sweep(name, thorough="thorough" in words)
        sweep.run(tuple(word for word in words if word != "thorough"))
        said[name] = {"trials": sweep.trials, "problems": sweep.problems + unraisable}
        unraisable.clear()
    print(json.dumps(said), flush=True)
    os._exit(0)


if __name__ == "__main__":
    main()
