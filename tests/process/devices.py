"""Devices that processes of their own serve."""

from __future__ import annotations

import os

from vhostuser import DescriptorChain, Device, MapRequest
from vhostuser.testing import sparse_file

PAGE = 4096


class Many(Device):
    """Maps as many pages as it is asked for, opens 64 files, and says its process's fds."""

    queue_sizes = (16,)
    shared_memory = {0: 1 << 26}  # noqa: RUF012  # as users write it

    def process(self, queue: int, chain: DescriptorChain) -> None:
        count = int.from_bytes(chain.read(), "little")
        with sparse_file(PAGE) as file:
            self.shm[0].map_many([MapRequest(file, shm_offset=2 * at * PAGE, len=PAGE) for at in range(count)])
        chain.write(len(os.listdir("/proc/self/fd")).to_bytes(4, "little"))


class Echo(Device):
    """Gives back what came; has no shared memory regions."""

    queue_sizes = (16,)

    def process(self, queue: int, chain: DescriptorChain) -> None:
        chain.write(chain.read())


class Swallow(Device):
    """Takes requests and does nothing."""

    queue_sizes = (256,)

    def process(self, queue: int, chain: DescriptorChain) -> None:
        pass
