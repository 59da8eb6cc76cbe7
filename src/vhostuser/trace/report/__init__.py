"""One page that shows a connection: what was mapped where and when, every message, every fd, and what was wrong."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TextIO

from ...protocol.dialects import RELEASED, Dialect
from ..event import Event
from .kept import Kept
from .model import Model
from .page import write_page

__all__ = ["write_report"]


def write_report(events: Iterable[Event], file: TextIO, *, dialect: Dialect = RELEASED) -> None:
    """Write the page that shows the events of a capture: one file, which needs no network."""
    model, kept = Model(dialect), Kept()
    for event in events:
        model.take(event)
        kept.take(event)
    write_page(model.data(), kept.text(), file)
