"""`vhu explain WORD`: names with a word in them, or like a pattern. Loaded when it is asked for, as the rules are."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase
from typing import Final

from ..limited_log import printable
from ..protocol.numbers import ProtocolFeature, VhostFeature
from ..protocol.rules import RULES
from ..protocol.state import Role
from ..virtio.numbers import Feature
from .explain_rule import names_for
from .raw import Meaning

MOST: Final = 10
"""Names that are shown."""
_SHORTEST: Final = 3
"""Characters of a word: a shorter one is in too many names."""


def matches(word: str) -> list[Meaning]:
    """Requests, features and rules whose name has `word` in it, or is like it with * and ? in it."""
    pattern = word.lower()
    if not any(character in pattern for character in "*?"):
        pattern = f"*{pattern}*"
    letters = sum(character.isalnum() for character in pattern)
    if letters < _SHORTEST or pattern.strip("*?_").isdigit():
        return []
    return [each for each in _names() if fnmatchcase(str(each["name"]).lower(), pattern.replace("[", "[[]"))]


def fields(query: str, found: list[Meaning]) -> dict[str, object]:
    """The first of them as an object, and how many more there are."""
    return {"query": query, "meanings": [], "names": found[:MOST], "more": max(0, len(found) - MOST)}


def page(query: str, found: list[Meaning]) -> str:
    """The first of them as lines, and how many more there are."""
    lines = [
        f"{printable(query[:80])}: in {len(found)} name{'s' * (len(found) != 1)}",
        *(f"  {each['name']}: {each['kind']}" for each in found[:MOST]),
    ]
    if len(found) > MOST:
        lines.append(f"  and {len(found) - MOST} more; try: a longer word")
    return "\n".join(lines)


def _names() -> Iterator[Meaning]:
    for kind, names in _kinds():
        for name in names:
            yield {"kind": kind, "name": name}


def _kinds() -> Iterator[tuple[str, Iterable[str]]]:
    """The kinds of what has a name, with the names."""
    for channel, known in RULES.items():
        yield f"request on the {channel.value} channel", [rule.name for rule in known.values()]
    yield "protocol feature", ProtocolFeature.__members__
    yield "vhost feature bit", VhostFeature.__members__
    yield "virtio feature bit", Feature.__members__
    for side in Role:
        yield f"rule for {side.value}s", names_for(side)
