"""A back-end that sends any mapping to our Frontend, and our device with our Frontend; nothing is left of either."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import pytest

from tests.memory_map import areas
from tests.wire.devices import Scripted
from vhostuser import Frontend
from vhostuser.testing import RawBackend, Wire, joined, leaving_nothing

PAGE = 4096
PAGES = 16
SIZES = {0: PAGES * PAGE, 5: 4 * PAGE, 7: 1 << 30}


@pytest.fixture(autouse=True)
def nothing_stays() -> Iterator[None]:
    """No fd, shared mapping or thread, without help of the garbage collector."""
    with leaving_nothing():
        yield


class Sending(NamedTuple):
    """The front-end, and the back-end channel on which a test sends; what it sends is handled at once."""

    frontend: Frontend
    channel: Wire

    def shown(self) -> list[object]:
        """All that must be as before after a refusal: the kernel's map, the mappings, the counters."""
        regions = self.frontend.shm.values()
        counters = self.frontend.counters
        return [
            *(areas(region.address, region.address + region.size) for region in regions),
            *(region.mappings for region in regions),
            (counters.maps, counters.unmaps),
        ]


@pytest.fixture
def sending() -> Iterator[Sending]:
    """Regions 0 (16 pages), 5 (4 pages) and 7 (1 GiB) of a raw back-end."""
    with RawBackend(shared_memory=SIZES) as raw, raw.frontend(partial_timeout=0.2, reply_timeout=5) as frontend:
        yield Sending(frontend, raw.channel)


class Pair(NamedTuple):
    """A device whose driver is ready, and the front-end that serves it: in one process, over a socket."""

    device: Scripted
    frontend: Frontend

    def ask(self) -> bytes:
        """Let the device do its work; what it answered."""
        return self.frontend._queues[0].exchange(b"go", 64)


@pytest.fixture
def device() -> Scripted:
    return Scripted(regions=SIZES)


@pytest.fixture
def pair(device: Scripted) -> Iterator[Pair]:
    """Our two sides, with a queue started."""
    with joined(device, reply_timeout=5) as both:
        both.frontend.share_memory(1 << 20)
        both.frontend.start_queue(0, size=16)
        yield Pair(device, both.frontend)
