"""Rules that differ in a value: a table of them, and one check."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

from ..protocol.numbers import ProtocolFeature
from .rule import Level, Rules

B = TypeVar("B")


def declare(
    rules: Rules[B],
    section: str,
    name: str,
    text: str,
    check: Callable[[B], None],
    *,
    level: Level = Level.MUST,
    protocol: Iterable[ProtocolFeature] = (),
    features: Iterable[int] = (),
    queues: int = 0,
) -> None:
    """Make a rule of a name, its sentence, and what checks it."""

    def run(bench: B) -> None:
        check(bench)

    run.__name__, run.__doc__ = name, text
    rules.rule(section, level=level, protocol=protocol, features=features, queues=queues)(run)
