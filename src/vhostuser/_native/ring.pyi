from collections.abc import Sequence

from ..virtio.split import SplitQueue
from ..virtio.walk import Memory
from .walk import DeviceRing as DeviceRing
from .walk import RegionTable as RegionTable
from .walk import fence as fence

class SplitRing(DeviceRing):
    base: int
    def __init__(
        self,
        size: int,
        descriptors: memoryview,
        available: memoryview,
        used: memoryview,
        memory: Memory,
        table: RegionTable,
        *,
        base: int = 0,
        indirect: bool = True,
        event_idx: bool = False,
        pure: SplitQueue | None = None,
    ) -> None: ...
    def track(self, part: memoryview, counter: int, left_over: Sequence[int]) -> None: ...
    def books(self) -> tuple[int, list[int]] | None: ...
