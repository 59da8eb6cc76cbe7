"""A device that shows a picture in its shared memory where the driver asks for it."""

from __future__ import annotations

import os
import signal
import sys
from types import MappingProxyType

from vhostuser import Backend, DescriptorChain, Device, VhostUserError

PICTURE = 2 << 20
DONE, REFUSED = b"\0", b"\1"


class Gallery(Device):
    """Each request is an offset of 8 bytes; its answer one byte: 0, or 1 if the picture can't be there."""

    virtio_id = 42
    queue_sizes = (256,)
    shared_memory = MappingProxyType({0: 64 << 20})

    def __init__(self, picture: str | os.PathLike[str]) -> None:
        self.picture = picture

    def process(self, queue: int, chain: DescriptorChain) -> None:
        offset = int.from_bytes(chain.read(8), "little")
        try:
            with open(self.picture, "r+b") as picture:
                self.shm[0].map(picture, shm_offset=offset, len=PICTURE)
            chain.write(DONE)
        except VhostUserError:
            chain.write(REFUSED)


if __name__ == "__main__":
    backend = Backend(Gallery(sys.argv[2]))
    for ending in (signal.SIGTERM, signal.SIGINT):
        signal.signal(ending, lambda *_: backend.stop())
    backend.serve(sys.argv[1])
