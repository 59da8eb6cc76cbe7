"""A file of some bytes, a share that serves it, and a guest in a session."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.devices.requests import pattern
from vhostuser.testing import memory_file

from .standin import Guest, StandIn, guest_of

PAGES = 64


@pytest.fixture
def content() -> bytes:
    """What is in the file."""
    return pattern(PAGES * 4096)


@pytest.fixture
def share(content: bytes) -> Iterator[StandIn]:
    """A share of one file."""
    with memory_file(PAGES, fill=content, seal=False) as fd:
        yield StandIn(fd.fileno())


@pytest.fixture
def fresh(share: StandIn) -> Iterator[Guest]:
    """A guest that has not begun."""
    with guest_of(share) as guest:
        yield guest


@pytest.fixture
def guest(fresh: Guest, share: StandIn) -> Guest:
    """A guest in a session."""
    fresh.init()
    share.calls.clear()
    return fresh
