"""A split queue that keeps the books of what it has in progress in the inflight area ("Inflight I/O tracking").

The order of stores is the specification's, and after each of them the back-end may be killed: what comes after it takes
again what was taken and not given back, and nothing else. A request is given back once the used index says so; what had to
follow then and did not is made up for.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Final

from .memory.inflight import COUNTER_MASK, SPLIT, Fields, Queue, Recovered, enter, in_progress, is_new, make_valid
from .virtio.chain import DescriptorChain

LAST_BATCH: Final = 12
USED_INDEX: Final = 14
NEXT: Final = 6
"""Where an entry has the one that was given back before it."""


class TrackedSplit:
    """A split queue whose requests are in the area: `fields`, by their heads. `used` is the ring's used index now.

    `left_over` are heads that were taken before: they come first. The next request that is taken gets `counter`.
    """

    def __init__(self, queue: Queue, fields: Fields, used: int, counter: int, left_over: Sequence[int]) -> None:
        self.queue = queue
        self._fields, self._used = fields, used
        self._again, self._counter = deque(left_over), counter
        self._batch: list[int] = []

    @property
    def size(self) -> int:
        """The ring's entries."""
        return self.queue.size

    @property
    def base(self) -> int:
        """The next available index."""
        return self.queue.base

    def books(self) -> tuple[int, list[int]]:
        """What another queue needs to go on with the books: the counter and the heads that are left over."""
        return self._counter, list(self._again)

    def pop(self) -> DescriptorChain | None:
        """What is left from before comes first, in the order in which it was taken."""
        if self._again:
            return self.queue.again(self._again.popleft(), ())
        if chain := self.queue.pop():
            enter(self._fields, split_entry(chain.head), self._counter)
            self._counter = (self._counter + 1) & COUNTER_MASK
        return chain

    def push(self, chain: DescriptorChain) -> None:
        """Give a request back; the driver sees it at the next `publish`."""
        self.queue.push(chain)
        fields = self._fields
        fields.put(split_entry(chain.head) + NEXT, 2, fields.get(LAST_BATCH, 2))
        fields.put(LAST_BATCH, 2, chain.head)
        self._batch.append(chain.head)

    def publish(self) -> bool:
        """Show the driver all that was pushed, and then forget it; whether to notify."""
        notify = self.queue.publish()
        for head in self._batch:
            self._fields.put(split_entry(head), 1, 0)
        self._used = (self._used + len(self._batch)) & 0xFFFF
        self._batch.clear()
        self._fields.put(USED_INDEX, 2, self._used)
        return notify


def split_entry(head: int) -> int:
    """Where the entry of a descriptor is."""
    return 16 + 16 * head


def recover_split(fields: Fields, size: int, used: int) -> Recovered:
    """What is in progress in a split ring of `size` whose used index is `used` now; an area that is new is made ready."""
    if is_new(fields, size):
        for head in range(fields.entries):
            fields.put(split_entry(head), 1, 0)
        fields.put(USED_INDEX, 2, used)
        make_valid(fields)
    head = fields.get(LAST_BATCH, 2)
    for _ in range(min(size, (used - fields.get(USED_INDEX, 2)) & 0xFFFF)):
        if head >= size:
            break
        fields.put(split_entry(head), 1, 0)
        head = fields.get(split_entry(head) + NEXT, 2)
    fields.put(USED_INDEX, 2, used)
    return in_progress(fields, SPLIT, size)
