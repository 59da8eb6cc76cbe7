"""The entropy driver."""

from __future__ import annotations

import os

import pytest

from vhostuser import DescriptorChain, RemoteProtocolError
from vhostuser.drivers.rng import LARGEST, RngDriver
from vhostuser.testing import joined

from .devices import Answering


@pytest.mark.parametrize("size", [0, 1, 100, LARGEST, LARGEST + 1])
def test_as_many_bytes_come_as_were_asked_for(size: int) -> None:
    given: list[bytes] = []

    def some(chain: DescriptorChain) -> None:
        """A piece of what is wanted: a device may give less."""
        given.append(os.urandom(min(chain.writable_size, 50_000)))
        chain.write(given[-1])

    with joined(Answering(some)) as both:
        both.frontend.share_memory(1 << 20)
        assert RngDriver(both.frontend).get(size) == b"".join(given)
        assert len(b"".join(given)) == size


def test_a_device_that_gives_nothing_breaks_the_protocol() -> None:
    with joined(Answering(lambda chain: None)) as both:
        both.frontend.share_memory(1 << 20)
        with pytest.raises(RemoteProtocolError, match="asked for 5 random bytes and gave none"):
            RngDriver(both.frontend).get(5)
