"""What a passive rule is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from enum import Enum
from typing import Final, NamedTuple

from .look import Look, Watched


class Severity(Enum):
    """How bad it is."""

    ERROR = "error"
    """The specification forbids it."""
    WARNING = "warning"
    """It is allowed, or can't be told for sure, and peers are known to fail of it."""
    ADVICE = "advice"
    """It works, but could be better."""


class Rule(NamedTuple):
    """A rule on each exchange; `check` yields what is wrong, in words."""

    name: str
    severity: Severity
    check: Callable[[Look], Iterator[str]]
    section: str = ""
    """Where the specification says so; empty where that is the section of the request itself."""


class ClosingRule(NamedTuple):
    """A rule on what is left when a connection ends, or (`closed` is False) the capture does."""

    name: str
    severity: Severity
    check: Callable[[Watched, bool], Iterator[str]]
    section: str


SHMEM: Final = "Back-end message types: VHOST_USER_BACKEND_SHMEM_MAP"
"""The section that most rules on shared memory are of."""
