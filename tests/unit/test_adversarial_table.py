"""docs/adversarial.md has a row for each hostile case, in their order, and each row names tests that exist."""

from __future__ import annotations

import ast
import re
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest

pytestmark = pytest.mark.once

TESTS = Path(__file__).resolve().parents[1]
IDS = (TESTS / "data/adversarial_ids.txt").read_text().split()
LINES = [line for line in (TESTS.parent / "docs/adversarial.md").read_text().splitlines() if re.match(r"\| [A-Z]+\d", line)]
ROWS = [tuple(cell.strip() for cell in line.strip("|").split("|")) for line in LINES]
GROUPS = ["W", "SH", "M", "Q", "F", "P"]
SHORTEST = 3
"""Characters of a parameter's name that a test module must have somewhere."""


@cache
def module(path: str) -> ast.Module:
    return ast.parse((TESTS.parent / path).read_text())


def defined(body: list[ast.stmt], name: str) -> ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | None:
    """The function or class of that name."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    return next((each for each in body if isinstance(each, kinds) and each.name == name), None)


def is_assigned(body: list[ast.stmt], name: str) -> bool:
    """The module makes a class of tests of that name, as Hypothesis has it for machines."""
    targets = [each for row in body if isinstance(row, ast.Assign) for each in row.targets]
    return any(isinstance(each, ast.Name) and each.id == name for each in targets) or bool(defined(body, name))


def has_parameter(tree: ast.Module, parameter: str) -> bool:
    """Some string of the module is that name, or begins it; a `*` stands for any end."""
    strings = {each.value for each in ast.walk(tree) if isinstance(each, ast.Constant) and isinstance(each.value, str)}
    wanted = parameter.removesuffix("*")
    if wanted != parameter:
        return any(each.startswith(wanted) for each in strings)
    return wanted in strings or any(len(each) >= SHORTEST and wanted.startswith(each) for each in strings)


def exists(node: str) -> bool:
    """A test of that name is there for pytest: `path::name`, `path::Class::name`, either with `[parameter]`."""
    found = re.fullmatch(r"(tests/[\w/]+\.py)((?:::\w+)+)(?:\[([^]]+)\])?", node)
    if not found or not (TESTS.parent / found[1]).is_file():
        return False
    body = module(found[1]).body
    *classes, name = found[2].removeprefix("::").split("::")
    for each in classes:
        outer = defined(body, each)
        if not isinstance(outer, ast.ClassDef):
            return False
        body = outer.body
    if name.startswith("Test"):
        return found[3] is None and is_assigned(body, name)
    test = defined(body, name)
    if not name.startswith("test_") or test is None or isinstance(test, ast.ClassDef):
        return False
    return found[3] is None or (bool(test.decorator_list or test.args.args) and has_parameter(module(found[1]), found[3]))


def nodes(cell: str) -> list[str]:
    """The tests in a cell."""
    return re.findall(r"`([^`]+)`", cell)


def test_each_case_has_its_row_in_order() -> None:
    assert [row[0] for row in ROWS] == IDS


def test_the_cases_are_in_order_and_none_is_there_twice() -> None:
    parts = [re.fullmatch(r"([A-Z]+)(\d\d)", each) for each in IDS]
    keys = [(GROUPS.index(part[1]), int(part[2])) for part in parts if part]
    assert len(keys) == len(IDS)
    assert all(before < after for before, after in pairwise(keys))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_a_row_says_what_is_given_what_is_expected_and_which_tests_show_it(row: tuple[str, ...]) -> None:
    assert len(row) == 5
    case, given, expected, tests, _ = row
    assert given
    assert expected
    assert nodes(tests), f"{case} has no test"
    assert [node for node in nodes(tests) if not exists(node)] == []
    assert len(set(nodes(tests))) == len(nodes(tests))
    assert re.sub(r"`[^`]+`", "", tests).strip(", ") == "", f"{case} has words among its tests"


def test_a_test_of_a_share_that_is_named_after_a_case_is_of_one_that_there_is() -> None:
    for path in (*TESTS.glob("devices/fs/test_*.py"), *TESTS.glob("cli/test_fs*.py"), *TESTS.glob("fuse/test_*.py")):
        for each in module(str(path.relative_to(TESTS.parent))).body:
            found = re.match(r"test_(f\d\d)_", getattr(each, "name", ""))
            assert not found or found[1].upper() in IDS, (path.name, found)


def test_what_does_not_exist_is_found_out() -> None:
    here = "tests/unit/test_adversarial_table.py"
    assert exists(f"{here}::test_each_case_has_its_row_in_order")
    for wrong in (
        f"{here}::test_of_nothing",
        f"{here}::exists",
        "tests/unit/test_of_nothing.py::test_it",
        f"{here}::Class::test_each_case_has_its_row_in_order",
        f"{here}::test_each_case_has_its_row_in_order[one]",
        f"{here}::test_a_row_says_what_is_given_what_is_expected_and_which_tests_show_it[no such {'name'}*]",
        here,
    ):
        assert not exists(wrong), wrong
