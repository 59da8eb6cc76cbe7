"""What completes the requests that a device keeps, in any order, in a thread of its own."""

from __future__ import annotations

import contextlib
import queue
import random
import threading

from vhostuser import KEEP, DescriptorChain, Device
from vhostuser.device import Keep


class Shuffler:
    """Takes the requests of a device, and completes those that have come together in another order."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._rows: queue.SimpleQueue[tuple[int, DescriptorChain] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="shuffler", daemon=True)
        self._thread.start()

    def keep(self, number: int, chain: DescriptorChain) -> Keep:
        """Complete a request of queue `number` soon."""
        self._rows.put((number, chain))
        return KEEP

    def close(self) -> None:
        """End the thread, once it has completed all that it has."""
        self._rows.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (row := self._rows.get()) is not None:
            rows = [row]
            with contextlib.suppress(queue.Empty):
                while (row := self._rows.get_nowait()) is not None:
                    rows.append(row)
                self._rows.put(None)
            random.shuffle(rows)
            for number, chain in rows:
                self._device.complete(number, chain)
