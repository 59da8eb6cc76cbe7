"""Everything that the page draws, gathered from the events of a capture in one pass."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from ...protocol.dialects import RELEASED, Dialect
from ...protocol.regions import DEVICE_QUOTA
from ...version import VERSION
from ..conversation import Conversation, Exchange, Item
from ..event import Event, FdNote, Message, Remark, Remarkable
from ..findings import Finding, Findings
from ..history import History, Placed
from ..ledger import Entry, Ledger
from .columns import Columns, Table, Texts, exact
from .features import Features
from .lanes import Lanes

MOST_DRAWN: Final = 250_000
"""Rows of the lanes, mappings, and fds; what comes later is counted and left out."""
MOST_FINDINGS: Final = 1000
"""Of each rule: one that finds something in every message must not hide the others."""
Data = dict[str, object]


@dataclass(slots=True)
class _Connection:
    features: Features = field(default_factory=Features)
    messages: int = 0
    remarks: list[str] = field(default_factory=list)
    opened: int | None = None
    closed: int | None = None


class Model:
    """A capture, as far as it was taken."""

    def __init__(self, dialect: Dialect = RELEASED) -> None:
        self.messages = 0
        self._conversation = Conversation(dialect)
        self._history, self._ledger, self._findings = History(), Ledger(), Findings(dialect)
        self._found: list[Finding] = []
        self._listed: Counter[str] = Counter()
        self._connections: dict[int, _Connection] = {}
        self._texts = Texts()
        self._lanes = Lanes(self._texts, MOST_DRAWN)
        self._began: int | None = None
        self._ended = 0

    def take(self, event: Event) -> None:
        """One event of the capture."""
        self._began = event.at if self._began is None else min(self._began, event.at)
        self._ended = max(self._ended, event.at)
        connection = self._connections.setdefault(event.connection, _Connection())
        if isinstance(event, Message):
            self.messages += 1
            connection.messages += 1
        if isinstance(event, Remark):
            _note(connection, event)
        for item in self._conversation.take(event):
            self._settle(item)

    def _settle(self, item: Item) -> None:
        if isinstance(item, Exchange):
            self._connections[item.message.connection].features.take(item)
        self._history.take(item)
        self._ledger.take(item)
        self._find(self._findings.take(item))
        self._lanes.take(item)

    def _find(self, found: list[Finding]) -> None:
        for each in found:
            self._listed[each.rule] += 1
            if self._listed[each.rule] <= MOST_FINDINGS:
                self._found.append(each)

    def data(self) -> Data:
        """All of it, once the last event was taken; times in nanoseconds from the first one on."""
        for item in self._conversation.end():
            self._settle(item)
        self._find(self._findings.end())
        began, files = self._began or 0, _Files()
        placed, entries = self._history.placed, self._ledger.end(self._history.placed)
        return {
            "version": VERSION,
            "began": str(began),
            "span": max(0, self._ended - began),
            "messages": self.messages,
            "leftOut": max(self._lanes.left_out, len(placed) - MOST_DRAWN, len(entries) - MOST_DRAWN),
            "quota": DEVICE_QUOTA,
            "connections": [self._summary(number, each, began) for number, each in sorted(self._connections.items())],
            "resets": [[at - began, connection] for at, connection in self._history.resets],
            "placed": _placed(placed[:MOST_DRAWN], files, began),
            "rows": self._lanes.columns(began),
            "ledger": _ledger(entries[:MOST_DRAWN], files, self._texts, began),
            "findings": [_finding(each) for each in self._found],
            "unlisted": self._listed.total() - len(self._found),
            "files": files.rows,
            "texts": self._texts.all,
        }

    def _summary(self, number: int, connection: _Connection, began: int) -> Data:
        sizes = sorted((shmid, size) for (of, shmid), size in self._history.sizes.items() if of == number)
        seen = sorted({each.shmid for each in self._history.placed if each.connection == number} - dict(sizes).keys())
        return {
            "id": number,
            "messages": connection.messages,
            "remarks": connection.remarks,
            "opened": None if connection.opened is None else connection.opened - began,
            "closed": None if connection.closed is None else connection.closed - began,
            "peer": self._findings.peer(number),
            "features": connection.features.rows(),
            "regions": [{"shmid": shmid, "size": size} for shmid, size in [*sizes, *((shmid, 0) for shmid in seen)]],
        }


def _note(connection: _Connection, remark: Remark) -> None:
    if remark.text and len(connection.remarks) < 100:
        connection.remarks.append(f"{remark.about.value}: {remark.text}")
    if remark.about is Remarkable.OPENED:
        connection.opened = remark.at
    elif remark.about is Remarkable.CLOSED:
        connection.closed = remark.at


class _Files:
    """Each file once, by what tells it from others."""

    def __init__(self) -> None:
        self.rows: list[Data] = []
        self._numbers: dict[tuple[object, ...], int] = {}

    def number(self, note: FdNote | None) -> int:
        """The number of the file behind an fd; -1 of none."""
        if note is None:
            return -1
        key = (note.kind, note.path, note.dev, note.ino, note.size, note.access, note.seals)
        found = self._numbers.setdefault(key, len(self.rows))
        if found == len(self.rows):
            self.rows.append(_file(note))
        return found


def _file(note: FdNote) -> Data:
    return {
        "kind": note.kind,
        "path": note.path,
        "dev": exact(note.dev),
        "ino": exact(note.ino),
        "size": exact(note.size),
        "access": note.access,
        "seals": " ".join(note.seals),
    }


def _placed(placed: Iterable[Placed], files: _Files, began: int) -> Columns:
    """Connection, region, offset, length, begin, end, file, offset in it, writable, message, and why it was refused."""
    table = Table("c", "s", "o", "n", "b", "e", "f", "g", "w", "i", "x")
    for each in placed:
        end = -1 if each.end is None else each.end - began
        place = (each.connection, each.shmid, exact(each.shm_offset), exact(each.len), each.begin - began, end)
        table.add(*place, files.number(each.fd), exact(each.fd_offset), int(each.writable), each.index, each.refused)
    return table.columns


def _ledger(entries: Iterable[Entry], files: _Files, texts: Texts, began: int) -> Columns:
    """Message, connection, time, sender, request, file, fd, purpose, end, fate, and whether it is a leak."""
    table = Table("i", "c", "t", "by", "q", "f", "n", "p", "e", "z", "l")
    for each in entries:
        end = -1 if each.ended is None else each.ended - began
        what = (files.number(each.fd), each.fd.number, texts.number(each.purpose), end, texts.number(each.fate))
        table.add(each.index, each.connection, each.at - began, each.sender.value, each.request, *what, int(each.leak))
    return table.columns


def _finding(finding: Finding) -> Data:
    return {
        "i": finding.index,
        "rule": finding.rule,
        "section": finding.section,
        "severity": finding.severity.value,
        "text": finding.text,
    }
