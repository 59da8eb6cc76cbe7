"""Files that are disks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from vhostuser.testing import memory_file

from .requests import SECTOR, BlkRig, pattern, rig_of

SECTORS = 64


@pytest.fixture
def content() -> bytes:
    """What is on the disk at first."""
    return pattern(SECTORS * SECTOR)


@pytest.fixture(params=["disk", "memory"])
def image(request: pytest.FixtureRequest, tmp_path: Path, content: bytes) -> Iterator[Path]:
    """A disk of 64 sectors: on the file system of temporary files, and on tmpfs, which has no ZERO_RANGE."""
    if request.param == "memory":
        with memory_file(SECTORS * SECTOR // 4096, fill=content, seal=False) as fd:
            yield Path(f"/proc/self/fd/{fd.fileno()}")
        return
    path = tmp_path / "disk.img"
    path.write_bytes(content)
    yield path


@pytest.fixture
def rig(image: Path) -> Iterator[BlkRig]:
    """The disk behind a ring."""
    with rig_of(image) as made:
        yield made
