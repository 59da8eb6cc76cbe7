"""What a back-end maps by itself: a front-end that connects, lets it begin, and writes down what comes."""

from __future__ import annotations

import socket
import time
from typing import Final, NamedTuple, Unpack

from ..errors import Disconnected
from ..frontend import Frontend, FrontendOptions
from ..protocol.dialects import Dialect
from ..protocol.payloads import Mmap
from ..trace.describe import described
from ..trace.history import Placed
from ..trace.moment import Area, areas
from ..transport.channel import OwnedMessage
from .commands import QUEUE_SIZE
from .outcome import reach

QUIET: Final = 0.25
"""Seconds after which a back-end that has mapped something is taken to have mapped all."""
SHARED: Final = 1 << 20
"""Bytes of memory for the ring of one queue."""


class Found(NamedTuple):
    """What a back-end mapped, and how many of its requests were refused."""

    areas: list[Area]
    refused: int


class Mapped(Frontend):
    """A front-end that knows which file is mapped where."""

    def __init__(self, sock: socket.socket, **options: Unpack[FrontendOptions]) -> None:
        self.placed: dict[tuple[int, int], Placed] = {}
        self.no = self.requests = 0
        super().__init__(sock, **options)

    def on_shmem_map(self, message: OwnedMessage) -> None:
        """SHMEM_MAP: map, and write it down."""
        self.requests += 1
        super().on_shmem_map(message)
        if isinstance(body := message.body, Mmap):
            fd, now = described(message.fds[0].fileno()), time.time_ns()
            where = (body.shmid, body.shm_offset, body.len)
            self.placed[body.shmid, body.shm_offset] = Placed(0, *where, fd, body.fd_offset, body.writable, now, 0)

    def on_shmem_unmap(self, message: OwnedMessage) -> None:
        """SHMEM_UNMAP: unmap, and strike it out."""
        self.requests += 1
        super().on_shmem_unmap(message)
        if isinstance(body := message.body, Mmap):
            self.placed.pop((body.shmid, body.shm_offset), None)

    def refused(self, request: str, reason: str) -> None:
        """Count it, besides the log."""
        self.no += 1
        super().refused(request, reason)


def mapped_by(path: str, dialect: Dialect, *, wait: float, timeout: float) -> Found:
    """What the back-end at `path` maps once a queue is started: until it has mapped and is QUIET, or for `wait` seconds."""
    with reach(path, lambda: Mapped.connect(path, dialect=dialect, reply_timeout=timeout)) as frontend:
        try:
            if frontend.queue_count:
                frontend.share_memory(SHARED)
                frontend.start_queue(0, size=QUEUE_SIZE)
            _serve(frontend, time.monotonic() + wait)
        except Disconnected:
            pass  # what it had mapped until then is what there is to show
        sizes = {(0, shmid): region.size for shmid, region in frontend.shm.items()}
        return Found(areas(sizes, frontend.placed.values()), frontend.no)


def _serve(frontend: Mapped, deadline: float) -> None:
    """Answer until the deadline, or until something was mapped or refused and nothing more comes."""
    before = 0
    while (left := deadline - time.monotonic()) > 0:
        frontend.serve(min(QUIET, left))
        if frontend.requests and frontend.requests == before:
            return
        before = frontend.requests
