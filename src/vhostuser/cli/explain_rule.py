"""`vhu explain RULE`: a rule of `vhu check` on a page. Loaded when it is asked for: to have all rules takes a moment."""

from __future__ import annotations

from difflib import get_close_matches
from typing import Any, Final

from ..conformance.back_end import all_rules  # noqa: F401  # the rules
from ..conformance.backend_bench import BACK_END
from ..conformance.check_frontend import front_end_rules
from ..conformance.rule import Rule
from ..conformance.told import entry_of, page_of
from ..protocol.state import Role

_CLOSE: Final = 0.6


def entry(name: str) -> dict[str, object] | None:
    """The rule of this name as an object, None if there is none."""
    rule = _rules().get(_bare(name))
    return None if rule is None else {"kind": "rule", **entry_of(rule)}


def page(name: str) -> str:
    """The same as a page; empty if there is none."""
    rule = _rules().get(_bare(name))
    return "" if rule is None else "\n".join(page_of(rule))


def near(name: str) -> list[str]:
    """Rules with a name that is much like this one."""
    return get_close_matches(_bare(name), _rules(), 3, _CLOSE)


def names_for(side: Role) -> list[str]:
    """The names of the rules that this side has to keep."""
    return [name for name, rule in _rules().items() if rule.side is side]


def _rules() -> dict[str, Rule[Any]]:
    return {rule.name: rule for rule in (*BACK_END, *front_end_rules())}


def _bare(name: str) -> str:
    return name.strip().lower().replace("-", "_").replace(" ", "_")
