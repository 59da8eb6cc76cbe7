"""Captures made by hand: messages with the bytes that real peers would send."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count

from vhostuser.protocol.framing import Frame, reply_frame, request_frame
from vhostuser.protocol.layout import Payload
from vhostuser.protocol.numbers import BackendRequest, FrontendRequest, ProtocolFeature
from vhostuser.protocol.payloads import U64, Mmap, ShmemConfig
from vhostuser.protocol.rules import Channel
from vhostuser.protocol.state import Role
from vhostuser.trace.conversation import Conversation, Exchange, Item
from vhostuser.trace.event import Event, FdNote, Message, Remark, Remarkable

Q, B = FrontendRequest, BackendRequest
MICROSECOND = 1000
BEGAN = 1_700_000_000_000_000_000
FILE = FdNote(7, "file", "/srv/gamma.bin", dev=1, ino=1234, size=64 << 20, access="r")
FEATURES = sum(
    1 << bit
    for bit in (
        ProtocolFeature.REPLY_ACK,
        ProtocolFeature.BACKEND_REQ,
        ProtocolFeature.BACKEND_SEND_FD,
        ProtocolFeature.SHMEM,
        ProtocolFeature.CONFIG,
        ProtocolFeature.RESET_DEVICE,
    )
)


class Wire:
    """Makes the messages of one connection, one microsecond apart."""

    def __init__(self, connection: int = 0) -> None:
        self.connection = connection
        self._ticks = count(1)

    def now(self) -> int:
        return BEGAN + next(self._ticks) * MICROSECOND

    def message(self, channel: Channel, sender: Role, frame: Frame[int], fds: tuple[FdNote, ...] = ()) -> Message:
        return Message(self.now(), self.connection, channel, sender, frame.pack(), fds)

    def ask(self, request: int, body: Payload | None = None, *, need_reply: bool = False) -> Message:
        """A request of the front-end."""
        return self.message(Channel.FRONTEND, Role.FRONTEND, request_frame(request, body, need_reply=need_reply))

    def answer(self, request: int, body: Payload | None = None) -> Message:
        """The back-end's reply."""
        return self.message(Channel.FRONTEND, Role.BACKEND, reply_frame(request, body))

    def call(self, request: int, body: Payload | None, *fds: FdNote, need_reply: bool = True) -> Message:
        """A request of the back-end."""
        frame: Frame[int] = request_frame(request, body, need_reply=need_reply)
        return self.message(Channel.BACKEND, Role.BACKEND, frame, fds)

    def say(self, request: int, status: int = 0) -> Message:
        """The front-end's acknowledgement."""
        return self.message(Channel.BACKEND, Role.FRONTEND, reply_frame(request, U64(status)))

    def remark(self, about: Remarkable, text: str = "") -> Remark:
        return Remark(self.now(), self.connection, about, text)

    def agreed(self, features: int = FEATURES) -> list[Event]:
        """The negotiation of protocol features."""
        return [
            self.remark(Remarkable.OPENED),
            self.ask(Q.GET_FEATURES),
            self.answer(Q.GET_FEATURES, U64(1 << 30)),
            self.ask(Q.GET_PROTOCOL_FEATURES),
            self.answer(Q.GET_PROTOCOL_FEATURES, U64(features)),
            self.ask(Q.SET_PROTOCOL_FEATURES, U64(features)),
            self.ask(Q.SET_FEATURES, U64(1 << 30)),
        ]

    def region(self, size: int, shmid: int = 0) -> list[Event]:
        """The front-end asks for the sizes of regions."""
        return [self.ask(Q.GET_SHMEM_CONFIG), self.answer(Q.GET_SHMEM_CONFIG, ShmemConfig({shmid: size}))]

    def map(self, shm_offset: int, len: int, *, status: int = 0, fd: FdNote = FILE, shmid: int = 0) -> list[Event]:
        """SHMEM_MAP and its acknowledgement."""
        return [self.call(B.SHMEM_MAP, Mmap(shmid, 0, shm_offset, len), fd), self.say(B.SHMEM_MAP, status)]

    def unmap(self, shm_offset: int, len: int, *, status: int = 0, shmid: int = 0) -> list[Event]:
        """SHMEM_UNMAP and its acknowledgement."""
        return [self.call(B.SHMEM_UNMAP, Mmap(shmid, 0, shm_offset, len)), self.say(B.SHMEM_UNMAP, status)]


def items_of(events: Sequence[Event]) -> list[Item]:
    """What a conversation makes of events, to its end."""
    conversation = Conversation()
    return [item for event in events for item in conversation.take(event)] + conversation.end()


def exchanges_of(events: Sequence[Event]) -> list[Exchange]:
    return [item for item in items_of(events) if isinstance(item, Exchange)]
