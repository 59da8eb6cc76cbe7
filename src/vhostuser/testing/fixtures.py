"""Fixtures for pytest, for people who test a back-end or a device of their own.

In a conftest.py: `pytest_plugins = ["vhostuser.testing.fixtures"]`. Each fixture closes at the test's end all that it made,
and fails the test if its wait has no end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from ..frontend import Frontend
from .pair import joined, raw_frontend
from .raw_backend import RawBackend
from .raw_frontend import RawFrontend
from .usage import leaving_nothing

__all__ = ["drive", "nothing_left", "provoke", "raw_backend"]


@pytest.fixture
def drive() -> Iterator[Callable[..., Frontend]]:
    """`drive(device, **options)`: a Frontend (with these options) whose back-end serves `device` in a thread."""
    with ExitStack() as ends:
        yield lambda device, **options: ends.enter_context(joined(device, **options)).frontend


@pytest.fixture
def provoke() -> Iterator[Callable[..., RawFrontend]]:
    """`provoke(device, **options)`: a RawFrontend, which sends anything, and a Backend (with these options) behind it."""
    with ExitStack() as ends:
        yield lambda device, **options: ends.enter_context(raw_frontend(device, **options))


@pytest.fixture
def raw_backend() -> Iterator[RawBackend]:
    """A RawBackend, which answers as told; its `frontend()` is the Frontend under test."""
    with RawBackend() as raw:
        yield raw


@pytest.fixture
def nothing_left() -> Iterator[None]:
    """The test leaves no fd, shared mapping or thread behind. Name it first: what comes after it ends before it."""
    with leaving_nothing():
        yield
