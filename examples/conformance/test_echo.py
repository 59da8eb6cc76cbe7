"""A device, and the rules that its back-end has to keep."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from vhostuser.device import Device
from vhostuser.testing import listening
from vhostuser.testing.conformance import Listening, test_back_end_keeps
from vhostuser.virtio.chain import DescriptorChain

__all__ = ["test_back_end_keeps"]


class Echo(Device):
    """Writes back what it reads, as far as there is room."""

    queue_sizes = (256,)

    def process(self, queue: int, chain: DescriptorChain) -> None:
        chain.write(chain.read()[: chain.writable_size])


@pytest.fixture(scope="module")
def back_end_peer() -> Iterator[Listening]:
    with listening(Echo()) as (path, _):
        yield Listening(path)
