"""The examples work as their READMEs say, in a process of their own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
SECONDS = 150
PASSED = {"gallery": 9, "conformance": 540}
"""How many tests pass at least."""


def test_the_end_that_the_gallery_shows_is_the_one_that_it_has() -> None:
    (shown,) = re.findall(r"^```python\n(.*?)^```", (EXAMPLES / "gallery/README.md").read_text(), re.MULTILINE | re.DOTALL)
    assert textwrap.indent(shown, "    ") in (EXAMPLES / "gallery/gallery.py").read_text()


@pytest.mark.parametrize("name", [each.name for each in sorted(EXAMPLES.iterdir()) if (each / "README.md").exists()])
def test_the_tests_of_an_example_pass(name: str) -> None:
    assert "python -m pytest" in (EXAMPLES / name / "README.md").read_text()
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider", "-p", "no:randomly"],
        cwd=EXAMPLES / name,
        env={key: value for key, value in os.environ.items() if not key.startswith(("PYTEST", "COV", "PYTHONOPTIMIZE"))},
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (passed,) = re.findall(r"(\d+) passed", done.stdout)
    assert int(passed) >= PASSED[name]
