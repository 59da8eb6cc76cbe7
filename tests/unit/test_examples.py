"""The examples work as their READMEs say, in a process of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
SECONDS = 50


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
    assert "7 passed" in done.stdout
