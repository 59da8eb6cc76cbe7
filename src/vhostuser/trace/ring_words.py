"""Requests of rings and their answers in words; an answer is understood by the request that it belongs to."""

from __future__ import annotations

from typing import Final

from .event import Offered, Used
from .requests import Kinds, answer_words, request_words

MOST: Final = 4096
"""Requests that are remembered until they are answered; the oldest is forgotten for one more."""


class RingWords:
    """Puts what was seen in rings into words."""

    def __init__(self) -> None:
        self._kinds = Kinds()
        self._offered: dict[tuple[int, int, int], Offered] = {}

    def request(self, offered: Offered) -> str:
        """What the driver wants."""
        if len(self._offered) >= MOST:
            del self._offered[next(iter(self._offered))]
        self._offered[offered.connection, offered.queue, offered.head] = offered
        return request_words(offered, self._kinds.of(offered))

    def answer(self, used: Used) -> str:
        """What the device answered."""
        offered = self._offered.pop((used.connection, used.queue, used.head), None)
        return answer_words(offered, used, self._kinds.of(used))
