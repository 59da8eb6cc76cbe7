"""A front-end, and the rules that it has to keep."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from vhostuser.frontend import Frontend
from vhostuser.testing.conformance import Called, test_front_end_keeps

__all__ = ["test_front_end_keeps"]


def front_end(path: str) -> None:
    """Connect, start a ring, and serve the back-end until it is gone: what a VMM does, without a VM."""
    with Frontend.connect(path) as frontend:
        frontend.share_memory(1 << 16)
        frontend.start_queue(0, size=16)
        frontend.serve()


@pytest.fixture(scope="module")
def front_end_peer() -> Iterator[Called]:
    with Called(front_end) as peer:
        yield peer
