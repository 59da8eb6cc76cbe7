"""Tests here are marked `vm`: what they need is fetched with QEMU, and missing as it is."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.vm.conftest import qemu

__all__ = ["qemu"]


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory whose name leaves room for a socket's."""
    with tempfile.TemporaryDirectory(prefix="vhu") as folder:
        yield Path(folder)
