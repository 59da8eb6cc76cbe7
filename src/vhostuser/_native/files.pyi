from collections.abc import Callable

from .handler import Handler
from .handover import Handover
from .opened import OpenFiles
from .walk import DeviceRing

class ShareRequests(Handler):
    def __init__(self, files: OpenFiles) -> None: ...
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
