"""What a rule is: a sentence of the specification, and the conversation that shows whether a peer keeps it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Generic, TypeVar

from ..protocol.numbers import ProtocolFeature
from ..protocol.state import Role
from ..virtio.numbers import DeviceId


class Level(Enum):
    """How much the specification wants it."""

    MUST = "MUST"
    SHOULD = "SHOULD"
    ADVICE = "advice"
    """Nothing in the specification says so, but peers in the field depend on it."""


@dataclass(frozen=True, slots=True)
class Needs:
    """What a peer has to offer for a rule to be about it."""

    protocol: frozenset[ProtocolFeature] = frozenset()
    features: frozenset[int] = frozenset()
    """Bits of the virtio features."""
    queues: int = 0
    device: DeviceId | None = None
    """The kind of device, which the user has to tell."""


B = TypeVar("B")
Check = Callable[[B], None]


@dataclass(frozen=True, slots=True)
class Rule(Generic[B]):
    """One rule: `check` talks to a peer on a connection of its own, and raises a Deviation if the peer does not keep it."""

    name: str
    side: Role
    """Who has to keep it."""
    section: str
    """The heading in the specification that it is under."""
    level: Level
    needs: Needs
    text: str
    """The rule in one sentence."""
    check: Check[B]


class Rules(Generic[B]):
    """The rules of one side, in the order in which they were declared."""

    def __init__(self, side: Role) -> None:
        self.side = side
        self._rules: dict[str, Rule[B]] = {}

    def __iter__(self) -> Iterator[Rule[B]]:
        return iter(self._rules.values())

    def rule(
        self,
        section: str,
        *,
        level: Level = Level.MUST,
        protocol: Iterable[ProtocolFeature] = (),
        features: Iterable[int] = (),
        queues: int = 0,
        device: DeviceId | None = None,
    ) -> Callable[[Check[B]], Check[B]]:
        """Make a rule of a function: its name is the rule's, its docstring is the sentence."""
        needs = Needs(frozenset(protocol), frozenset(features), queues, device)

        def add(check: Check[B]) -> Check[B]:
            name, text = check.__name__, (check.__doc__ or "").strip()
            if name in self._rules or not text:
                raise ValueError(f"{name}: a rule has a name of its own and a docstring")
            self._rules[name] = Rule(name, self.side, section, level, needs, text, check)
            return check

        return add
