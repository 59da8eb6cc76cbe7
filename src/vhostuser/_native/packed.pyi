from ..virtio.packed import PackedQueue
from ..virtio.walk import Memory
from .walk import DeviceRing, RegionTable

class PackedRing(DeviceRing):
    def __init__(
        self,
        size: int,
        descriptors: memoryview,
        driver_event: memoryview,
        device_event: memoryview,
        memory: Memory,
        table: RegionTable,
        *,
        base: int = 0x80008000,
        indirect: bool = True,
        event_idx: bool = False,
        pure: PackedQueue | None = None,
    ) -> None: ...
    @property
    def base(self) -> int: ...
