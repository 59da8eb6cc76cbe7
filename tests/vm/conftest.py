"""Tests here are marked `vm`. Without QEMU those that need it are skipped, or fail if VHOSTUSER_REQUIRE_VM says so."""

from __future__ import annotations

import os
import subprocess
from functools import cache
from pathlib import Path

import pytest

from vhostuser.vm import tree

REQUIRED = "VHOSTUSER_REQUIRE_VM"
ADVICE = "run `make vm` once, with a network"


@pytest.fixture
def qemu() -> None:
    """The test needs QEMU."""
    if reason := unavailable(tree.cache_folder()):
        give_up(reason)


def give_up(reason: str) -> None:
    """Skip the test, or fail it if QEMU is required here."""
    if os.environ.get(REQUIRED, "0") not in ("", "0"):
        pytest.fail(f"{reason} ({REQUIRED} is set)", pytrace=False)
    pytest.skip(reason)


@cache
def unavailable(folder: Path) -> str | None:
    """Why the QEMU in this cache folder can't be used, if it can't."""
    if not tree.is_fetched():
        return f"no QEMU in {folder}: {ADVICE}"
    try:
        done = subprocess.run(
            [*tree.qemu_command(), "--version"], stdin=subprocess.DEVNULL, capture_output=True, timeout=30, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"the QEMU in {folder} does not run ({error}): remove that folder, then {ADVICE}"
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip()
        return f"the QEMU in {folder} ends with {done.returncode} ({said}): remove that folder, then {ADVICE}"
    return None
