"""Nothing is left of either side, without help of the garbage collector."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from vhostuser.testing import leaving_nothing


@pytest.fixture(autouse=True)
def nothing_stays() -> Iterator[None]:
    """No fd, shared mapping or thread."""
    with leaving_nothing():
        yield
