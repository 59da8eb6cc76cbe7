"""docs/adversarial-fs.md names tests that exist, for each case; and no test is named after a case that is none."""

from __future__ import annotations

import ast
import re
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
ROWS = re.findall(r"^\| (F\d\d) \|.*?\| (.*) \|$", (TESTS.parent / "docs/adversarial-fs.md").read_text(), re.MULTILINE)
CASES = [1, 2, 3, 6, 7, 9, 10, 12, 13, 14, 15, 17, 19, 20, 21, 23, 24, 25, 26, 27, 30, 32, 35, 38, 39, 40, 41]


def functions(path: str) -> set[str]:
    """The functions of a test module."""
    return {each.name for each in ast.parse((TESTS / path).read_text()).body if isinstance(each, ast.FunctionDef)}


def test_each_case_has_a_row_with_tests_that_exist() -> None:
    assert [case for case, _ in ROWS] == [f"F{number:02}" for number in CASES]
    for case, cell in ROWS:
        for part in cell.split("; "):
            path, *names = re.findall(r"`([^`]+)`", part)
            assert names, (case, path)
            assert set(names) <= functions(path), (case, path, set(names) - functions(path))


def test_a_test_named_after_a_case_is_of_one_that_there_is() -> None:
    known = {f"f{number:02}" for number in CASES}
    for path in (*TESTS.glob("devices/fs/test_*.py"), *TESTS.glob("cli/test_fs*.py"), *TESTS.glob("fuse/test_*.py")):
        for name in functions(str(path.relative_to(TESTS))):
            assert not (found := re.match(r"test_(f\d\d)_", name)) or found[1] in known, (path.name, name)
