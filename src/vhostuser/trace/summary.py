"""What a connection did, counted: one row a request of each channel and one a queue, as `strace -c` counts system calls.

Memory is bounded, whatever peers send: times go into histograms, and unknown requests beyond MOST_ROWS into one row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from .conversation import Exchange, Item
from .event import Message, Offered, Remark, Used
from .histogram import Histogram
from .history import History
from .lines import duration

MOST_ROWS: Final = 256
OTHERS: Final = "other requests"
_HEADINGS: Final = (
    *(
        "% time",
        "mean",
        "median",
        "p99",
        "max",
        "calls",
        "refused",
        "no reply",
        "wrong",
        "bytes",
        "fds",
        "request",
        "channel",
    ),
)
_TO_THE_LEFT: Final = 2
"""Columns at the end that are words."""


@dataclass(slots=True)
class Row:
    """What was counted of one request, or of one queue."""

    name: str
    channel: str
    calls: int = 0
    refused: int = 0
    unanswered: int = 0
    wrong: int = 0
    """Malformed messages, and replies that answer nothing."""
    bytes: int = 0
    """Of requests and their replies, with headers; of a queue, what the device wrote."""
    fds: int = 0
    latency: Histogram = field(default_factory=Histogram)

    def merge(self, other: Row) -> None:
        """Count in all of another row."""
        for name in ("calls", "refused", "unanswered", "wrong", "bytes", "fds"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.latency.merge(other.latency)

    def as_json(self) -> dict[str, object]:
        """The row as an object, times in microseconds."""
        times = {
            "mean_us": self.latency.mean / 1000,
            "median_us": self.latency.percentile(50) / 1000,
            "p99_us": self.latency.percentile(99) / 1000,
            "max_us": self.latency.greatest / 1000,
        }
        counts = {name: getattr(self, name) for name in ("calls", "refused", "unanswered", "wrong", "bytes", "fds")}
        return {"request": self.name, "channel": self.channel, **counts, **(times if self.latency.count else {})}


class Summary:
    """Counts items."""

    def __init__(self) -> None:
        self.most_mapped = 0
        """Bytes that were mapped at the same time, at most."""
        self.most_mappings = 0
        """Mappings that there were at the same time, at most."""
        self._rows: dict[tuple[str, str], Row] = {}
        self._history = History(keep=False)
        self._first: int | None = None
        self._last = 0

    def take(self, item: Item) -> None:
        """Count one item."""
        self._first = item.at if self._first is None else min(self._first, item.at)
        self._last = max(self._last, item.settled if isinstance(item, Exchange) else item.at)
        self._follow(item)
        match item:
            case Exchange():
                self._exchange(item)
            case Used():
                self._used(item)
            case Offered() | Remark():
                return

    def _follow(self, item: Item) -> None:
        """What is mapped, and how much that ever was."""
        self._history.take(item)
        self.most_mapped = max(self.most_mapped, self._history.mapped)
        self.most_mappings = max(self.most_mappings, self._history.count)

    def rows(self) -> list[Row]:
        """What took the longest first, then by how often it came."""
        return sorted(self._rows.values(), key=lambda row: (-row.latency.sum, -row.calls, row.channel, row.name))

    def total(self) -> Row:
        """All messages together, without the queues."""
        total = Row("total", "")
        for (channel, _), row in self._rows.items():
            if channel != _QUEUES:
                total.merge(row)
        return total

    @property
    def seconds(self) -> float:
        """From the first item to the last."""
        return (self._last - (self._first or 0)) / 1e9 if self._first is not None else 0.0

    def table(self) -> str:
        """The table for people."""
        rows, total = self.rows(), self.total()
        longest = sum(row.latency.sum for row in rows)
        cells = [_HEADINGS, *(_cells(row, longest) for row in [*rows, total])]
        widths = [max(len(row[column]) for row in cells) for column in range(len(_HEADINGS))]
        lines = [_line(row, widths) for row in cells]
        ruler = " ".join("-" * width for width in widths)
        return "\n".join([lines[0], ruler, *lines[1:-1], ruler, lines[-1], self._mapped()])

    def as_json(self) -> dict[str, object]:
        """The same as an object."""
        return {
            "seconds": self.seconds,
            "connections": len(self._history.connections),
            "most_mapped": self.most_mapped,
            "most_mappings": self.most_mappings,
            "requests": [row.as_json() for row in self.rows()],
            "total": self.total().as_json(),
        }

    def _mapped(self) -> str:
        connections = len(self._history.connections)
        lasted = f"{connections} connection{'s' * (connections != 1)}, {self.seconds:.3f} s"
        return f"{lasted}; mapped at most: {self.most_mapped} bytes, in {self.most_mappings} mappings at a time"

    def _row(self, channel: str, name: str) -> Row:
        row = self._rows.get((channel, name))
        if row is None:
            if len(self._rows) >= MOST_ROWS:
                name = OTHERS
            row = self._rows.setdefault((channel, name), Row(name, channel))
        return row

    def _exchange(self, exchange: Exchange) -> None:
        row = self._row(exchange.message.channel.value, exchange.request.name)
        row.calls += not exchange.orphan
        row.refused += exchange.refused
        row.unanswered += exchange.unanswered
        row.wrong += exchange.orphan or bool(exchange.faults)
        for message in _messages(exchange):
            row.bytes += len(message.data)
            row.fds += len(message.fds)
        if exchange.latency is not None:
            row.latency.add(exchange.latency)

    def _used(self, used: Used) -> None:
        row = self._row(_QUEUES, f"queue {used.queue}")
        row.calls += 1
        row.bytes += used.written
        if used.after >= 0:
            row.latency.add(used.after)


_QUEUES: Final = "ring"


def _messages(exchange: Exchange) -> list[Message]:
    return [exchange.message, exchange.reply.message] if exchange.reply else [exchange.message]


def _cells(row: Row, longest: int) -> tuple[str, ...]:
    times = row.latency
    share = f"{100 * times.sum / longest:.2f}" if longest and times.count and row.channel else ""
    latencies = (times.mean, times.percentile(50), times.percentile(99), times.greatest)
    shown = [duration(each) for each in latencies] if times.count else [""] * len(latencies)
    counts = (row.refused, row.unanswered, row.wrong)
    some = [str(count or "") for count in counts]
    return (share, *shown, str(row.calls), *some, str(row.bytes), str(row.fds), row.name, row.channel)


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    numbers = [cell.rjust(width) for cell, width in zip(cells[:-_TO_THE_LEFT], widths, strict=False)]
    words = [cell.ljust(width) for cell, width in zip(cells[-_TO_THE_LEFT:], widths[-_TO_THE_LEFT:], strict=True)]
    return " ".join([*numbers, *words]).rstrip()
