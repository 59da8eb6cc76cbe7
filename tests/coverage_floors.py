"""Run the tests of the rooms below the two sides under coverage, in pure Python, for what is compiled has none: floors."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOMS = ("protocol", "virtio", "memory")
LINES, BRANCHES = 95.0, 90.0
"""Per cent of each room."""

TESTS = ("tests/unit", "tests/property", "tests/shmem")


class Room(NamedTuple):
    """What the tests reached of one room."""

    name: str
    lines: float
    branches: float

    @property
    def holds(self) -> bool:
        """Neither floor is broken."""
        return self.lines >= LINES and self.branches >= BRANCHES


def measure(folder: Path) -> list[Room]:
    """Run the tests and report each room. Raises subprocess.CalledProcessError if a test fails."""
    environment = os.environ | {"COVERAGE_FILE": str(folder / "data"), "VHOSTUSER_PURE": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-n", "auto", "--reruns", "1", "--cov", "--cov-report="]
    command += ["--ignore=tests/unit/test_readme.py", *TESTS]
    subprocess.run(command, env=environment, check=True)
    report = folder / "report.json"
    subprocess.run([sys.executable, "-m", "coverage", "json", "-q", "-o", report], env=environment, check=True)
    files = json.loads(report.read_text())["files"]
    return [_room(name, files) for name in ROOMS]


def _room(name: str, files: dict[str, dict[str, dict[str, int]]]) -> Room:
    rows = [each["summary"] for path, each in files.items() if f"vhostuser/{name}/" in path]
    return Room(
        name,
        _percent(rows, "covered_lines", "num_statements"),
        _percent(rows, "covered_branches", "num_branches"),
    )


def _percent(rows: list[dict[str, int]], part: str, whole: str) -> float:
    """A room that has nothing to cover was not found: that is no coverage."""
    total = sum(row[whole] for row in rows)
    return 100 * sum(row[part] for row in rows) / total if total else 0.0


def main() -> int:
    """Print each room; 1 if a floor is broken or a test fails."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            rooms = measure(Path(folder))
        except subprocess.CalledProcessError as error:
            print(f"coverage was not measured: {error}", file=sys.stderr)
            return 1
    print(f"{'room':<10} {'lines':>8} {'branches':>9}   (floors: {LINES:g} %, {BRANCHES:g} %)")
    for room in rooms:
        print(f"{room.name:<10} {room.lines:>6.1f} % {room.branches:>7.1f} %   {'' if room.holds else 'below the floor'}")
    return 0 if all(room.holds for room in rooms) else 1


if __name__ == "__main__":
    sys.exit(main())
