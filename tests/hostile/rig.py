"""A hostile driver over a connection: a rig whose ring and buffers lie in memory that a back-end shares.

`virtio_rig` writes into rings what a driver may, or may not; here the device is a real one behind a socket.
"""

from __future__ import annotations

import contextlib
import os
import select
from abc import abstractmethod
from collections.abc import Iterator
from typing import Final, TypeAlias

from tests.virtio_rig import BUFFERS, Given, PackedRig, Rig, SplitRig
from vhostuser import Backend, Device
from vhostuser.memory.mapping import map_file
from vhostuser.protocol.numbers import FrontendRequest as Q
from vhostuser.protocol.numbers import VhostFeature, mask
from vhostuser.protocol.payloads import U64, MemoryRegion, MemoryTable, VringState
from vhostuser.testing import DEADLINE, RawFrontend, ServedRawFrontend, raw_frontend, sparse_file
from vhostuser.transport.fds import OwnedFd
from vhostuser.virtio.formats import SPLIT, Format
from vhostuser.virtio.numbers import Feature

PLAIN: Final = mask((Feature.VERSION_1, VhostFeature.PROTOCOL_FEATURES))
RING_SPACE: Final = 1 << 16
"""Bytes between one ring and the next; they begin at user address 0."""
RINGS: Final = 4 * RING_SPACE
RINGS_AT: Final = 1 << 40
"""Where the rings are in guest memory: out of the way."""
HALF: Final = 1 << 15
"""Buffers lie in two regions of that size, which touch in guest memory."""
ANSWER: Final = BUFFERS + 0x1000
MEMORY: Final = RINGS + 2 * HALF


class Connected(Rig):
    """Ring `index` of a back-end, set up and started; `buffers` shows this side what lies at BUFFERS.

    It has been in use up to `start`. The front-end has negotiated, and shared memory by `share`.
    """

    def __init__(
        self,
        raw: RawFrontend,
        view: memoryview,
        *,
        index: int = 0,
        size: int = 8,
        start: int = 0,
        at: int | None = None,
        user: int = 0,
    ) -> None:
        self.raw, self.view, self.index, self.size, self.steps = raw, view, index, size, 0
        self.at = RING_SPACE * index if at is None else at
        self.memory = view[self.at : min(self.at + RING_SPACE, RINGS)]
        self.memory[:] = bytes(self.memory.nbytes)
        descriptors, available, used = self.format.sizes(size)
        used_at = descriptors + -(-available // 4) * 4
        self.descriptors = self.memory[:descriptors]
        self.available = self.memory[descriptors : descriptors + available]
        self.used = self.memory[used_at : used_at + used]
        self.parts = self.descriptors, self.available, self.used
        self.buffers = view[RINGS:]
        self.next = start
        self.set_up(start)
        self.driver = self.format.driver(size, *self.parts)
        self.driver._next = self.driver._seen = start
        self.user = user + self.at
        self.start_again(self.base_at(start))

    def given_back(self) -> bytes:
        """What the device has shown so far, whatever it says of kicks."""
        return bytes(self.used[2:]) if self.available.nbytes > 4 else b""

    def start_again(self, base: int) -> None:
        """Start the ring as it is, from `base`, with new eventfds."""
        self.call = self.raw.eventfd()
        self.raw.accepted(Q.SET_VRING_CALL, U64(self.index), fds=[self.call])
        self.raw.set_up_queue(self.index, size=self.size, base=base, at=self.user, ring=self.format)
        if self.raw.kick is None or self.raw.err is None:
            raise AssertionError("no ring was set up")
        self.kick, self.err = self.raw.kick, self.raw.err
        self.started = True

    def another(
        self, *, index: int | None = None, size: int | None = None, start: int = 0, at: int | None = None
    ) -> Connected:
        """A ring of the same front-end; it takes this one's place unless it has another index."""
        index = self.index if index is None else index
        if index == self.index and self.started:
            self.stop()
        return type(self)(self.raw, self.view, index=index, size=size or self.size, start=start, at=at)

    def stop(self) -> int:
        """End it by GET_VRING_BASE: the base."""
        self.started = False
        return VringState.unpack(self.raw.reply(Q.GET_VRING_BASE, VringState(self.index, 0)).payload).num

    def reset(self) -> None:
        """End it, and all rings, by RESET_DEVICE."""
        self.started = False
        self.raw.accepted(Q.RESET_DEVICE)

    def kicked(self) -> None:
        """Notify the device."""
        os.eventfd_write(self.kick.fileno(), 1)

    @abstractmethod
    def give(self, *chain: Given) -> int:
        """As of any rig, and `collect` knows of it."""

    def collect(self) -> tuple[int, int]:
        """Wait for the next request to come back: what it is called, and the bytes that the device wrote."""
        while (done := self.driver.collect()) is None:
            if wait_for(self.call, self.err) == [self.err.fileno()]:
                raise AssertionError("the queue is broken")
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(self.call.fileno())
        return done

    def ask(self, *chain: Given) -> int:
        """One request, to its end: the bytes that the device wrote."""
        given = self.give(*chain)
        self.kicked()
        done = self.collect()
        if done[0] != given:
            raise AssertionError(f"chain {done[0]} came back instead of {given}")
        return done[1]

    def broken(self) -> None:
        """Notify the device, and wait until it has said, once, that the queue is broken."""
        self.kicked()
        if not wait_for(self.err):
            raise AssertionError("the queue is not broken")
        if (times := os.eventfd_read(self.err.fileno())) != 1:
            raise AssertionError(f"the queue was said to be broken {times} times")

    def close(self) -> None:
        """Let go of the memory."""
        vars(self).clear()


class ConnectedSplit(Connected, SplitRig):
    """A split virtqueue."""

    def give(self, *chain: Given) -> int:
        head = SplitRig.give(self, *chain)
        self.driver._chains[head] = []  # type: ignore[union-attr]
        return head


class ConnectedPacked(Connected, PackedRig):
    """A packed virtqueue."""

    def give(self, *chain: Given) -> int:
        given = PackedRig.give(self, *chain)
        self.driver._entries[given] = len(chain)  # type: ignore[union-attr]
        return given


Kind: TypeAlias = tuple[type[Connected], bool]
KINDS: Final[dict[str, Kind]] = {
    "split": (ConnectedSplit, True),
    "split, may shrink": (ConnectedSplit, False),
    "packed": (ConnectedPacked, True),
}
"""The format, and whether memory is sealed."""


def features_for(ring: Format, *, indirect: bool = True) -> int:
    """What a front-end acknowledges that wants such rings."""
    return PLAIN | ring.is_packed << Feature.RING_PACKED | indirect << Feature.RING_INDIRECT_DESC


def share(raw: RawFrontend, file: OwnedFd) -> memoryview:
    """Share a file of MEMORY bytes, and map it here."""
    regions = [
        MemoryRegion(RINGS_AT, RINGS, 0, 0),
        MemoryRegion(BUFFERS, HALF, 1 << 50, RINGS),
        MemoryRegion(BUFFERS + HALF, HALF, 1 << 51, RINGS + HALF),
    ]
    raw.accepted(Q.SET_MEM_TABLE, MemoryTable(regions), fds=[file] * 3)
    return map_file(file.fileno(), MEMORY, 0)


def prepared(raw: RawFrontend, file: OwnedFd, ring: Format = SPLIT, *, indirect: bool = True) -> memoryview:
    """Negotiate such rings and share memory for them."""
    raw.negotiate(features=features_for(ring, indirect=indirect))
    raw.open_requests()
    return share(raw, file)


@contextlib.contextmanager
def connected(device: Device, kind: Kind, *, indirect: bool = True, size: int = 8, start: int = 0) -> Iterator[Connected]:
    """Queue 0 of a Backend in a thread that serves `device`."""
    made, seal = kind
    with raw_frontend(device) as raw, sparse_file(MEMORY, seal=seal) as file:
        rig = made(raw, prepared(raw, file, made.format, indirect=indirect), size=size, start=start)
        try:
            yield rig
        finally:
            rig.close()


def backend_of(rig: Connected) -> Backend:
    """The Backend in this process that serves the rig."""
    if not isinstance(rig.raw, ServedRawFrontend):
        raise TypeError("the rig's back-end is in another process")
    return rig.raw.served.backend


def echoes(rig: Connected, times: int = 0) -> None:
    """Requests, more than the ring has entries if not said otherwise, come back with their bytes."""
    for number in range(times or 2 * rig.size):
        rig.buffers[:4] = number.to_bytes(4, "little")
        rig.driver.add([(BUFFERS, 4)], [(ANSWER, 4)])
        rig.kicked()
        written = rig.collect()[1]
        if (written, bytes(rig.buffers[ANSWER - BUFFERS :][:4])) != (4, number.to_bytes(4, "little")):
            raise AssertionError(f"request {number} came back with {written} bytes, which are not those that were sent")


def wait_for(*fds: OwnedFd) -> list[int]:
    """Those of the eventfds that are set, once one is; none if that takes too long."""
    poll = select.poll()
    for fd in fds:
        poll.register(fd.fileno(), select.POLLIN)
    return [number for number, _ in poll.poll(DEADLINE * 1000)]


def is_set(fd: OwnedFd) -> bool:
    """The eventfd is set now."""
    return bool(select.select([fd.fileno()], [], [], 0)[0])
