"""How the rows of a profile are written down: rules, by what is the matter with them."""

from __future__ import annotations

from collections.abc import Mapping


def rows(reasons: Mapping[str, tuple[str, ...]]) -> dict[str, str]:
    """Why a rule is not kept, by the rule's name."""
    return {name: reason for reason, names in reasons.items() for name in names}
