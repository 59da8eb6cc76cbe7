"""What was mapped when, remembered as far back as there is room: the regions of any moment since the horizon."""

from __future__ import annotations

from collections import deque
from typing import Final

from .conversation import Exchange, Item
from .event import Remark, Remarkable
from .history import History, Placed
from .moment import Area, areas

CONNECTIONS: Final = 256
"""Connections that are remembered."""
REMEMBERED: Final = 20_000
"""Mappings, refused ones among them, that are remembered; what lives on is besides."""


class Past:
    """Follows items; memory is bounded however long that goes on."""

    def __init__(self) -> None:
        self.horizon: int | None = None
        """Earlier than this some mappings are forgotten; None if none are."""
        self._history = History()
        self._spans: dict[int, tuple[int, int | None]] = {}
        """When connections were there, from and to."""
        self._placed: deque[Placed] = deque()
        self._lasting: list[Placed] = []
        """Mappings that live on, though so many came after them."""

    def take(self, item: Item) -> None:
        """Follow one item."""
        history = self._history
        history.take(item)
        history.resets.clear()
        self._span(item)
        if history.placed:
            self._placed.extend(history.placed)
            history.placed.clear()
            self._forget()

    def areas(self, at: int | None = None) -> list[Area]:
        """The regions at a moment, or now, of the connections that there were then."""
        there = {connection for connection, span in self._spans.items() if _covers(span, at)}
        sizes = {key: size for key, size in self._history.sizes.items() if key[0] in there}
        if at is None:
            return areas(sizes, self._history.live())
        return areas(sizes, [placed for placed in [*self._lasting, *self._placed] if placed.lives(at)])

    @property
    def count(self) -> int:
        """How many mappings there are now."""
        return self._history.count

    @property
    def mapped(self) -> int:
        """Bytes that are mapped now."""
        return self._history.mapped

    def changes(self) -> list[int]:
        """When something was mapped or went, in order."""
        found = {placed.begin for placed in self._placed if not placed.refused}
        found |= {placed.end for placed in [*self._lasting, *self._placed] if placed.end is not None and not placed.refused}
        return sorted(found)

    def _span(self, item: Item) -> None:
        """Note that a connection is there, or is gone."""
        connection = item.message.connection if isinstance(item, Exchange) else item.connection
        begin, _ = self._spans.get(connection, (item.at, None))
        closed = isinstance(item, Remark) and item.about is Remarkable.CLOSED
        self._spans[connection] = (begin, item.at if closed else None)
        while len(self._spans) > CONNECTIONS:
            gone = next(iter(self._spans))
            del self._spans[gone]
            self._history.connections.pop(gone, None)
            for key in [key for key in self._history.sizes if key[0] == gone]:
                del self._history.sizes[key]

    def _forget(self) -> None:
        """Let the oldest go, down to what there is room for."""
        while len(self._placed) > REMEMBERED:
            oldest = self._placed.popleft()
            if oldest.end is None:
                self._lasting.append(oldest)
            else:
                self._pass(oldest.end)
        if len(self._lasting) > 2 * self._history.count + REMEMBERED:
            for placed in self._lasting:
                if placed.end is not None:
                    self._pass(placed.end)
            self._lasting = [placed for placed in self._lasting if placed.end is None]

    def _pass(self, at: int) -> None:
        self.horizon = at if self.horizon is None else max(self.horizon, at)


def _covers(span: tuple[int, int | None], at: int | None) -> bool:
    begin, end = span
    return end is None if at is None else begin <= at and (end is None or at < end)
