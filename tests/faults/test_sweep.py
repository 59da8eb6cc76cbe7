"""Each operation meets each fault of each system call that it makes: it works, or fails whole and works the next time.

`VHOSTUSER_FAULTS=thorough` tries all places, more errnos, and each of them for good, too; names of calls try only those.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from .device_operations import OPERATIONS
from .shim import COMPILER, build

WORDS = os.environ.get("VHOSTUSER_FAULTS", "").split()
pytestmark = pytest.mark.skipif(COMPILER is None, reason="the shim that makes system calls fail needs a C compiler")


@pytest.fixture(scope="session")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("shim"))


@pytest.mark.timeout(3600 if WORDS else 120)
@pytest.mark.parametrize("group", sorted({operation.group for operation in OPERATIONS.values()}))
def test_an_operation_works_or_fails_whole(group: str, shim: Path) -> None:
    names = [name for name, operation in OPERATIONS.items() if operation.group == group]
    command = [sys.executable, "-W", "error", "-m", "tests.faults.sweep", ",".join(names), *WORDS]
    environment = {**os.environ, "LD_PRELOAD": str(shim), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert {name: found["problems"] for name, found in said.items() if found["problems"]} == {}
    if not WORDS:
        assert [name for name in names if not sum(said[name]["trials"].values())] == [], "no call was made to fail"
