"""A rule as it is told: where it is from, what it needs, sends and expects, why it matters, and who does not keep it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.resources import files
from typing import Any, Final

from ..limited_log import printable
from ..protocol.state import Role
from ..virtio.numbers import feature_names
from .front_profiles import FRONT_END_PROFILES
from .profiles import BACK_END_PROFILES, SPEC, STRICT
from .reasons import why
from .rule import Needs, Rule
from .sections import address_of, heading_of

CONVERSATIONS: Final = "conversations.json"
"""What is sent in each rule and expected, taken from conversations: see tests/conformance/conversations.py."""
_WIDTH: Final = 11


def entry_of(rule: Rule[Any]) -> dict[str, object]:
    """The rule as a flat object, for programs."""
    conversation = _conversations()[rule.name]
    return {
        "rule": rule.name,
        "side": rule.side.value,
        "section": rule.section,
        "url": address_of(rule.section),
        "level": rule.level.value,
        "needs": _needs(rule.needs),
        "text": rule.text,
        "sends": conversation["sends"],
        "expects": conversation["expects"],
        "why": why(rule),
        "not_kept_by": not_kept_by(rule),
    }


def page_of(rule: Rule[Any]) -> list[str]:
    """The rule as a page, for people."""
    entry = entry_of(rule)
    lines = [f"{rule.name}: a rule for {rule.side.value}s ({rule.level.value})"]
    lines += _row("rule", rule.text)
    lines += _row("section", *_place(rule))
    lines += _row("needs", ", ".join(_needs(rule.needs)) or "nothing")
    lines += _row("sends", *_words(entry["sends"]))
    lines += _row("expects", str(entry["expects"]))
    lines += _row("why", why(rule))
    lines += _row("not kept by", *(f"{peer}: {reason}" for peer, reason in not_kept_by(rule).items()))
    lines += _row("try", f"vhu check {rule.side.value} --rule '^{rule.name}$' ...")
    return [printable(line) for line in lines]


def not_kept_by(rule: Rule[Any]) -> dict[str, str]:
    """The peers that are known not to keep it, by their profiles, and why."""
    profiles = FRONT_END_PROFILES if rule.side is Role.FRONTEND else BACK_END_PROFILES
    return {name: rows[rule.name] for name, rows in profiles.items() if name not in (SPEC, STRICT) and rule.name in rows}


def _place(rule: Rule[Any]) -> Iterator[str]:
    heading = heading_of(rule.section)
    yield rule.section if heading == rule.section else f"{rule.section}, under {heading}"
    yield address_of(rule.section)


def _needs(needs: Needs) -> list[str]:
    """What a peer has to offer, in words."""
    found = [feature.name for feature in sorted(needs.protocol)]
    found += sorted(feature_names(sum(1 << bit for bit in needs.features)))
    if needs.queues:
        found.append("1 queue" if needs.queues == 1 else f"{needs.queues} queues")
    if needs.device is not None:
        found.append(f"a device of kind {needs.device.name.lower()}")
    return found


def _words(sends: object) -> list[str]:
    return [str(word) for word in sends] if isinstance(sends, list) else []


def _row(name: str, *texts: str) -> Iterator[str]:
    """A name and what belongs to it, the first beside it, the others below."""
    for number, text in enumerate(texts):
        yield f"  {'' if number else name:{_WIDTH}} {text}"


@cache
def _conversations() -> Mapping[str, Mapping[str, object]]:
    found: dict[str, dict[str, object]] = json.loads(files(__package__).joinpath(CONVERSATIONS).read_text())
    return found
