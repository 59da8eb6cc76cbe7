"""A ring in memory that a follower is told of by messages, written to by hand; nobody is connected to anybody."""

from __future__ import annotations

import os
import time

from tests.virtio_rig import BUFFERS, PackedRig, Rig, SplitRig
from vhostuser.memory.mapping import map_file
from vhostuser.protocol.framing import Frame, reply_frame, request_frame
from vhostuser.protocol.layout import Payload
from vhostuser.protocol.numbers import FrontendRequest as Q
from vhostuser.protocol.payloads import U64, MemoryRegion, MemoryTable, VringAddr, VringState
from vhostuser.protocol.rules import Channel
from vhostuser.protocol.state import Role
from vhostuser.testing import sparse_file
from vhostuser.trace.event import Event, Message, Offered, Remark, Used
from vhostuser.trace.rings import RingFollower
from vhostuser.transport.fds import OwnedFd
from vhostuser.virtio.numbers import Feature

RING = 1 << 40
"""The ring's guest address; its user address is USER."""
USER = 1 << 30
SPACE = 1 << 17
"""Bytes of the ring's memory, and of the buffers'."""
FORMATS: dict[str, type[Rig]] = {"split": SplitRig, "packed": PackedRig}


class Stage:
    """Ring 0 in a format, and a follower that looks when `look` is called. `rig` is its driver and its device."""

    def __init__(self, form: str = "split", *, size: int = 8, start: int = 0, features: int = 0) -> None:
        self.events: list[Event] = []
        self.follower = RingFollower(self.events.append, 0)
        self.ring, self.memory = sparse_file(SPACE), sparse_file(SPACE)
        self.packed = form == "packed"
        self.features = features | self.packed << Feature.RING_PACKED
        self.rig = self._rig(FORMATS[form], size, start)
        self.tell(Q.SET_FEATURES, U64(self.features))
        self.share()
        self.lay(start)

    def _rig(self, kind: type[Rig], size: int, start: int) -> Rig:
        rig = object.__new__(kind)
        descriptors, available, used = rig.format.sizes(size)
        self.places = (0, descriptors, descriptors + -(-available // 4) * 4)
        view = map_file(self.ring.fileno(), SPACE, 0)
        rig.parts = tuple(view[at : at + part] for at, part in zip(self.places, (descriptors, available, used), strict=True))  # type: ignore[assignment]  # there are three
        rig.size, rig.steps, rig.next = size, 0, start
        rig.descriptors, rig.available, rig.used = rig.parts
        rig.buffers = map_file(self.memory.fileno(), SPACE, 0)
        rig.set_up(start)
        rig.device = rig.new_device(rig.base_at(start), indirect=True)
        return rig

    def message(self, request: int, body: Payload | None, *, reply: bool = False) -> Message:
        frame: Frame[int] = (reply_frame if reply else request_frame)(request, body)
        return Message(time.time_ns(), 0, Channel.FRONTEND, Role.BACKEND if reply else Role.FRONTEND, frame.pack())

    def tell(self, request: int, body: Payload | None = None, *fds: OwnedFd, reply: bool = False) -> None:
        """A message passes."""
        self.follower.passed(self.message(request, body, reply=reply), [fd.fileno() for fd in fds])

    def share(self) -> None:
        regions = [MemoryRegion(BUFFERS, SPACE, 1 << 32, 0), MemoryRegion(RING, SPACE, USER, 0)]
        self.tell(Q.SET_MEM_TABLE, MemoryTable(regions), self.memory, self.ring)

    def lay(self, start: int | None = None, *, at: int = USER) -> None:
        """The ring starts."""
        self.tell(Q.SET_VRING_NUM, VringState(0, self.rig.size))
        if start is not None:
            self.tell(Q.SET_VRING_BASE, VringState(0, self.rig.base_at(start)))
        self.place(at)
        self.tell(Q.SET_VRING_KICK, U64(0))

    def place(self, at: int = USER) -> None:
        descriptors, available, used = (at + place for place in self.places)
        self.tell(Q.SET_VRING_ADDR, VringAddr(0, 0, descriptors, used, available, 0))

    def stop(self, base: int = 0) -> None:
        """The ring has stopped."""
        self.tell(Q.GET_VRING_BASE, VringState(0, base), reply=True)

    def begin_again(self) -> None:
        """The ring stops and starts from the beginning, empty."""
        self.stop()
        for part in self.rig.parts:
            part[:] = bytes(part.nbytes)
        self.rig.next = 0
        self.rig.set_up(0)
        self.rig.device = self.rig.new_device(self.rig.base_at(0), indirect=True)
        self.lay(0)

    def answer(self, count: int = 1, *, written: int = 0) -> None:
        """The device takes requests and gives them back."""
        for _ in range(count):
            chain = self.rig.device.pop()
            assert chain
            chain.written = written
            self.rig.device.push(chain)
        self.rig.device.publish()

    def look(self, times: int = 2) -> list[Event]:
        """What is new since the last call."""
        before = len(self.events)
        for _ in range(times):
            self.follower.look()
        return self.events[before:]

    def close(self) -> None:
        self.follower.close()
        self.ring.close()
        self.memory.close()


def heads(events: list[Event]) -> list[tuple[str, int]]:
    """What was offered and used, by head."""
    return [(type(each).__name__, each.head) for each in events if isinstance(each, Offered | Used)]


def remarks(events: list[Event]) -> list[str]:
    return [f"{each.about.value}: {each.text}" for each in events if isinstance(each, Remark)]


def shrink(fd: OwnedFd, size: int = 0) -> None:
    os.ftruncate(fd.fileno(), size)
