"""Requests for a block device, cut into descriptors in any way, over one ring and without a connection."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import NamedTuple

from tests.virtio_rig import BUFFERS, SplitRig
from vhostuser.devices.blk import BlockDevice
from vhostuser.devices.disk import Disk
from vhostuser.virtio.block import HEADER, RANGE, BlockRequest

SECTOR = 512
UNTOUCHED = 0xAA
"""What writable bytes are before a request."""
FLUSH = 1 << 9
T = BlockRequest


class Answer(NamedTuple):
    """What came of a request: its last writable byte, the bytes that the driver was told of, the writable data."""

    status: int
    written: int
    data: bytes


class BlkRig:
    """A block device behind a ring of 512 descriptors."""

    def __init__(self, device: BlockDevice) -> None:
        self.device = device
        self.rig: SplitRig = SplitRig(512, buffers=1 << 18)

    def send(
        self,
        readable: bytes,
        room: int,
        *,
        cuts: Sequence[int] = (),
        writable_cuts: Sequence[int] = (),
        at: int = 0,
    ) -> Answer:
        """Offer these bytes and `room` writable ones, cut into buffers at these places and laid from `at` on."""
        memory, start = self.rig.buffers, at + len(readable)
        memory[at:start] = readable
        memory[start : start + room] = bytes([UNTOUCHED]) * room
        buffers = (_buffers(BUFFERS + at, len(readable), cuts), _buffers(BUFFERS + start, room, writable_cuts))
        head = self.rig.driver.add(*buffers)
        self._serve()
        done = self.rig.driver.collect()
        if done is None or done[0] != head:
            raise AssertionError(f"the driver got {done} for chain {head}")
        answer = bytes(memory[start : start + room])
        return Answer(answer[-1] if answer else -1, done[1], answer[:-1])

    def _serve(self) -> None:
        """Let the device do the request that waits."""
        chain = self.rig.device.pop()
        if chain is None:
            raise AssertionError("the device does not see the request")
        self.device.process(0, chain)
        self.rig.device.push(chain)
        self.rig.device.publish()

    def ask(self, kind: int, sector: int = 0, data: bytes = b"", room: int = 0) -> Answer:
        """One request whose parts are whole; `room` is without the status byte."""
        return self.send(HEADER.pack(kind, 0, sector) + data, room + 1)

    def read(self, sector: int, count: int = 1) -> bytes:
        """What the driver reads."""
        answer = self.ask(T.IN, sector, room=count * SECTOR)
        if (answer.status, answer.written) != (0, count * SECTOR + 1):
            raise AssertionError(f"reading sector {sector} gave status {answer.status}, {answer.written} bytes")
        return answer.data


def failed(answer: Answer, status: int) -> None:
    """The request has this status, and the driver is told of nothing but that byte."""
    if (answer.status, answer.written) != (status, 1):
        raise AssertionError(f"status {answer.status} and {answer.written} bytes, not status {status} and 1 byte")


def segments(*rows: tuple[int, int, int]) -> bytes:
    """Ranges of a DISCARD or WRITE_ZEROES."""
    return b"".join(RANGE.pack(*row) for row in rows)


def pattern(size: int, seed: int = 0) -> bytes:
    """Bytes of which each sector differs from the others."""
    return b"".join((at * 2654435761 + seed).to_bytes(8, "little") for at in range(size // 8))


def _buffers(start: int, size: int, cuts: Sequence[int]) -> list[tuple[int, int]]:
    places = [0, *sorted({cut for cut in cuts if 0 < cut < size}), size]
    return [(start + low, high - low) for low, high in pairwise(places) if high > low]


@contextmanager
def rig_of(path: str | os.PathLike[str], *, read_only: bool = False, acknowledged: int = FLUSH) -> Iterator[BlkRig]:
    """A rig over the disk at `path`, for a driver that took FLUSH."""
    with BlockDevice(Disk(path, read_only=read_only)) as device:
        device.acknowledged = acknowledged
        yield BlkRig(device)
