"""A device that has what rules are about: queues, a configuration, two regions."""

from __future__ import annotations

from types import MappingProxyType

from vhostuser.device import Device
from vhostuser.virtio.chain import DescriptorChain


class Everything(Device):
    """Gives back what it reads, as far as there is room; maps nothing by itself."""

    virtio_id = 42
    queue_sizes = (256, 256)
    config = bytes(range(64))
    shared_memory = MappingProxyType({0: 1 << 21, 7: 1 << 12})

    def process(self, queue: int, chain: DescriptorChain) -> None:
        chain.write(chain.read()[: chain.writable_size])
