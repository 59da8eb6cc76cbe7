"""What a conversation knows of a ring's events: of which kind the device is, and which request an answer belongs to."""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from typing import Final

from .event import Offered, Used
from .requests import RAW, guess_kind

MOST_ASKED: Final = 4096
"""Heads with requests without an answer that are remembered."""
MOST_AGAIN: Final = 4
"""Requests of one head."""


class Kinds:
    """The kinds of the devices of all connections: as told, or guessed from the first request that looks like one."""

    def __init__(self, told: str | None = None) -> None:
        self._told = told
        self._guessed: dict[int, str] = {}

    def of(self, event: Offered | Used) -> str:
        """The kind of the device that an event is about."""
        if self._told:
            return self._told
        known = self._guessed.get(event.connection)
        if known is None and isinstance(event, Offered) and (kind := guess_kind(event)) != RAW:
            known = self._guessed[event.connection] = kind
        return known or RAW


class Pairing:
    """Takes the ring events of a capture as they come, and gives them back with what is known of them."""

    def __init__(self, told: str | None = None) -> None:
        self._kinds = Kinds(told)
        self._asked: dict[tuple[int, int, int], deque[Offered]] = {}
        """By connection, queue and head: a head may be offered again before it is told that it was given back."""

    def of(self, event: Offered | Used) -> Offered | Used:
        """The event, and what is known of it."""
        kind, key = self._kinds.of(event), (event.connection, event.queue, event.head)
        if isinstance(event, Used):
            return replace(event, kind=kind, asked=self._request(key, event))
        known = replace(event, kind=kind)
        self._asked.setdefault(key, deque(maxlen=MOST_AGAIN)).append(known)
        if len(self._asked) > MOST_ASKED:
            del self._asked[next(iter(self._asked))]
        return known

    def _request(self, key: tuple[int, int, int], used: Used) -> Offered | None:
        """The request that was offered when the answer says so, else the oldest of that head."""
        asked = self._asked.get(key)
        if asked is None:
            return None
        found = next((each for each in asked if each.at == used.at - max(0, used.after)), asked[0])
        asked.remove(found)
        if not asked:
            del self._asked[key]
        return found
