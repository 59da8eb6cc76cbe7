"""A block device whose disk is a bytearray, and others that misbehave on purpose."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from vhostuser import DescriptorChain, Device
from vhostuser.protocol.numbers import mask
from vhostuser.virtio.block import HEADER, ID_SIZE, RANGE, SECTOR, BlockConfig, BlockFeature, BlockRequest, BlockStatus

F, R = BlockFeature, BlockRequest
ID: Final = b"a disk for tests"
SECTORS: Final = 256


class Disk(Device):
    """`sectors` sectors that begin as their own numbers; `counts` are the requests by type."""

    virtio_id = 2
    queue_sizes: tuple[int, ...] = (256, 256)

    def __init__(self, sectors: int = SECTORS, *features: BlockFeature) -> None:
        self.features = mask(features or (F.FLUSH, F.DISCARD, F.WRITE_ZEROES, F.MQ, F.BLK_SIZE))
        self.config = BlockConfig(capacity=sectors, blk_size=4096, num_queues=2).pack()
        self.content = bytearray(b"".join(number.to_bytes(4, "little") * (SECTOR // 4) for number in range(sectors)))
        self.counts: dict[int, int] = {}
        self.ranges: list[tuple[int, int, int]] = []

    def process(self, queue: int, chain: DescriptorChain) -> None:
        kind, _, sector = HEADER.unpack(chain.read(HEADER.size))
        self.counts[kind] = self.counts.get(kind, 0) + 1
        room = chain.writable_size - 1
        handle = {R.IN: self._in, R.OUT: self._out, R.GET_ID: self._id, R.DISCARD: self._range, R.WRITE_ZEROES: self._range}
        if kind == R.FLUSH:
            status, data = BlockStatus.OK, b""
        else:
            status, data = handle.get(kind, self._unknown)(sector, room, chain.read())
        chain.write(data.ljust(room, b"\0") + bytes([status]))

    def _in(self, sector: int, room: int, given: bytes) -> tuple[BlockStatus, bytes]:
        start = sector * SECTOR
        if start + room > len(self.content):
            return BlockStatus.IOERR, b""
        return BlockStatus.OK, bytes(self.content[start : start + room])

    def _out(self, sector: int, room: int, given: bytes) -> tuple[BlockStatus, bytes]:
        start = sector * SECTOR
        if start + len(given) > len(self.content):
            return BlockStatus.IOERR, b""
        self.content[start : start + len(given)] = given
        return BlockStatus.OK, b""

    def _id(self, sector: int, room: int, given: bytes) -> tuple[BlockStatus, bytes]:
        return BlockStatus.OK, ID.ljust(ID_SIZE, b"\0")

    def _range(self, sector: int, room: int, given: bytes) -> tuple[BlockStatus, bytes]:
        first, count, flags = RANGE.unpack(given)
        self.ranges.append((first, count, flags))
        return self._out(first, 0, bytes(count * SECTOR))

    def _unknown(self, sector: int, room: int, given: bytes) -> tuple[BlockStatus, bytes]:
        return BlockStatus.UNSUPP, b""


class Answering(Device):
    """A device that does with each chain what the test says."""

    queue_sizes: tuple[int, ...] = (256,)

    def __init__(self, answer: Callable[[DescriptorChain], object], config: bytes = BlockConfig(capacity=8).pack()) -> None:
        self.answer, self.config = answer, config

    def process(self, queue: int, chain: DescriptorChain) -> None:
        self.answer(chain)
