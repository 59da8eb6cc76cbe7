"""What no input may leave behind: an exception that nobody expected, a file, a mapping, a thread."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import re
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from typing import Final
from unittest import mock

from vhostuser.limited_log import LimitedLog
from vhostuser.testing.usage import Usage

SETTLE: Final = 5.0
"""Seconds that a thread which has ended may take to be gone."""


_SHARED: Final = re.compile(rb" [r-][w-][x-]s ")


class Unexpected(AssertionError):
    """An input broke what its target promises."""


class _Faults(logging.Handler):
    """Notes what the package logs as an error: an exception where none is expected, which it has survived."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.found.append(record.getMessage())

    def note(self, hook: object) -> None:
        """An exception that ended a thread, or came of a destructor."""
        error = getattr(hook, "exc_value", None)
        self.found.append("".join(traceback.format_exception(error)) if error else str(hook))


def check(holds: object, *what: object) -> None:
    """Unexpected, with `what`, unless it holds: works without asserts, too."""
    if not holds:
        raise Unexpected(*what)


@contextlib.contextmanager
def watched() -> Iterator[None]:
    """In the block nothing fails unseen, and at its end as much is held as at its start."""
    faults, logger = _Faults(), logging.getLogger("vhostuser")
    hooks = threading.excepthook, sys.unraisablehook
    before = _usage()
    logger.addHandler(faults)
    threading.excepthook = sys.unraisablehook = faults.note
    try:
        with warnings.catch_warnings(), mock.patch.object(LimitedLog, "_may_pass", return_value=True):
            warnings.simplefilter("error", ResourceWarning)  # an fd that is dropped unclosed
            yield
        _settle(before)
    finally:
        threading.excepthook, sys.unraisablehook = hooks
        logger.removeHandler(faults)
    check(not faults.found, *faults.found)


def _settle(before: Usage) -> None:
    """Wait until no more is held than `before`; what a cycle of references holds of memory may be collected."""
    deadline = time.monotonic() + SETTLE
    while _more(now := _usage(), before):
        if now.mappings > before.mappings:
            gc.collect()
        check(time.monotonic() < deadline, f"left behind: {before} became {now}")
        time.sleep(0.001)


def _usage() -> Usage:
    """What this process holds now: as `vhostuser.testing.usage`, but quick, for it is asked twice an input."""
    with open("/proc/self/maps", "rb") as maps:
        shared = len(_SHARED.findall(maps.read()))
    return Usage(len(os.listdir("/proc/self/fd")), shared, len(os.listdir("/proc/self/task")))


def _more(now: Usage, before: Usage) -> bool:
    return any(after > then for after, then in zip(now, before, strict=True))


def outcome_of(work: Callable[[], object], *errors: type[Exception]) -> tuple[object, str]:
    """What it gives, and what it says if it raises one of `errors`, which are those that it may."""
    try:
        return work(), ""
    except errors as error:
        return type(error).__name__, str(error)
