from collections.abc import Callable

from .handler import Handler
from .handover import Handover
from .walk import DeviceRing

class OpenFiles(Handler):
    @property
    def reads(self) -> int: ...
    @property
    def bytes_read(self) -> int: ...
    def serve_with(
        self,
        answer: Callable[[bytes, int], bytes],
        late: dict[bytes, bytes],
        ring: DeviceRing,
        handover: Handover,
        epoch: int,
        kick: int,
        waker: int,
        spin: int,
    ) -> int: ...
    def add(self, fh: int, nodeid: int, fd: int, owner: object) -> None: ...
    def remove(self, fh: int) -> None: ...
    def clear(self) -> None: ...
    def busy(self) -> list[tuple[float, int]]: ...
