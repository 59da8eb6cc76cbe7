"""All that `vhu top` shows, without a terminal: regions, rates, queues and the last messages, now or a while ago.

Events come from one thread, pictures are asked for by another: a lock keeps them apart. Memory is bounded for any length.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Final

from ..protocol.dialects import RELEASED, Dialect
from .conversation import Conversation, Exchange, Item
from .event import Event, Offered, Remark, Remarkable, Used
from .filter import Filter
from .histogram import Histogram
from .moment import Area
from .past import Past
from .rates import Rates
from .summary import Row, Summary

ITEMS: Final = 5_000
"""Items whose lines can still be shown."""
EVENTS: Final = 20_000
"""The last events, which can be saved."""
FIRST: Final = 500
"""The first events, which say what was negotiated, and can be saved before them."""
QUEUES: Final = 256
_SECOND: Final = 1_000_000_000


@dataclass(slots=True)
class QueueRow:
    """One queue: what went into it and came out."""

    connection: int
    queue: int
    offered: int = 0
    used: int = 0
    written: int = 0
    latency: Histogram = field(default_factory=Histogram)

    @property
    def waiting(self) -> int:
        """Requests that were not given back yet."""
        return max(0, self.offered - self.used)


@dataclass(frozen=True, slots=True)
class Picture:
    """What there is to see at one moment."""

    at: int
    began: int
    now: bool
    """It is as it is now; else it is the past."""
    state: str
    """LIVE, or END of what is no longer going on."""
    areas: list[Area]
    rates: dict[str, int]
    """By name, of the last whole second; of the past, of the second of the moment."""
    rows: list[Row]
    queues: list[QueueRow]
    items: list[Item]
    """The last ones, oldest first."""
    events: int
    connections: int
    horizon: int
    """The earliest moment that is still known."""


class Board:
    """Takes events, and shows what they come to."""

    def __init__(self, dialect: Dialect = RELEASED, *, clock: Callable[[], int] | None = None) -> None:
        """`clock` says what time it is, in nanoseconds; without one it is the time of the last event."""
        self._clock = clock
        self.began: int | None = None
        self.now = 0
        """When the last event was."""
        self.events = 0
        self.past, self.rates, self.summary = Past(), Rates(), Summary()
        self._lock = threading.Lock()
        self._conversation = Conversation(dialect)
        self._open: set[int] = set()
        self._items: deque[Item] = deque(maxlen=ITEMS)
        self._first: list[Event] = []
        self._last: deque[Event] = deque(maxlen=EVENTS)
        self._queues: dict[tuple[int, int], QueueRow] = {}

    def take(self, event: Event) -> None:
        """Take one more event."""
        with self._lock:
            self.began = event.at if self.began is None else self.began
            self.now = max(self.now, event.at)
            self.events += 1
            self._keep(event)
            for item in self._conversation.take(event):
                self._settled(item)

    def end(self) -> None:
        """No event follows: what is not answered yet never will be."""
        with self._lock:
            for item in self._conversation.end():
                self._settled(item)

    def picture(self, at: int | None = None, *, lines: int = 0, chosen: Filter | None = None) -> Picture:
        """What there is to see at `at`, or now; of the items the last `lines` that `chosen` matches."""
        with self._lock:
            moment = self._moment(at)
            began = moment if self.began is None else self.began
            earliest = max(began, self.past.horizon or 0)
            return Picture(
                at=moment,
                began=began,
                now=at is None,
                state="LIVE" if self._clock else "END",
                areas=self.past.areas(at),
                rates=dict(self.rates.at(moment - _SECOND if at is None and self._clock else moment)),
                rows=self.summary.rows(),
                queues=sorted(self._queues.values(), key=lambda row: (row.connection, row.queue)),
                items=list(islice(self._before(moment, chosen), lines))[::-1],
                events=self.events,
                connections=len(self._open),
                horizon=earliest,
            )

    def course(self, name: str, until: int, seconds: int) -> list[int]:
        """How many of `name` came in each of the last seconds."""
        with self._lock:
            return self.rates.course(name, until, seconds)

    def saved(self) -> list[Event]:
        """The first and the last events, for a capture."""
        with self._lock:
            return [*self._first, *self._last]

    def changes(self) -> list[int]:
        """When something was mapped or went."""
        with self._lock:
            return self.past.changes()

    def _moment(self, at: int | None) -> int:
        if at is not None:
            return at
        return max(self.now, self._clock()) if self._clock else self.now

    def _keep(self, event: Event) -> None:
        if len(self._first) < FIRST:
            self._first.append(event)
        else:
            self._last.append(event)
        if isinstance(event, Remark) and event.about is Remarkable.CLOSED:
            self._open.discard(event.connection)
        else:
            self._open.add(event.connection)

    def _before(self, at: int, chosen: Filter | None) -> Iterator[Item]:
        """Items up to a moment, newest first."""
        for item in reversed(self._items):
            if (item.settled if isinstance(item, Exchange) else item.at) <= at and (chosen is None or chosen.matches(item)):
                yield item

    def _settled(self, item: Item) -> None:
        self._items.append(item)
        self.past.take(item)
        self.summary.take(item)
        if isinstance(item, Exchange):
            self.rates.add(item.at, item.request.name)
        elif isinstance(item, Offered | Used):
            self._queue(item)

    def _queue(self, item: Offered | Used) -> None:
        key = (item.connection, item.queue)
        if key not in self._queues and len(self._queues) >= QUEUES:
            del self._queues[next(iter(self._queues))]
        row = self._queues.setdefault(key, QueueRow(*key))
        if isinstance(item, Offered):
            row.offered += 1
            return
        row.used += 1
        row.written += item.written
        self.rates.add(item.at, f"queue {item.queue}")
        if item.after >= 0:
            row.latency.add(item.after)
