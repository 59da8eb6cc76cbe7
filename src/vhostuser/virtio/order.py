"""The order in which a device gives chains back under IN_ORDER: that in which it was given them.

One used entry may stand for a batch then: it names the last chain of it, lies where that of the first would, and those
before the last were used completely ("In-order use of descriptors").
"""

from __future__ import annotations

from collections import deque

from ..errors import QueueBroken


class Order:
    """The chains that a device has, by what names them to the driver, first in first out."""

    def __init__(self) -> None:
        self._chains: deque[tuple[int, int]] = deque()
        self._numbers: dict[int, int] = {}
        self._first = 0
        self._written = 0
        self.due = 0
        """Chains of the batch that was seen last, as far as they were not taken."""

    def add(self, name: int, room: int) -> None:
        """The device is given a chain, in which it may write `room` bytes."""
        self._numbers[name] = self._first + len(self._chains)
        self._chains.append((name, room))

    def see(self, name: int, written: int, most: int) -> None:
        """A used entry ends a batch, of `most` chains at most. QueueBroken if it can't."""
        number = self._numbers.get(name)
        if number is None:
            raise QueueBroken(f"the device gave back chain {name}, which it does not have")
        count = number - self._first + 1
        if count > most:
            raise QueueBroken(f"the device gave back chain {name}, which ends a batch of {count}, as one of {most}")
        self.due, self._written = count, written

    def take(self) -> tuple[int, int]:
        """The next chain of the batch, and the bytes written: all that there may be, but for the last."""
        name, room = self._chains.popleft()
        del self._numbers[name]
        self._first, self.due = self._first + 1, self.due - 1
        return name, room if self.due else self._written
