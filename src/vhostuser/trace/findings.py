"""What was wrong on a connection, or will go wrong: the passive rules, applied to everything that passed.

Requests are judged in the order in which they were settled. A front-end waits for its replies, so on the main channel that
is the order in which they were sent; where the two channels cross, times tell (`passive.running`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ..protocol.dialects import RELEASED, Dialect
from ..protocol.peers import recognise
from .conversation import Exchange, Item
from .event import Remark, Remarkable
from .passive.look import Watched
from .passive.rule import Severity
from .passive.table import AT_CLOSE, rules_for

__all__ = ["Finding", "Findings", "Severity"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is not as it should be."""

    index: int
    """The event of the message that shows it; -1 if there is none."""
    section: str
    """Where the specification says so."""
    severity: Severity
    text: str
    rule: str = ""
    connection: int = 0


class Findings:
    """Applies the rules to the items of a conversation, one by one."""

    def __init__(self, dialect: Dialect = RELEASED) -> None:
        self._dialect = dialect
        self._watched: dict[int, Watched] = {}

    def take(self, item: Item) -> list[Finding]:
        """What is wrong with `item`, or shown to be wrong by it."""
        if isinstance(item, Exchange):
            return list(self._judged(item))
        if isinstance(item, Remark):
            return list(self._remarked(item))
        return []

    def end(self) -> list[Finding]:
        """What shows only when the capture ends."""
        return [finding for number, each in self._watched.items() for finding in _closing(number, each, closed=False)]

    def peer(self, connection: int) -> str:
        """The front-end of a connection, if it is one that can be recognised; else nothing."""
        watched = self._watched.get(connection)
        found = recognise(watched.state) if watched else None
        return f"{found.name} (taken for {found.versions})" if found else ""

    def _of(self, connection: int) -> Watched:
        return self._watched.setdefault(connection, Watched(self._dialect))

    def _judged(self, exchange: Exchange) -> Iterator[Finding]:
        watched = self._of(exchange.message.connection)
        look = watched.look(exchange)
        for rule in rules_for(look):
            for text in rule.check(look):
                section = rule.section or (exchange.request.rule.section if exchange.request.rule else "Communication")
                yield Finding(exchange.index, section, rule.severity, text, rule.name, exchange.message.connection)
        watched.follow(look)

    def _remarked(self, remark: Remark) -> Iterator[Finding]:
        watched = self._of(remark.connection)
        if remark.about in (Remarkable.BROKEN, Remarkable.LOST):
            broken = remark.about is Remarkable.BROKEN
            severity = Severity.ERROR if broken else Severity.ADVICE
            text = remark.text or ("bytes that are no messages" if broken else "something could not be written down")
            yield Finding(watched.last, "Header", severity, text, remark.about.value, remark.connection)
        elif remark.about is Remarkable.CLOSED:
            yield from _closing(remark.connection, watched, closed=True)


def _closing(number: int, watched: Watched, *, closed: bool) -> Iterator[Finding]:
    if watched.over:
        return
    watched.over = True
    for rule in AT_CLOSE:
        for text in rule.check(watched, closed):
            yield Finding(watched.last, rule.section, rule.severity, text, rule.name, number)
