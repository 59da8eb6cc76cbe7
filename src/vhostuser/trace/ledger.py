"""Where the fds went: who sent each, what for, and when it was not needed any more, as far as messages can tell.

Who gets an fd has it open until it closes it, which no message shows. What messages show is until when it has to be open, or
what it stands for has to be kept: until a later message of the kind replaces it, the mapping or the memory region goes, the
ring stops, or the connection ends. An fd that no rule has a use for is a leak, unless its receiver closes it all the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from ..protocol.numbers import VRING_INDEX_MASK, VRING_NO_FD
from ..protocol.numbers import BackendRequest as B
from ..protocol.numbers import FrontendRequest as Q
from ..protocol.payloads import (
    U64,
    MemoryRegion,
    MemoryTable,
    Mmap,
    SingleRegion,
    VringState,
    XenMemoryRegion,
    XenMemoryTable,
    XenSingleRegion,
)
from ..protocol.rules import Channel, Fds
from ..protocol.state import Role
from .conversation import Exchange, Item
from .event import FdNote, Message, Remark, Remarkable
from .history import Placed
from .undelivered import means

AnyRegion = MemoryRegion | XenMemoryRegion | SingleRegion | XenSingleRegion
Slot = tuple[str | int, ...]
_RING_FILES: Final = {Q.SET_VRING_KICK: "kick", Q.SET_VRING_CALL: "call", Q.SET_VRING_ERR: "err"}
_USES: Final[dict[tuple[Channel, int], str]] = {
    (Channel.FRONTEND, Q.SET_BACKEND_REQ_FD): "back-end channel",
    (Channel.FRONTEND, Q.SET_LOG_BASE): "dirty log",
    (Channel.FRONTEND, Q.SET_LOG_FD): "signal of the dirty log",
    (Channel.FRONTEND, Q.SET_INFLIGHT_FD): "inflight area",
    (Channel.FRONTEND, Q.GPU_SET_SOCKET): "GPU socket",
    (Channel.FRONTEND, Q.SET_DEVICE_STATE_FD): "device state",
    (Channel.BACKEND, B.VRING_HOST_NOTIFIER_MSG): "host notifier",
}
"""What the one fd of a request is for, until the next such request brings another."""
_ANSWERS: Final[dict[tuple[Channel, int], str]] = {
    (Channel.FRONTEND, Q.POSTCOPY_ADVISE): "userfaultfd",
    (Channel.FRONTEND, Q.GET_INFLIGHT_FD): "inflight area, for SET_INFLIGHT_FD",
    (Channel.FRONTEND, Q.SET_DEVICE_STATE_FD): "device state",
    (Channel.FRONTEND, Q.GET_SHARED_OBJECT): "shared object",
    (Channel.BACKEND, B.SHARED_OBJECT_LOOKUP): "shared object",
}
_ENDS: Final[dict[int, tuple[str, str]]] = {
    Q.POSTCOPY_END: ("userfaultfd", "postcopy ended"),
    Q.CHECK_DEVICE_STATE: ("device state", "the transfer was checked"),
}
"""Requests that end the use of a slot."""


@dataclass(slots=True, eq=False)
class Entry:
    """An fd that passed."""

    index: int
    """The event of its message."""
    message: Message
    request: str
    fd: FdNote
    purpose: str = ""
    ended: int | None = None
    """When it was not needed any more; None if it still is."""
    fate: str = ""
    leak: bool = False
    """Nothing in the protocol says that somebody closes it."""

    @property
    def connection(self) -> int:
        """Where it passed."""
        return self.message.connection

    @property
    def at(self) -> int:
        """When it passed."""
        return self.message.at

    @property
    def sender(self) -> Role:
        """Whose it was."""
        return self.message.sender

    def kept_back(self, at: int) -> None:
        """It stayed where it was, for its message was not delivered, which was known at a time."""
        self.purpose, self.ended, self.leak = self.purpose or "none", at, False
        self.fate = "its message was not delivered"


class Ledger:
    """Every fd of a capture."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self._held: dict[int, dict[Slot, Entry]] = {}
        """What each connection still has a use for."""
        self._maps: dict[int, Entry] = {}
        """SHMEM_MAPs that were accepted, by the index of their event."""
        self._closed: dict[int, int] = {}
        self._lost: list[Remark] = []
        """What was said of messages that were not delivered, or not seen."""

    def take(self, item: Item) -> None:
        """Follow one item of the conversation."""
        if isinstance(item, Exchange):
            self._replies(item)
            self._requests(item)
        elif isinstance(item, Remark) and item.about is Remarkable.LOST:
            self._lost.append(item)
        elif isinstance(item, Remark) and item.about is Remarkable.CLOSED:
            self._closed[item.connection] = item.at
            self._release(item.connection, lambda slot: True, item.at, "the connection ended")

    def end(self, placed: Iterable[Placed] = ()) -> list[Entry]:
        """All of them. What became of mappings the history of the regions knows."""
        for mapping in placed:
            entry = self._maps.get(mapping.index)
            if entry and mapping.end is not None and not mapping.refused:
                with_it = mapping.end == self._closed.get(mapping.connection)
                entry.ended = mapping.end
                entry.fate = "still mapped when the connection ended" if with_it else "unmapped, or gone by a reset"
        for remark in self._lost:
            self._take_back(remark)
        for entry in self.entries:
            entry.fate = entry.fate or "in use at the end of the capture"
        return self.entries

    def _take_back(self, remark: Remark) -> None:
        """The fds of a message of which a remark says that it was not delivered stayed where they were."""
        found = [entry for entry in self.entries if entry.at <= remark.at and means(remark, entry.message)]
        last = max((entry.index for entry in found), default=-1)
        for entry in found:
            if entry.index == last:
                entry.kept_back(remark.at)

    def _requests(self, exchange: Exchange) -> None:
        message, slots = exchange.message, list(_slots(exchange))
        self._ends(exchange)
        for place, note in enumerate(message.fds):
            entry = _entry(message, exchange.index, exchange.request.name, note)
            self.entries.append(entry)
            if not message.delivered:
                entry.kept_back(message.at)
            elif exchange.orphan or place >= len(slots):
                entry.purpose, entry.fate, entry.leak = "none", "nothing takes it: its receiver has to close it", True
            else:
                self._used(exchange, entry, slots[place])

    def _used(self, exchange: Exchange, entry: Entry, slot: Slot) -> None:
        entry.purpose = " ".join(map(str, slot))
        if exchange.unanswered:
            entry.fate, entry.leak = "nobody answered: who closes it is unknown", True
        elif exchange.refused:
            entry.ended, entry.fate = exchange.settled, "refused: its receiver closed it"
        elif slot[0] == "mapped":
            self._maps[exchange.index] = entry
            entry.fate = "mapped; its fd may be closed"
        else:
            self._hold(entry, slot, exchange)

    def _hold(self, entry: Entry, slot: Slot, exchange: Exchange) -> None:
        held = self._held.setdefault(entry.connection, {})
        self._release(entry.connection, lambda each: each == slot, exchange.at, f"replaced by message {exchange.index}")
        held[slot] = entry

    def _replies(self, exchange: Exchange) -> None:
        reply = exchange.reply
        if reply is None:
            return
        use = _ANSWERS.get((exchange.message.channel, exchange.message.request))
        for place, note in enumerate(reply.message.fds):
            entry = _entry(reply.message, reply.index, f"{exchange.request.name} reply", note)
            self.entries.append(entry)
            if not reply.message.delivered:
                entry.kept_back(reply.message.at)
            elif use is None or place:
                entry.purpose, entry.fate, entry.leak = "none", "nothing takes it: its receiver has to close it", True
            else:
                entry.purpose = use
                self._hold(entry, (use,), exchange)

    def _ends(self, exchange: Exchange) -> None:
        """What this request makes superfluous."""
        message, body = exchange.message, exchange.request.body
        if message.channel is not Channel.FRONTEND or exchange.refused or exchange.orphan or not message.delivered:
            return
        at, connection = exchange.settled, message.connection
        match message.request, body:
            case Q.SET_MEM_TABLE, MemoryTable() | XenMemoryTable():
                self._release(connection, lambda slot: slot[0] == "memory", at, f"replaced by message {exchange.index}")
            case Q.REM_MEM_REG, SingleRegion() | XenSingleRegion():
                self._release(connection, lambda slot: slot == _memory(body), at, "the region was removed")
            case Q.GET_VRING_BASE, VringState():
                self._release(connection, lambda slot: slot == ("kick of ring", body.index), at, "the ring was stopped")
            case ((Q.SET_VRING_KICK | Q.SET_VRING_CALL | Q.SET_VRING_ERR), U64()) if body.value & VRING_NO_FD:
                gone = _ring_slot(message.request, body)
                self._release(connection, lambda slot: slot == gone, at, "taken away: no fd from now on")
            case Q.RESET_DEVICE, _:
                self._release(connection, lambda slot: slot[0] == "kick of ring", at, "the device was reset")
            case request, _ if request in _ENDS:
                use, fate = _ENDS[request]
                self._release(connection, lambda slot: slot[0] == use, at, fate)

    def _release(self, connection: int, chosen: Callable[[Slot], bool], at: int, fate: str) -> None:
        held = self._held.get(connection, {})
        for slot in [slot for slot in held if chosen(slot)]:
            entry = held.pop(slot)
            entry.ended, entry.fate = at, fate


def _entry(message: Message, index: int, request: str, note: FdNote) -> Entry:
    return Entry(index, message, request, note)


def _slots(exchange: Exchange) -> Iterator[Slot]:
    """What each fd of a request is for, in order; as many as the request takes."""
    message, body, rule = exchange.message, exchange.request.body, exchange.request.rule
    if rule is None or exchange.request.fault or rule.fds in (Fds.NONE, Fds.TOLERATED):
        return
    if isinstance(body, MemoryTable | XenMemoryTable):
        yield from (_memory(region) for region in body.regions)
    elif isinstance(body, SingleRegion | XenSingleRegion):
        yield _memory(body)
    elif isinstance(body, Mmap):
        yield "mapped", f"in region {body.shmid} at {body.shm_offset:#x}"
    elif isinstance(body, U64) and message.channel is Channel.FRONTEND and message.request in _RING_FILES:
        if not body.value & VRING_NO_FD:
            yield _ring_slot(message.request, body)
    elif use := _USES.get((message.channel, message.request)):
        yield (use,)


def _ring_slot(request: int, body: U64) -> Slot:
    return f"{_RING_FILES[Q(request)]} of ring", body.value & VRING_INDEX_MASK


def _memory(region: AnyRegion) -> Slot:
    """A region is "identified by guest address, user address and size"."""
    return "memory", f"{region.guest_addr:#x}+{region.size:#x}@{region.user_addr:#x}"
