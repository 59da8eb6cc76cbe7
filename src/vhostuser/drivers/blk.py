"""Drive a block device without a VM ("Block Device")."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from itertools import islice
from typing import Final, NamedTuple, TypeVar

from ..errors import Disconnected, LocalProtocolError, RequestFailed
from ..frontend import Frontend
from ..protocol.numbers import mask
from ..queue import TIMEOUT, Completion
from ..virtio.block import CONFIG_SIZE, HEADER, ID_SIZE, RANGE, SECTOR, BlockConfig, BlockFeature, BlockStatus, RangeFlag
from ..virtio.block import BlockRequest as Request

F = BlockFeature
FEATURES: Final = mask((F.RO, F.BLK_SIZE, F.FLUSH, F.TOPOLOGY, F.MQ, F.DISCARD, F.WRITE_ZEROES))
"""What this driver makes use of: give it to the front-end as `features`."""
DESCRIPTORS: Final = 3
"""The most that a request takes: header, data and status, apart, since not every device takes them otherwise."""
CONFIG_SIZES: Final = (CONFIG_SIZE, 36, 8)
"""Back-ends give whole configuration spaces only, and older ones are shorter: up to write-zeroes, queues, capacity."""

Result = TypeVar("Result")


class _Ask(NamedTuple):
    """One request: what it is, where, what the device reads, and how much it writes before the status."""

    type: Request
    sector: int = 0
    data: bytes = b""
    size: int = 0


class BlockDriver:
    """Queue number `queue` of a block device: sectors in and out. Needs `share_memory` before.

    Positions and counts are in sectors of 512 bytes; what lies beyond the capacity is for the device to refuse. Methods
    raise RequestFailed with the status if the device says no, and whatever `Queue.exchange` raises; a device may take
    `timeout` seconds for an answer. Several drivers, one a queue, may share a front-end; its thread is theirs.

    With `indirect`, as in `start_queue`, `size` requests are in flight at most; else a third of that.

    After `Frontend.reconnect` a driver goes on as it is. `on_disconnect` is called when the back-end goes while an answer is
    awaited: it is to reconnect, and the request, one or many, goes on as if nothing had happened; or to raise, which ends
    it. Without it the request ends with Disconnected.
    """

    def __init__(
        self,
        frontend: Frontend,
        queue: int = 0,
        size: int = 128,
        *,
        timeout: float = TIMEOUT,
        indirect: bool = False,
        on_disconnect: Callable[[], object] | None = None,
    ) -> None:
        self.timeout, self._on_disconnect = timeout, on_disconnect
        self.features = frozenset(each for each in F if f"BIT_{each:d}" in frontend.features)
        """The features of block devices in use."""
        self.config = _read_config(frontend)
        """The configuration space, as it was when the driver began."""
        self.queue = frontend.start_queue(queue, size=size, indirect=indirect)

    @property
    def capacity(self) -> int:
        """The device's sectors."""
        return self.config.capacity

    @property
    def block_size(self) -> int:
        """The bytes that the device likes to read and write at a time."""
        return self.config.blk_size if F.BLK_SIZE in self.features else SECTOR

    @property
    def read_only(self) -> bool:
        """The device takes no writes."""
        return F.RO in self.features

    def read(self, sector: int, count: int) -> bytes:
        """`count` sectors from `sector` on."""
        return self._do(_read(sector, count))

    def write(self, sector: int, data: bytes) -> None:
        """Write whole sectors from `sector` on. They are safe after a `flush`."""
        self._do(_write(sector, data))

    def flush(self) -> None:
        """Make all that was written durable."""
        self._need(F.FLUSH, "flush")
        self._do(_Ask(Request.FLUSH))

    def discard(self, sector: int, count: int) -> None:
        """Tell the device that what is in these sectors is not needed any more."""
        self._need(F.DISCARD, "discard")
        self._do(_Ask(Request.DISCARD, data=RANGE.pack(sector, count, 0)))

    def write_zeroes(self, sector: int, count: int, *, unmap: bool = False) -> None:
        """Fill sectors with zeroes; with `unmap` the device may give up their room."""
        self._need(F.WRITE_ZEROES, "write_zeroes")
        flags = int(RangeFlag.UNMAP) if unmap else 0
        self._do(_Ask(Request.WRITE_ZEROES, data=RANGE.pack(sector, count, flags)))

    def identify(self) -> str:
        """The device's name for itself, at most 20 characters."""
        name = self._do(_Ask(Request.GET_ID, size=ID_SIZE))
        return name.partition(b"\0")[0].decode(errors="backslashreplace")

    # Many requests in flight

    def read_many(self, ranges: Iterable[tuple[int, int]], *, depth: int = 32) -> Iterator[tuple[int, bytes]]:
        """Read (sector, count) after (sector, count), `depth` at a time at most, as far as the queue's size allows.

        Gives (sector, data) in the order in which the device is done with them.
        """
        for ask, data in self._many((_read(sector, count) for sector, count in ranges), depth):
            yield ask.sector, data

    def write_many(self, pieces: Iterable[tuple[int, bytes]], *, depth: int = 32) -> int:
        """Write (sector, data) after (sector, data), `depth` at a time at most; how many. Their order is the device's."""
        return sum(1 for _ in self._many((_write(sector, data) for sector, data in pieces), depth))

    def _many(self, asks: Iterator[_Ask], depth: int) -> Iterator[tuple[_Ask, bytes]]:
        each = 1 if self.queue.indirect else DESCRIPTORS
        room = min(depth, self.queue.size // each) if self.queue.size >= DESCRIPTORS else 0
        if room < 1:
            text = f"depth {depth} with {self.queue.size} descriptors leaves room for no request of {DESCRIPTORS}"
            raise LocalProtocolError(text, field="depth", value=depth, limit=1)
        flying: dict[int, _Ask] = {}
        done: list[Completion] = []
        try:
            while True:
                answers = [(flying.pop(each.ticket), each) for each in done]
                for ask in islice(asks, room - len(flying)):
                    flying[self._submit(ask)] = ask
                self._outlive(self.queue.notify)  # the device works while the caller does
                yield from ((ask, _answer(ask, each)) for ask, each in answers)
                if not flying:
                    return
                done = self._completions(flying)
        finally:
            for ticket in flying:
                self.queue.give_up(ticket)

    def _do(self, ask: _Ask) -> bytes:
        ticket = self._submit(ask)
        try:
            return _answer(ask, self._completions({ticket})[0])
        finally:
            self.queue.give_up(ticket)

    def _completions(self, tickets: Collection[int]) -> list[Completion]:
        """Those that are done of some requests, be it by another back-end."""
        return self._outlive(lambda: self.queue.completions(self.timeout, among=tickets))

    def _outlive(self, act: Callable[[], Result]) -> Result:
        """Do something that the end of the back-end may interrupt; again with the next one."""
        while True:
            try:
                return act()
            except Disconnected:
                if self._on_disconnect is None:
                    raise
                self._on_disconnect()

    def _submit(self, ask: _Ask) -> int:
        readable = [HEADER.pack(ask.type, 0, ask.sector), *([ask.data] if ask.data else [])]
        return self.queue.submit(readable, [*([ask.size] if ask.size else []), 1])

    def _need(self, feature: BlockFeature, name: str) -> None:
        if feature not in self.features:
            text = f"{name} needs feature {feature.name}, which was not offered, or not asked for with `features`"
            raise LocalProtocolError(text, request=name, field="features", value=feature.name)


def _read(sector: int, count: int) -> _Ask:
    if count < 1:
        raise LocalProtocolError(f"read count {count} is not at least 1", request="IN", field="count", value=count, limit=1)
    return _Ask(Request.IN, sector, size=count * SECTOR)


def _write(sector: int, data: bytes) -> _Ask:
    if not data or len(data) % SECTOR:
        text = f"write data of {len(data)} bytes is no multiple of {SECTOR}, or empty"
        raise LocalProtocolError(text, request="OUT", field="data", value=len(data), limit=SECTOR)
    return _Ask(Request.OUT, sector, data)


def _answer(ask: _Ask, done: Completion) -> bytes:
    """The data of a request; RequestFailed if its status is another than OK.

    The status is looked for where it belongs, and not where `written` ends: many devices count wrongly when they fail.
    """
    *data, status = done.buffers
    if done.written and status[0] == BlockStatus.OK:
        return b"".join(data)
    name = next((each.name for each in BlockStatus if each == status[0]), f"status {status[0]}")
    text = f"{ask.type.name} sector {ask.sector} was answered with {name if done.written else 'nothing, not even a status'}"
    raise RequestFailed(ask.type.name, status[0] if done.written else 0xFF, text)


def _read_config(frontend: Frontend) -> BlockConfig:
    """The configuration space; RequestFailed if there is none."""
    for size in CONFIG_SIZES[:-1]:
        try:
            return BlockConfig.unpack(frontend.config(0, size))
        except RequestFailed:
            continue
    return BlockConfig.unpack(frontend.config(0, CONFIG_SIZES[-1]))
