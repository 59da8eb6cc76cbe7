"""What was mapped where, from when to when: the shared memory regions of a capture as rectangles.

A SHMEM_MAP counts from its acknowledgement on, or, where none is owed, from itself; a refused one is kept for the picture,
at its place and with the reason. Mappings end by their SHMEM_UNMAP, by a reset, and with their connection. QEMU also drops
them where no message says so: an accepted mapping over another one shows that the other one was gone.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass, field

from ..protocol.numbers import FrontendRequest
from ..protocol.payloads import U64, Mmap, ShmemConfig
from ..protocol.regions import Mapping, MappingTable
from ..protocol.rules import Channel
from .conversation import Exchange, Item
from .event import FdNote, Remark, Remarkable


@dataclass(slots=True, eq=False)
class Placed:
    """One mapping, while it lasted; or one that was refused."""

    connection: int
    shmid: int
    shm_offset: int
    len: int
    fd: FdNote | None
    fd_offset: int
    writable: bool
    begin: int
    """When it was settled, in nanoseconds since the epoch."""
    index: int
    """The event of the SHMEM_MAP."""
    end: int | None = None
    """When it went; None while it is there."""
    refused: str = ""
    """Why it never was there."""

    def lives(self, at: int) -> bool:
        """It is mapped at `at`."""
        return not self.refused and self.begin <= at and (self.end is None or at < self.end)


@dataclass(slots=True)
class _Region:
    table: MappingTable = field(default_factory=MappingTable)
    live: dict[int, Placed] = field(default_factory=dict)
    """By offset."""


class History:
    """The regions of all connections of a capture, as its items tell them."""

    def __init__(self, *, keep: bool = True) -> None:
        self.placed: list[Placed] = []
        """All that were ever mapped or refused, in order; with `keep=False` none is kept that is gone."""
        self.sizes: dict[tuple[int, int], int] = {}
        """Bytes of each region, by connection and shmid."""
        self.resets: list[tuple[int, int]] = []
        """When which connection's device was reset."""
        self.connections: dict[int, None] = {}
        """Those that were seen, in order."""
        self.count = 0
        """How many mappings there are now."""
        self.mapped = 0
        """Bytes that are mapped now."""
        self._regions: dict[tuple[int, int], _Region] = {}
        self._keep = keep

    def take(self, item: Item) -> None:
        """Follow one item of the conversation."""
        if isinstance(item, Remark):
            self._remark(item)
        elif isinstance(item, Exchange):
            self.connections[item.message.connection] = None
            (self._backend if item.message.channel is Channel.BACKEND else self._frontend)(item)

    def live(self, at: int | None = None) -> list[Placed]:
        """What is mapped at `at` (nanoseconds since the epoch), or now; in order of connection, region and offset."""
        if at is None:
            found = [each for region in self._regions.values() for each in region.live.values()]
        else:
            found = [each for each in self.placed if each.lives(at)]
        return sorted(found, key=lambda each: (each.connection, each.shmid, each.shm_offset))

    def _remark(self, remark: Remark) -> None:
        if remark.about is Remarkable.OPENED:
            self.connections[remark.connection] = None
        elif remark.about is Remarkable.CLOSED:
            self._clear(remark.connection, remark.at)

    def _frontend(self, exchange: Exchange) -> None:
        body, reply = exchange.request.body, exchange.reply
        match exchange.message.request:
            case FrontendRequest.GET_SHMEM_CONFIG if reply and isinstance(reply.body, ShmemConfig):
                self.sizes |= {(exchange.message.connection, shmid): size for shmid, size in reply.body.sizes.items()}
            case FrontendRequest.RESET_DEVICE:
                self._reset(exchange)
            case FrontendRequest.SET_STATUS if isinstance(body, U64) and not body.value:
                self._reset(exchange)

    def _reset(self, exchange: Exchange) -> None:
        if self._keep:
            self.resets.append((exchange.settled, exchange.message.connection))
        self._clear(exchange.message.connection, exchange.settled)

    def _backend(self, exchange: Exchange) -> None:
        if exchange.orphan or not isinstance(exchange.request.body, Mmap):
            return
        if exchange.request.name == "SHMEM_MAP":
            self._map(exchange, exchange.request.body)
        elif not exchange.refused and not exchange.unanswered:
            self._unmap(exchange, exchange.request.body)

    def _map(self, exchange: Exchange, body: Mmap) -> None:
        message = exchange.message
        fd = message.fds[0] if message.fds else None
        placed = Placed(
            *(message.connection, body.shmid, body.shm_offset, body.len, fd, body.fd_offset, body.writable),
            *(exchange.settled, exchange.index),
        )
        placed.refused = _why_not(exchange)
        if placed.refused or not body.len:
            placed.end = placed.begin
        else:
            self._insert(placed)
        if self._keep:
            self.placed.append(placed)

    def _insert(self, placed: Placed) -> None:
        region = self._regions.setdefault((placed.connection, placed.shmid), _Region())
        for gone in region.table.covering(placed.shm_offset, placed.len):
            self._remove(region, gone, placed.begin)
        region.table.insert(Mapping(placed.shm_offset, placed.len, placed.fd_offset, placed.writable))
        region.live[placed.shm_offset] = placed
        self.count, self.mapped = self.count + 1, self.mapped + placed.len

    def _unmap(self, exchange: Exchange, body: Mmap) -> None:
        region = self._regions.get((exchange.message.connection, body.shmid))
        found = region.table.exact(body.shm_offset, body.len) if region else None
        if region and found:
            self._remove(region, found, exchange.settled)

    def _remove(self, region: _Region, mapping: Mapping, at: int) -> None:
        region.table.remove(mapping)
        region.live.pop(mapping.shm_offset).end = at
        self.count, self.mapped = self.count - 1, self.mapped - mapping.len

    def _clear(self, connection: int, at: int) -> None:
        """All mappings of a connection end."""
        for key in [key for key in self._regions if key[0] == connection]:
            region = self._regions.pop(key)
            for placed in region.live.values():
                placed.end = at
                self.count, self.mapped = self.count - 1, self.mapped - placed.len


def _why_not(exchange: Exchange) -> str:
    """Why a SHMEM_MAP mapped nothing; empty if it did."""
    if exchange.unanswered:
        return "no reply"
    if exchange.status is None or not exchange.refused:
        return ""
    return f"refused with {status_in_words(exchange.status)}"


def status_in_words(status: int) -> str:
    """The number of an acknowledgement; one that is a negative errno, by its name."""
    code = (1 << 64) - status
    return f"-{errno.errorcode[code]}" if code in errno.errorcode else str(status)
