"""Requests that a device keeps, until it has completed them, and until their turn has come where that counts."""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Iterator

from .memory.guest import GuestMemory
from .virtio.chain import DescriptorChain


class Kept:
    """Those of one ring, each with the memory in which it lies, in the order in which they were taken.

    Under IN_ORDER that is the order in which they are given back ("In-order use of descriptors"): what is completed before
    its turn stays here, and what is done while anything `holds` it up comes here, too.
    """

    def __init__(self) -> None:
        self.in_order = False
        """The driver has taken IN_ORDER."""
        self._rows: OrderedDict[DescriptorChain, GuestMemory] = OrderedDict()
        self._completed: deque[DescriptorChain] = deque()
        self._early: set[DescriptorChain] = set()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def holds(self) -> bool:
        """What comes after these waits for them."""
        return self.in_order and bool(self._rows)

    def add(self, chain: DescriptorChain, memory: GuestMemory) -> None:
        """Keep a request that was taken behind all others."""
        with self._lock:
            self._rows[chain] = memory

    def complete(self, chain: DescriptorChain) -> None:
        """It is done, or will be in vain if nobody keeps it. From any thread."""
        self._completed.append(chain)

    def take(self) -> Iterator[tuple[DescriptorChain, GuestMemory]]:
        """What may be given back by now. One that was completed and is not kept any more is forgotten."""
        return self._due() if self._rows or self._completed else iter(())

    def _due(self) -> Iterator[tuple[DescriptorChain, GuestMemory]]:
        step = self._next_in_order if self.in_order else self._next
        while self._rows or self._completed:
            row = step()
            if row is None:
                return
            yield row

    def clear(self) -> None:
        """Keep none of them any more."""
        with self._lock:
            self._rows.clear()
            self._early.clear()

    def close(self) -> None:
        """Forget them, and what was completed."""
        self.clear()
        self._completed.clear()

    def _next(self) -> tuple[DescriptorChain, GuestMemory] | None:
        with self._lock:
            while self._completed:
                chain = self._completed.popleft()
                if memory := self._rows.pop(chain, None):
                    return chain, memory
        return None

    def _next_in_order(self) -> tuple[DescriptorChain, GuestMemory] | None:
        with self._lock:
            while self._completed:
                if (chain := self._completed.popleft()) in self._rows:
                    self._early.add(chain)
            first = next(iter(self._rows), None)
            if first is None or first not in self._early:
                return None
            self._early.remove(first)
            return first, self._rows.pop(first)
