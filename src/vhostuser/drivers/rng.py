"""Drive an entropy device without a VM ("Entropy Device")."""

from __future__ import annotations

from typing import Final

from ..errors import RemoteProtocolError
from ..frontend import Frontend
from ..queue import TIMEOUT

LARGEST: Final = 1 << 16
"""Bytes that are asked for at a time."""


class RngDriver:
    """An entropy device: random bytes. Needs `share_memory` before; a device may take `timeout` seconds for some bytes."""

    def __init__(self, frontend: Frontend, queue: int = 0, size: int = 8, *, timeout: float = TIMEOUT) -> None:
        self.timeout = timeout
        self.queue = frontend.start_queue(queue, size=size)

    def get(self, size: int) -> bytes:
        """`size` random bytes. Raises what `Queue.exchange` does, and RemoteProtocolError if the device gives none."""
        data = b""
        while len(data) < size:
            data += self._some(min(size - len(data), LARGEST))
        return data

    def _some(self, size: int) -> bytes:
        """As many as the device gives at once: "one or more" ("Device Operation")."""
        data = self.queue.exchange(reply_size=size, timeout=self.timeout)
        if not data:
            raise RemoteProtocolError(f"the device was asked for {size} random bytes and gave none", field="len", value=0)
        return data
