"""Mutants of a module: its source with one thing changed, by the operators of cosmic-ray. Nothing is written to disk."""

from __future__ import annotations

from difflib import unified_diff
from typing import NamedTuple

from cosmic_ray import plugins
from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from parso.tree import NodeOrLeaf

SAME = ("Is_Eq", "IsNot_NotEq")
"""Operators that change nothing: what is compared by identity here is None, an enum's member, a type or an object."""


class Place(NamedTuple):
    """Where a mutant differs: a line, an operator, and which of its occurrences in the module."""

    line: int
    operator: str
    occurrence: int

    def mutate(self, source: str) -> str:
        """The module with this change."""
        return str(mutate_code(source, plugins.get_operator(self.operator)(), self.occurrence))


def places(source: str) -> list[Place]:
    """All that may mean something."""
    nodes, found = list(ast_nodes(get_ast(source))), []
    for name in plugins.operator_names():
        operator = plugins.get_operator(name)
        if not operator.arguments() and not name.endswith(SAME):
            spots = [(node, start[0]) for node in nodes for start, _ in operator().mutation_positions(node)]
            found += [Place(line, name, at) for at, (node, line) in enumerate(spots) if _is_code(node)]
    return found


def change(before: str, after: str) -> tuple[str, str]:
    """The lines that went, and those that came."""
    diff = list(unified_diff(before.splitlines(), after.splitlines(), n=0))[3:]
    old, new = (" ".join(line[1:].strip() for line in diff if line[0] == sign).strip() for sign in "-+")
    return old, new or f"(no {old})"


def _is_code(node: NodeOrLeaf) -> bool:
    """Whether it is evaluated when the module runs, for more than a text: no annotation, no part of an f-string."""
    while (parent := node.parent) is not None:
        text = parent.get_code().strip()
        if parent.type == "annassign":
            return node is parent.children[-1] and len(parent.children) > 2 and "TypeAlias" not in text
        if parent.type in ("fstring_expr", "tfpdef") or text == "slots=True" or text.startswith("if TYPE_CHECKING"):
            return False
        if (parent.type == "funcdef" and node is parent.annotation) or (
            parent.type == "parameters" and node.type == "operator"
        ):
            return False
        node = parent
    return True
