"""What a conversation knows of a ring's events: of which kind the device is, and which request an answer belongs to."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from .event import Offered, Used
from .requests import RAW, guess_kind

MOST_ASKED: Final = 4096
"""Requests without an answer that are remembered."""


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
        self._asked: dict[tuple[int, int, int], Offered] = {}

    def of(self, event: Offered | Used) -> Offered | Used:
        """The event, and what is known of it."""
        kind, key = self._kinds.of(event), (event.connection, event.queue, event.head)
        if isinstance(event, Used):
            return replace(event, kind=kind, asked=self._asked.pop(key, None))
        known = self._asked[key] = replace(event, kind=kind)
        if len(self._asked) > MOST_ASKED:
            del self._asked[next(iter(self._asked))]
        return known
