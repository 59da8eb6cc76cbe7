"""The memory that a front-end shares with its back-end: an arena for its queues, and blocks besides."""

from __future__ import annotations

from .asking import Asking
from .errors import Disconnected, LocalProtocolError
from .memory.added import AddedBlock, AddedMemory
from .memory.arena import Arena
from .protocol.numbers import FrontendRequest
from .protocol.payloads import MemoryTable

Q = FrontendRequest


class Sharing:
    """All that one front-end shares."""

    def __init__(self, asking: Asking) -> None:
        self._asking = asking
        self._added = AddedMemory()
        self.arena: Arena | None = None
        """Where the queues and their buffers lie, once there is memory."""
        self._closed = False

    def share(self, size: int) -> None:
        """Make the arena and tell the back-end ("SET_MEM_TABLE"). Once."""
        self._check_open("share_memory")
        if self.arena is not None:
            raise LocalProtocolError("memory is shared already", request="SET_MEM_TABLE")
        arena = Arena(size)
        try:
            self._tell(arena)
        except BaseException:
            arena.close()
            raise
        self.arena = arena

    def needed(self, by: str, request: str) -> Arena:
        """The arena; LocalProtocolError if there is none yet, which `by` needs before it sends `request`."""
        self._check_open(by)
        if self.arena is None:
            raise LocalProtocolError(f"{by} needs share_memory first", request=request)
        return self.arena

    def add(self, size: int) -> AddedBlock:
        """Share a block more ("ADD_MEM_REG")."""
        block = self._added.make(size, self.needed("add_memory", "ADD_MEM_REG").region.size)
        try:
            self._tell_of(block)
        except BaseException:
            block.close()
            raise
        self._added.keep(block)
        return block

    def remove(self, block: AddedBlock) -> None:
        """Take a block away again ("REM_MEM_REG")."""
        self._asking.request(Q.REM_MEM_REG, block.region)
        self._added.forget(block)

    def resume(self) -> None:
        """Tell another back-end of all of it."""
        if self.arena:
            self._tell(self.arena)
        for block in self._added.blocks:
            self._tell_of(block)

    def close(self) -> None:
        """Let go of all of it, for good."""
        self._closed = True
        if self.arena:
            self.arena.close()
        self._added.close()

    def _check_open(self, by: str) -> None:
        if self._closed:
            raise Disconnected(f"{by}: this front-end is closed")

    def _tell(self, arena: Arena) -> None:
        self._asking.request(Q.SET_MEM_TABLE, MemoryTable([arena.region]), [arena.fd.fileno()])

    def _tell_of(self, block: AddedBlock) -> None:
        self._asking.request(Q.ADD_MEM_REG, block.region, [block.fd.fileno()])
