"""Devices that processes of their own serve."""

from __future__ import annotations

from vhostuser import DescriptorChain, Device

FILL = b"\xa5"


class Filler(Device):
    """Reads all that it may read and fills all that it may write, with what is no address of anything; or echoes."""

    queue_sizes = (256, 256)

    def process(self, queue: int, chain: DescriptorChain) -> None:
        request = chain.read()
        chain.write(request if queue else FILL * chain.writable_size)


class Reader(Device):
    """Reads from the host's file that the request names, however long that takes."""

    queue_sizes = (16,)

    def process(self, queue: int, chain: DescriptorChain) -> None:
        with open(chain.read(), "rb") as file:
            chain.write(file.read(1))
