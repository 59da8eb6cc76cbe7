"""Devices that have what rules are about: queues, a configuration, regions, mappings."""

from __future__ import annotations

from types import MappingProxyType

from vhostuser.device import Device
from vhostuser.testing import memory_file
from vhostuser.virtio.chain import DescriptorChain

PAGE = 4096


class Plain(Device):
    """Gives back what it reads, as far as there is room. Without regions it offers memory slots."""

    virtio_id = 42
    queue_sizes = (256, 256)
    config = bytes(range(64))

    def process(self, queue: int, chain: DescriptorChain) -> None:
        chain.write(chain.read()[: chain.writable_size])


class Everything(Plain):
    """The same with two regions, and maps nothing by itself."""

    shared_memory = MappingProxyType({0: 1 << 21, 7: 1 << 12})


class Mapping(Everything):
    """The same, and maps three files when a driver takes it."""

    def driver_ready(self) -> None:
        for number in range(3):
            with memory_file(2) as file:
                self.shm[0].map(file, shm_offset=number * 2 * PAGE, len=2 * PAGE, writable=number == 1)
