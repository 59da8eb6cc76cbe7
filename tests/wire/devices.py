"""Devices that the tests script."""

from __future__ import annotations

import threading
from collections.abc import Callable

from vhostuser import DescriptorChain, Device

MIB = 1 << 20
Work = Callable[["Scripted", bytes], bytes]


def echo(device: Scripted, request: bytes) -> bytes:
    """Give back what came."""
    return request


class Scripted(Device):
    """Does for each request what the test says: takes its bytes and gives those of the answer."""

    virtio_id = 42
    queue_sizes = (256, 16)
    config = bytes(range(16))

    def __init__(self, work: Work = echo, regions: dict[int, int] | None = None) -> None:
        self.work = work
        self.shared_memory = {0: MIB, 5: 1 << 16} if regions is None else regions
        self.ready = threading.Event()
        self.written: list[tuple[int, bytes]] = []
        self.resets = 0

    def process(self, queue: int, chain: DescriptorChain) -> None:
        chain.write(self.work(self, chain.read()))

    def driver_ready(self) -> None:
        self.ready.set()

    def reset(self) -> None:
        self.resets += 1
        self.ready.clear()


class Writable(Scripted):
    """Takes writes to its configuration space."""

    def write_config(self, offset: int, data: bytes) -> None:
        self.written.append((offset, data))
