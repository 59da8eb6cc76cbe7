"""Both roles with a hostile peer, and nothing left behind by it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import pytest

from vhostuser import Frontend
from vhostuser.testing import RawBackend, ServedRawFrontend, leaving_nothing, raw_frontend

from .devices import Scripted


class Attacked(NamedTuple):
    """Our Frontend and the back-end that attacks it."""

    raw: RawBackend
    frontend: Frontend


@pytest.fixture(autouse=True)
def nothing_stays() -> Iterator[None]:
    """No fd, shared mapping or thread, without help of the garbage collector."""
    with leaving_nothing():
        yield


@pytest.fixture
def raw() -> Iterator[ServedRawFrontend]:
    """A hostile front-end at our Backend, which has agreed on all features."""
    with raw_frontend(Scripted(), partial_timeout=0.2, reply_timeout=5) as raw:
        raw.negotiate()
        yield raw


@pytest.fixture
def attacked() -> Iterator[Attacked]:
    """A hostile back-end at our Frontend."""
    with RawBackend() as raw, raw.frontend(partial_timeout=0.2, reply_timeout=5) as frontend:
        yield Attacked(raw, frontend)
