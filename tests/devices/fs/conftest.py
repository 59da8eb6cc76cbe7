"""A share of an empty directory, and who asks it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from vhostuser.devices.fs.dax.copy import CopyWindow
from vhostuser.devices.fs.options import Handles, ShareOptions
from vhostuser.shared_memory import SharedMemory

from .guest import Guest

PAGE = 4096
KEPT = [Handles.NEVER] if os.geteuid() else [Handles.NEVER, Handles.MANDATORY]
"""How inodes are kept: only root can open files by their handles."""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The directory that is shared; beside it, and not in it, is the file `secret`."""
    (tmp_path / "secret").write_bytes(b"secret")
    shared = tmp_path / "shared"
    shared.mkdir(mode=0o755)
    return shared


@pytest.fixture(params=KEPT, ids=[f"handles {each.value}" for each in KEPT])
def guest(root: Path, request: pytest.FixtureRequest) -> Iterator[Guest]:
    """One with the default options, but for handles."""
    with Guest(root, ShareOptions(inode_file_handles=request.param)) as made:
        yield made


def nowhere() -> SharedMemory:
    raise RuntimeError("the window is not mapped")


@pytest.fixture
def window() -> Iterator[CopyWindow]:
    """A window of four pages that takes stores, in front of no front-end."""
    made = CopyWindow(4 * PAGE, nowhere, write=True)
    yield made
    made.close()
