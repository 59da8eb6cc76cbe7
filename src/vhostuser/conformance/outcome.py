"""What came of a rule: kept, broken, not applicable; and what was expected and seen."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any, Final

from ..trace.event import Event
from .rule import Level, Rule


class Result(Enum):
    """How a rule ended."""

    KEPT = "kept"
    BROKEN = "broken"
    CRASHED = "crashed"
    """The peer died of it."""
    HUNG = "hung"
    """The peer said nothing in time, where it had to."""
    SKIPPED = "skipped"
    """The peer does not offer what the rule is about."""
    KNOWN = "known"
    """Broken, and the profile says that this peer does that."""
    FIXED = "fixed"
    """Kept, and the profile says that this peer does not."""


class Deviation(Exception):
    """The peer did something else than the rule says."""

    def __init__(self, expected: str, got: str, *, hung: bool = False) -> None:
        super().__init__(f"expected {expected}, got {got}")
        self.expected, self.got, self.hung = expected, got, hung


UNUSABLE: Final = (OSError, ValueError, OverflowError, struct.error)
"""What comes of numbers, files and eventfds of a peer's that are of no use."""


class NotApplicable(Exception):
    """In the course of a rule the peer turned out not to have what it is about: why."""


NO_DEVICE: Final = "say what kind of device it is: --device"
"""Why a rule is not applicable that sends the device a request, if nobody has said which."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """One rule's end."""

    rule: Rule[Any]
    result: Result
    expected: str = ""
    got: str = ""
    """Of what is kept: empty. Of what is skipped: why."""
    seconds: float = 0.0
    events: tuple[Event, ...] = field(default=(), repr=False)
    """The conversation."""

    @property
    def fails(self) -> bool:
        """A MUST that is not kept, or a crash of any rule's; and not known."""
        must = self.rule.level is Level.MUST and self.result in (Result.BROKEN, Result.HUNG)
        return must or self.result is Result.CRASHED

    @property
    def warns(self) -> bool:
        """A SHOULD or advice that is not kept, without a crash, and not known."""
        return self.rule.level is not Level.MUST and self.result in (Result.BROKEN, Result.HUNG)


def under(profile: Mapping[str, str], outcome: Outcome) -> Outcome:
    """The outcome as a profile of a known peer sees it: `profile` says of some rules why they are not kept."""
    reason = profile.get(outcome.rule.name)
    if reason is None or outcome.result in (Result.SKIPPED, Result.KNOWN):
        return outcome
    if outcome.result is Result.KEPT:
        return replace(outcome, result=Result.FIXED, got=f"kept, though the profile says: {reason}")
    return replace(outcome, result=Result.KNOWN, got=f"{outcome.got} ({reason})")
