"""The soak in which processes are killed, for a few seconds."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

SOAK = Path(__file__).parents[2] / "benchmarks" / "soak_kill.py"


@pytest.mark.once
@pytest.mark.timeout(180)
def test_killed_processes_lose_nothing_leak_nothing_and_disturb_nobody() -> None:
    command = [sys.executable, str(SOAK), "--minutes", "0.1", "--every", "2"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (kills := re.search(r"(\d+) back-ends and (\d+) front-ends killed", done.stdout))
    assert min(map(int, kills.groups())) >= 1
    assert done.stdout.count("as before") == 3
