"""What is to be done to a message on its way, and who says so."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from .event import Message


@dataclass(frozen=True, slots=True)
class Verdict:
    """What becomes of a message: nothing, unless a field says otherwise."""

    note: str
    """What was done to it, for the capture: `delayed 10 ms`, `dropped`, `changed: ...`."""
    data: bytes | None = None
    """What goes on in its place, with its fds; b"" for nothing. None: it goes on as it came."""
    answer: bytes = b""
    """A message that goes back in the peer's stead, once the replies that are owed before it have passed."""
    delay: int = 0
    """Nanoseconds that it waits, and all that comes behind it on its way."""
    close: bool = False
    """The connection ends; it does not go on."""


Alter = Callable[[Message, Sequence[int]], Verdict | None]
"""Asked about each message, with its open fds, before it goes on. None: it goes on as it came."""


class Watch(Protocol):
    """Somebody who has to see a message's fds while they are open, as a follower of rings has."""

    def passed(self, message: Message, fds: Sequence[int]) -> None:
        """A message has passed. The fds are closed when this returns: duplicate those that are needed."""

    def close(self) -> None:
        """No more messages pass."""


def both(first: Verdict | None, then: Verdict | None) -> Verdict | None:
    """One verdict after the other: what the second says of the bytes counts, delays add up."""
    if first is None or then is None:
        return first or then
    return Verdict(
        f"{first.note}, {then.note}",
        first.data if then.data is None else then.data,
        then.answer or first.answer,
        first.delay + then.delay,
        first.close or then.close,
    )
