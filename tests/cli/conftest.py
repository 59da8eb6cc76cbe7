"""Files to map, and a place for sockets."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from .programs import PAGE


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory whose name leaves room for a socket's."""
    with tempfile.TemporaryDirectory(prefix="vhu") as name:
        yield Path(name)


@pytest.fixture
def sock(place: Path) -> Path:
    """A path for a socket; nothing is there."""
    return place / "s"


@pytest.fixture
def file(place: Path) -> Path:
    """A file of two pages."""
    path = place / "file.bin"
    path.write_bytes(os.urandom(2 * PAGE))
    return path


@pytest.fixture
def notes(place: Path) -> Path:
    """A file of one page."""
    path = place / "notes.bin"
    path.write_bytes(os.urandom(PAGE))
    return path
