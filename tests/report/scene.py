"""A longer capture made by hand: what a report has to draw, on a clock that says when."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tests.trace.building import BEGAN, FEATURES
from vhostuser.protocol.framing import Frame, reply_frame, request_frame
from vhostuser.protocol.layout import Payload
from vhostuser.protocol.numbers import MAP_RW, BackendRequest, FrontendRequest
from vhostuser.protocol.payloads import U64, MemoryRegion, MemoryTable, Mmap, ShmemConfig, VringAddr, VringState
from vhostuser.protocol.rules import Channel
from vhostuser.protocol.state import Role
from vhostuser.trace.event import Buffer, Event, FdNote, Message, Offered, Remark, Remarkable, Used

Q, B = FrontendRequest, BackendRequest
MS = 1_000_000
MIB = 1 << 20
PHOTO = FdNote(7, "file", "/srv/pictures/photo.raw", 1, 1001, 16 * MIB, "r")
NOTES = FdNote(8, "file", "/srv/notes.raw", 1, 1002, 8 * MIB)
CACHE = FdNote(9, "memfd", "/memfd:cache (deleted)", 1, 1003, 64 * MIB, "rw", ("shrink",))
EVENT = FdNote(10, "eventfd", "anon_inode:[eventfd]", 13, 1)
GUEST = FdNote(11, "memfd", "/memfd:guest (deleted)", 1, 1004, 512 * MIB, "rw", ("shrink", "grow"))
SOCKET = FdNote(12, "socket", "socket:[77]", 8, 77)
VIRTIO = 1 << 30 | 1 << 32
REGION = 1 << 30


class Scene:
    """Events of one connection; `wait` lets time pass."""

    def __init__(self, connection: int = 0, features: int = FEATURES) -> None:
        self.connection, self.features = connection, features
        self.at = BEGAN
        self.events: list[Event] = []

    def wait(self, nanoseconds: int) -> None:
        self.at += nanoseconds

    def message(self, channel: Channel, sender: Role, frame: Frame[int], fds: Sequence[FdNote] = ()) -> None:
        self.events.append(Message(self.at, self.connection, channel, sender, frame.pack(), tuple(fds)))

    def ask(self, request: int, body: Payload | None = None, *fds: FdNote, need_reply: bool = False) -> None:
        """A request of the front-end."""
        self.wait(20_000)
        self.message(Channel.FRONTEND, Role.FRONTEND, request_frame(request, body, need_reply=need_reply), fds)

    def answer(self, request: int, body: Payload | None = None, *, after: int = 30_000) -> None:
        """The back-end's reply."""
        self.wait(after)
        self.message(Channel.FRONTEND, Role.BACKEND, reply_frame(request, body))

    def get(self, request: int, body: Payload, sent: Payload | None = None) -> None:
        self.ask(request, sent)
        self.answer(request, body)

    def set(self, request: int, body: Payload | None, *fds: FdNote) -> None:
        """A request that wants an acknowledgement, and its acknowledgement."""
        self.ask(request, body, *fds, need_reply=True)
        self.answer(request, U64(0))

    def call(self, request: int, body: Payload, *fds: FdNote, status: int | None = 0, after: int = 60_000) -> None:
        """A request of the back-end and its acknowledgement, if one comes."""
        self.wait(10_000)
        self.message(Channel.BACKEND, Role.BACKEND, request_frame(request, body, need_reply=True), fds)
        if status is not None:
            self.wait(after)
            self.message(Channel.BACKEND, Role.FRONTEND, reply_frame(request, U64(status)))

    def map(
        self, file: FdNote, offset: int, len: int, *, rw: bool = False, status: int | None = 0, after: int = 60_000
    ) -> None:
        body = Mmap(0, 0, offset, len, MAP_RW if rw else 0)
        self.call(B.SHMEM_MAP, body, file, status=status, after=after)

    def unmap(self, offset: int, len: int, *, status: int | None = 0) -> None:
        self.call(B.SHMEM_UNMAP, Mmap(0, 0, offset, len), status=status)

    def remark(self, about: Remarkable, text: str = "") -> None:
        self.wait(5_000)
        self.events.append(Remark(self.at, self.connection, about, text))

    def begin(self, size: int = REGION) -> None:
        """All that comes before a driver runs the device."""
        self.remark(Remarkable.OPENED, "front-end: pid 4711; back-end: /run/fs.sock")
        self.get(Q.GET_FEATURES, U64(VIRTIO | 1 << 28))
        self.get(Q.GET_PROTOCOL_FEATURES, U64(self.features | 1))
        self.ask(Q.SET_PROTOCOL_FEATURES, U64(self.features))
        self.set(Q.SET_BACKEND_REQ_FD, None, SOCKET)
        self.ask(Q.SET_OWNER)
        self.get(Q.GET_SHMEM_CONFIG, ShmemConfig({0: size}))
        self.ask(Q.SET_FEATURES, U64(VIRTIO))
        self.set(Q.SET_MEM_TABLE, MemoryTable((MemoryRegion(0, 512 * MIB, 0x7F0000000000, 0),)), GUEST)
        self.start()

    def start(self) -> None:
        """Ring 0."""
        self.ask(Q.SET_VRING_NUM, VringState(0, 128))
        self.ask(Q.SET_VRING_BASE, VringState(0, 0))
        self.ask(Q.SET_VRING_ADDR, VringAddr(0, 0, 0x7F0000001000, 0x7F0000003000, 0x7F0000002000, 0))
        self.set(Q.SET_VRING_KICK, U64(0), EVENT)
        self.set(Q.SET_VRING_CALL, U64(0), EVENT)
        self.set(Q.SET_VRING_ENABLE, VringState(0, 1))

    def stop(self) -> None:
        self.set(Q.SET_VRING_ENABLE, VringState(0, 0))
        self.get(Q.GET_VRING_BASE, VringState(0, 17), VringState(0, 0))

    def close(self, text: str = "the front-end closed it") -> None:
        self.remark(Remarkable.CLOSED, text)


def session(connection: int = 0) -> list[Event]:
    """One of everything: mappings, refusals, a reset, a queue, a leak, a close."""
    scene = Scene(connection)
    scene.begin()
    scene.wait(5 * MS)
    scene.map(PHOTO, 0, 16 * MIB)
    scene.wait(8 * MS)
    scene.map(CACHE, 512 * MIB, 64 * MIB, rw=True, after=1_800_000)
    scene.events.append(
        Offered(scene.at, connection, 0, 3, (Buffer(0x1000, 40, False), Buffer(0x2000, 4096, True)), b"\x28")
    )
    scene.events.append(Used(scene.at + 3 * MS, connection, 0, 3, 4096, after=3 * MS))
    scene.wait(9 * MS)
    scene.map(NOTES, 128 * MIB, 8 * MIB, rw=True)
    scene.wait(6 * MS)
    scene.map(PHOTO, 132 * MIB, 16 * MIB, status=1)
    scene.wait(4 * MS)
    scene.map(PHOTO, 1 << 30, 16 * MIB, status=1)
    scene.unmap(0, 16 * MIB)
    scene.wait(7 * MS)
    scene.map(NOTES, 64 * MIB, 8 * MIB)
    scene.ask(Q.SET_VRING_ERR, U64(0x100), EVENT)
    scene.wait(6 * MS)
    scene.stop()
    scene.set(Q.RESET_DEVICE, None)
    scene.start()
    scene.wait(3 * MS)
    scene.map(PHOTO, 256 * MIB, 16 * MIB)
    scene.wait(12 * MS)
    scene.map(CACHE, 700 * MIB, 32 * MIB, rw=True, status=None)
    scene.wait(4 * MS)
    scene.close()
    return scene.events


def churn(count: int, *, connection: int = 0, size: int = 16 << 30) -> Iterator[Event]:
    """`count` messages of files that come and go, in a region of 16 GiB."""
    scene = Scene(connection)
    scene.begin(size)
    yield from scene.events
    slots, step = 2048, 2 * MIB
    made = len(scene.events)
    for turn in range(count):
        if made >= count:
            return
        scene.events.clear()
        slot, file = turn * 7 % slots, FdNote(20, "file", f"/srv/file-{turn % 23}", 1, 2000 + turn % 23, 4 << 30)
        if turn >= slots:
            scene.unmap(slot * 4 * step, step)
        scene.map(file, slot * 4 * step, step, rw=turn % 3 == 0, after=20_000 + turn * 7919 % 90_000)
        yield from scene.events
        made += len(scene.events)
