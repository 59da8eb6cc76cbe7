"""The back-end process of `vhu demo`: a device that maps and unmaps what its driver asks for."""

from __future__ import annotations

import logging
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import MappingProxyType
from typing import Final

from ..backend import Backend
from ..device import Device
from ..errors import VhostUserError
from ..virtio.chain import DescriptorChain

REGION: Final = 64 << 20
ANSWER: Final = 512
"""Bytes that an answer may have."""


class DemoDevice(Device):
    """Takes `map NAME OFFSET ro|rw`, `unmap OFFSET LEN` and `forget`; answers `done`, or why not."""

    virtio_id = 42
    queue_sizes = (64,)
    shared_memory = MappingProxyType({0: REGION})

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def process(self, queue: int, chain: DescriptorChain) -> None:
        """Do what one request says."""
        verb, *arguments = chain.read().decode().split()
        try:
            perform = _VERBS[verb]
            perform(self, *arguments)
            answer = "done"
        except VhostUserError as error:
            answer = str(error)
        chain.write(answer.encode()[:ANSWER])

    def _map(self, name: str, offset: str, access: str) -> None:
        path = self._directory / name
        with open(path, "r+b") as file:
            size = path.stat().st_size
            self.shm[0].map(file, shm_offset=int(offset, 16), len=size, writable=access == "rw")

    def _unmap(self, offset: str, size: str) -> None:
        self.shm[0].unmap(shm_offset=int(offset, 16), len=int(size, 16))

    def _forget(self) -> None:
        """Forget what is mapped, as a faulty back-end might, so that nothing here stops a request that is wrong."""
        self.shm[0].forget()


_VERBS: Final[dict[str, Callable[..., None]]] = {
    "map": DemoDevice._map,
    "unmap": DemoDevice._unmap,
    "forget": DemoDevice._forget,
}


def main() -> None:
    """Serve the front-end at the other end of socket argv[1] with the files in directory argv[2]."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    logging.basicConfig(level=logging.ERROR)
    Backend(DemoDevice(Path(sys.argv[2]))).serve_fd(int(sys.argv[1]))


if __name__ == "__main__":
    main()
