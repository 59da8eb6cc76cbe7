"""A queue of each format, and nothing left behind by all of a module's tests, without help of the garbage collector."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.wire.devices import Scripted
from vhostuser.testing import leaving_nothing

from .rig import KINDS, Connected, connected


@pytest.fixture(autouse=True, scope="module")
def nothing_stays() -> Iterator[None]:
    """No fd, shared mapping or thread."""
    with leaving_nothing():
        yield


@pytest.fixture(params=KINDS)
def rig(request: pytest.FixtureRequest) -> Iterator[Connected]:
    """Queue 0, of 8 entries, of a device that echoes."""
    with connected(Scripted(), KINDS[request.param]) as rig:
        yield rig
