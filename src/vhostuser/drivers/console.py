"""Drive a console without a VM ("Console Device"): its port 0."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Final

from ..errors import DeadlineExpired, Disconnected
from ..frontend import Frontend
from ..queue import TIMEOUT
from ..virtio.console import RECEIVE, TRANSMIT, ConsoleConfig, ConsoleFeature

PIECE: Final = 1 << 16
"""Bytes that are sent at a time."""


class ConsoleDriver:
    """A console: bytes to its output, and bytes from its input. Needs `share_memory` before.

    `size` buffers of `room` bytes each wait for input. A device may take `timeout` seconds to take what is written.
    """

    def __init__(self, frontend: Frontend, *, size: int = 16, room: int = 4096, timeout: float = TIMEOUT) -> None:
        self.timeout = timeout
        self._frontend, self._room = frontend, room
        self.receiving = frontend.start_queue(RECEIVE, size=size)
        self.sending = frontend.start_queue(TRANSMIT, size=size)
        for _ in range(size):
            self._post()
        self.receiving.notify()

    @property
    def terminal_size(self) -> tuple[int, int] | None:
        """Columns and rows of the console, if it has a size. For a Frontend with ConsoleFeature.SIZE in its `features`."""
        if f"BIT_{ConsoleFeature.SIZE:d}" not in self._frontend.features:
            return None
        config = ConsoleConfig.unpack(self._frontend.config(0, 4))
        return config.cols, config.rows

    def write(self, data: bytes) -> None:
        """Send bytes to the console's output; returns when the device has taken them. Raises as `Queue.exchange`."""
        for start in range(0, len(data), PIECE):
            self.sending.exchange(data[start : start + PIECE], timeout=self.timeout)

    def read(self, timeout: float = TIMEOUT) -> bytes:
        """The bytes of the console's input that are there, or the first that come in `timeout` seconds; else none."""
        deadline = time.monotonic() + timeout
        while True:
            try:
                done = self.receiving.completions(max(0.0, deadline - time.monotonic()))
            except DeadlineExpired:
                return b""
            for _ in done:
                self._post()
            self.receiving.notify()
            if data := b"".join(each.data for each in done):
                return data

    def __iter__(self) -> Iterator[bytes]:
        """The bytes of the input as they come, until the back-end goes."""
        while True:
            try:
                data = self.read(TIMEOUT)
            except Disconnected:
                return
            if data:
                yield data

    def _post(self) -> None:
        """Give the device one buffer more for input."""
        self.receiving.submit([], [self._room])
