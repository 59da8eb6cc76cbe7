"""Guest memory as a back-end keeps it: the requests that change it, and the dirty log, while rings are at work."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

from .errors import QueueBroken, RemoteProtocolError
from .exports import Exports
from .memory.dirty_log import DirtyLog
from .memory.fragile import Copies
from .memory.guest import GuestMemory
from .protocol.numbers import MAX_REGIONS, VRING_F_LOG, ProtocolFeature, VhostFeature
from .protocol.payloads import Log, MemoryRegion, MemoryTable, SingleRegion
from .protocol.session import Session
from .rings import Rings

log = logging.getLogger(__name__)


class GuestTable:
    """The memory of one connection. A change moves the rings that are at work, all of them or none; else it is refused."""

    def __init__(self, session: Session, rings: Rings, exports: Exports | None) -> None:
        self.memory = GuestMemory()
        self._session, self._rings, self._exports = session, rings, exports
        self._copies = Copies()
        self._log: DirtyLog | None = None
        self._warned = False

    def replace(self, body: MemoryTable, fds: Sequence[int]) -> None:
        """SET_MEM_TABLE."""
        regions = [self._seen(region) for region in body.regions]
        self._take(GuestMemory.of(regions, fds, self.memory, self._copies), "SET_MEM_TABLE")
        self._warn_if_full(len(regions))

    def add(self, body: SingleRegion, fd: int) -> None:
        """ADD_MEM_REG."""
        self._take(self.memory.plus(self._seen(body.region), fd, self._copies), "ADD_MEM_REG")

    def remove(self, body: SingleRegion) -> None:
        """REM_MEM_REG; the session knows that there is such a region."""
        self._take(self.memory.minus(body.guest_addr), "REM_MEM_REG")

    def open_log(self, body: Log, fd: int) -> None:
        """SET_LOG_BASE."""
        self._log = DirtyLog(body, fd, self.memory.end)
        self.set_logging()

    def set_logging(self) -> None:
        """Log what LOG_ALL and the rings' flags want logged, if there is a log ("Migration")."""
        state = self._session.state
        for ring, vring in zip(state.rings, self._rings.vrings, strict=True):
            wanted = ring.addresses and ring.addresses.flags & VRING_F_LOG
            vring.used_log = ring.addresses.log if ring.addresses and wanted else None
        self._rings.log_to(self._log if state.acknowledged >> VhostFeature.LOG_ALL & 1 else None)

    def close(self) -> None:
        """Let go of memory and log."""
        self.memory, self._log = GuestMemory(), None
        self._tell()
        self._rings.log_to(None)

    def _seen(self, region: MemoryRegion) -> MemoryRegion:
        """The region as addresses are seen: with GPA_ADDRESSES user addresses are guest addresses."""
        by_guest = self._session.state.has(ProtocolFeature.GPA_ADDRESSES)
        return replace(region, user_addr=region.guest_addr) if by_guest else region

    def _take(self, memory: GuestMemory, request: str) -> None:
        try:
            self._rings.move(memory)
        except QueueBroken as error:
            raise RemoteProtocolError(f"{request}: {error}", request=request, field="regions") from None
        self.memory = memory
        self._tell()

    def _tell(self) -> None:
        if self._exports:
            self._exports.update(self.memory)

    def _warn_if_full(self, count: int) -> None:
        """QEMU 11.1 puts mappings into the memory table; with one that does not fit it never starts a device again."""
        if self._exports and count == MAX_REGIONS and not self._warned:
            self._warned = True
            text = "the front-end's memory table is full (%d regions): QEMU can't resume a stopped machine if more is mapped"
            log.warning(text, count)
