"""Front-ends to hold to the rules: ours, ours with something changed on the way, and small ones that follow a script."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Final, Self

from vhostuser.conformance.scripted_backend import PROTOCOL
from vhostuser.errors import VhostUserError
from vhostuser.frontend import Frontend, FrontendOptions
from vhostuser.protocol.framing import Frame
from vhostuser.protocol.layout import Payload
from vhostuser.protocol.numbers import NEED_REPLY, VERSION, BackendRequest, FrontendRequest, ProtocolFeature
from vhostuser.protocol.payloads import U64, MemoryRegion, MemoryTable, VringAddr, VringState
from vhostuser.protocol.rules import Channel
from vhostuser.shared_objects import SharedObjects
from vhostuser.testing import DEADLINE
from vhostuser.testing.files import message, sparse_file
from vhostuser.testing.wire import ACK, Wire
from vhostuser.trace.event import Message
from vhostuser.trace.proxy import Proxy
from vhostuser.trace.verdict import Alter, Verdict
from vhostuser.transport.channel import OwnedMessage
from vhostuser.transport.fds import HasFileno, OwnedFd, close_all

F, Q, B = ProtocolFeature, FrontendRequest, BackendRequest
MEMORY: Final = 1 << 16
RING: Final = 16
BLOCKS: Final = 3
"""Blocks of memory that ours shares one by one, as far as there are slots."""
Drive = Callable[[socket.socket], None]


class Driven:
    """A FrontendPeer: each connection is one of `drive`, in a thread; through a proxy if `alter` makes it wrong."""

    def __init__(self, drive: Drive, alter: Callable[[], Alter] | None = None, *, death: str = "") -> None:
        self._drive, self._alter, self._death = drive, alter, death
        self._threads: list[threading.Thread] = []
        self._proxies: list[Proxy] = []
        self._ours: list[socket.socket] = []

    def accept(self) -> socket.socket:
        ours, theirs = socket.socketpair()
        if self._alter:
            front, behind = socket.socketpair()
            proxy = Proxy(behind, theirs, lambda event: None, alter=self._alter())
            self._proxies.append(proxy)
            self._start(proxy.run, "proxy")
            theirs = front
        self._start(lambda: self._drive(theirs), "front-end")
        return ours

    def retire(self) -> bool:
        return False

    def crashed(self) -> str:
        return self._death

    def _start(self, run: Callable[[], object], name: str) -> None:
        thread = threading.Thread(target=run, name=name)
        self._threads.append(thread)
        thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        for proxy in self._proxies:
            proxy.stop()
        for thread in self._threads:
            thread.join(DEADLINE)
            assert not thread.is_alive(), f"the {thread.name} does not end"


# Ours


def steady(sock: socket.socket, kind: type[Frontend] = Frontend, **options: object) -> None:
    """Start a ring, and serve the back-end until it is gone."""
    settings: FrontendOptions = {"reply_timeout": DEADLINE, **options}  # type: ignore[typeddict-item]
    with contextlib.suppress(VhostUserError), kind(sock, **settings) as frontend:
        _begin(frontend)
        frontend.serve()


def inband(sock: socket.socket) -> None:
    """The same with kicks and calls as messages."""
    steady(sock, inband=True)


def sharing(sock: socket.socket) -> None:
    """The same with a table of shared objects."""
    steady(sock, shared_objects=SharedObjects())


class Withholding(Frontend):
    """It says yes to a lookup, and keeps the fd."""

    def on_shared_object_lookup(self, message: OwnedMessage) -> None:
        if fd := super().on_shared_object_lookup(message):
            fd.close()


def withholding(sock: socket.socket) -> None:
    """`sharing`, of a kind that keeps what it should give."""
    steady(sock, Withholding, shared_objects=SharedObjects())


def restless(sock: socket.socket) -> None:
    """Reset the device as soon as something is mapped, and start it again."""
    with contextlib.suppress(VhostUserError), Frontend(sock, reply_timeout=DEADLINE) as frontend:
        _begin(frontend)
        while not any(region.mappings for region in frontend.shm.values()):
            frontend.serve(0.005)
        frontend.reset()
        frontend.start_queue(0, size=RING)
        frontend.serve()


def stopping(sock: socket.socket) -> None:
    """Stop the ring as soon as something is mapped."""
    with contextlib.suppress(VhostUserError), Frontend(sock, reply_timeout=DEADLINE) as frontend:
        _begin(frontend)
        while not any(region.mappings for region in frontend.shm.values()):
            frontend.serve(0.005)
        frontend.stop_queue(0)
        frontend.serve()


def with_blocks(sock: socket.socket) -> None:
    """Share some memory more, as far as there are slots."""
    with contextlib.suppress(VhostUserError), Frontend(sock, reply_timeout=DEADLINE) as frontend:
        frontend.share_memory(MEMORY)
        for _ in range(BLOCKS):
            frontend.add_memory(4096)
        frontend.serve()


def _begin(frontend: Frontend) -> None:
    frontend.share_memory(MEMORY)
    frontend.start_queue(0, size=RING)


# What may be changed on the way


def says(status: int) -> Callable[[], Alter]:
    """Every acknowledgement on the back-end channel has this status."""
    answer = status.to_bytes(8, "little")
    return lambda: (
        lambda sent, fds: _replaced(sent, sent.flags, answer) if sent.channel is Channel.BACKEND and not sent.asks else None
    )


def answers_to(request: int, answer: Callable[[Message, Sequence[int]], Verdict]) -> Callable[[], Alter]:
    """The front-end's answers to one request of the back-end are what `answer` makes of them."""

    def alter(sent: Message, fds: Sequence[int]) -> Verdict | None:
        return answer(sent, fds) if sent.channel is Channel.BACKEND and not sent.asks and sent.request == request else None

    return lambda: alter


def number(value: int) -> Callable[[Message, Sequence[int]], Verdict]:
    """Another number in an answer."""
    return lambda sent, fds: _replaced(sent, sent.flags, value.to_bytes(8, "little"))


def twice(sent: Message, fds: Sequence[int]) -> Verdict:
    """The same answer again."""
    return Verdict("repeated", data=sent.data * 2)


def ends_at(request: int) -> Callable[[], Alter]:
    """The connection ends where the back-end asks for this."""

    def alter(sent: Message, fds: Sequence[int]) -> Verdict | None:
        ends = sent.channel is Channel.BACKEND and sent.asks and sent.request == request
        return Verdict("ended", close=True) if ends else None

    return lambda: alter


def loses(*requests: int) -> Callable[[], Alter]:
    """Requests of the back-end that ask for no acknowledgement never arrive."""

    def alter(sent: Message, fds: Sequence[int]) -> Verdict | None:
        wanted = sent.channel is Channel.BACKEND and sent.asks and sent.request in requests and not sent.flags & NEED_REPLY
        return Verdict("lost", data=b"") if wanted else None

    return lambda: alter


def changes(request: int, change: Callable[[Message], bytes]) -> Callable[[], Alter]:
    """A request of the front-end has another form: what `change` makes of it."""

    def alter(sent: Message, fds: Sequence[int]) -> Verdict | None:
        wanted = sent.channel is Channel.FRONTEND and sent.asks and sent.request == request
        return Verdict("changed", data=change(sent)) if wanted else None

    return lambda: alter


def acknowledges_as(number: int) -> Callable[[], Alter]:
    """Acknowledgements on the back-end channel have another request's number."""

    def alter(sent: Message, fds: Sequence[int]) -> Verdict | None:
        if sent.channel is not Channel.BACKEND or sent.asks:
            return None
        return Verdict("changed", data=message(number, sent.payload, flags=sent.flags))

    return lambda: alter


def ends_at_a_refusal() -> Alter:
    """The connection ends where the front-end refuses something."""

    def alter(sent: Message, fds: Sequence[int]) -> Verdict | None:
        no = sent.channel is Channel.BACKEND and not sent.asks and any(sent.payload)
        return Verdict("ended", close=True) if no else None

    return alter


def answers_in_its_stead(request: int, payload: bytes) -> Callable[[], Alter]:
    """The front-end sees this payload as the back-end's reply."""

    def alter(sent: Message, fds: Sequence[int]) -> Verdict | None:
        wanted = sent.channel is Channel.FRONTEND and not sent.asks and sent.request == request
        return _replaced(sent, sent.flags, payload) if wanted else None

    return lambda: alter


def _replaced(sent: Message, flags: int, payload: bytes) -> Verdict:
    return Verdict("changed", data=message(sent.request, payload, flags=flags))


# Small ones


def _memory() -> list[OwnedFd]:
    return [sparse_file(MEMORY, seal=True)]


def _eventfd() -> list[OwnedFd]:
    return [OwnedFd(os.eventfd(0, os.EFD_CLOEXEC))]


def _channel() -> tuple[socket.socket | None, list[HasFileno]]:
    ours, theirs = socket.socketpair()
    return ours, [theirs]


def acknowledge(frame: Frame[OwnedFd]) -> bytes:
    """Yes to everything that wants an answer."""
    return message(frame.request, U64(0), flags=ACK) if frame.need_reply else b""


STEPS: Final = "owner features requests regions memory ring"
ADDRESSES: Final = VringAddr(0, 0, 0, 512, 256, 0)


@dataclass
class Script:
    """What a small front-end does: as a right one that knows nothing better, unless a field says otherwise."""

    steps: str = STEPS
    flags: int = VERSION
    asks: int = NEED_REPLY
    """The flag of what it wants acknowledged."""
    waits: bool = False
    """It waits for acknowledgements whether they were agreed on or not."""
    takes: Callable[[int], int] = lambda offered: offered & PROTOCOL
    accepts: Callable[[int], int] = lambda offered: offered
    lax: bool = False
    """It looks at no reply, and goes on."""
    first: tuple[int, ...] = ()
    """Requests before all others."""
    table: Payload | bytes = field(default_factory=lambda: MemoryTable([MemoryRegion(0, MEMORY, 0, 0)]))
    files: Callable[[], list[OwnedFd]] = _memory
    addresses: VringAddr = ADDRESSES
    num: int = RING
    base: int = 0
    ring: str = "num base addr call kick enable"
    index: int = 0
    kick: Callable[[], list[OwnedFd]] = _eventfd
    kick_bits: int = 0
    enable: int = 1
    channel: Callable[[], tuple[socket.socket | None, list[HasFileno]]] = _channel
    answers: Callable[[Frame[OwnedFd]], bytes] = acknowledge
    whole: bool = False
    """It takes each read of the back-end channel for a message."""
    clings: bool = False
    """It ends with its back-end channel."""
    at_the_end: tuple[tuple[int, Payload | None], ...] = ()
    """What it says once something was mapped."""
    many: bool = False
    """It wants to know how many queues there are."""
    deaf: bool = False
    """It does not notice the end of its back-end."""

    def __call__(self, sock: socket.socket) -> None:
        with sock, contextlib.suppress(AssertionError, OSError, _Enough):
            Small(self, sock).run()


class _Enough(Exception):
    """It ends here."""


class Small:
    """One run of a script."""

    def __init__(self, script: Script, sock: socket.socket) -> None:
        self.script, self.wire = script, Wire(sock, deadline=DEADLINE)
        self.acknowledged = 0
        self.channel: Wire | None = None

    def run(self) -> None:
        for request in self.script.first:
            self.tell(request)
        features = self.value(Q.GET_FEATURES)
        if features >> 30 & 1 or self.script.lax:
            offered = self.value(Q.GET_PROTOCOL_FEATURES)
            taken = self.script.takes(PROTOCOL if self.script.lax else offered)
            self.tell(Q.SET_PROTOCOL_FEATURES, U64(taken))
            self.acknowledged = taken
            if taken & 1:
                self.value(Q.GET_QUEUE_NUM)
            elif self.script.many:
                raise _Enough
        try:
            for step in self.script.steps.split():
                getattr(self, step)(features)
            self.serve()
        finally:
            if self.channel:
                self.channel.close()

    def value(self, request: int, size: int = 8) -> int:
        """Ask for a number."""
        self.wire.request(request, flags=self.script.flags)
        return self.reply(size)

    def reply(self, size: int = 8) -> int:
        """One read is a reply."""
        data = self.wire.socket.recv(4096)
        if not data or (len(data) < 12 + size and not self.script.lax):
            raise _Enough
        return int.from_bytes(data[12:20], "little")

    def tell(self, request: int, body: Payload | bytes | None = None, fds: Sequence[int | HasFileno] = ()) -> None:
        """Say something."""
        self.wire.request(request, body, fds=fds, flags=self.script.flags)

    def sure(self, request: int, body: Payload | bytes | None = None, fds: Sequence[int | HasFileno] = ()) -> None:
        """Say something, and take the acknowledgement for granted."""
        acknowledged = self.script.waits or bool(self.acknowledged >> F.REPLY_ACK & 1 and self.script.asks)
        self.wire.request(request, body, fds=fds, flags=self.script.flags | self.script.asks)
        if acknowledged:
            self.reply()

    # Steps

    def owner(self, features: int) -> None:
        self.tell(Q.SET_OWNER)

    def features(self, features: int) -> None:
        self.tell(Q.SET_FEATURES, U64(self.script.accepts(features)))

    def requests(self, features: int) -> None:
        if not self.acknowledged >> F.BACKEND_REQ & 1:
            return
        ours, theirs = self.script.channel()
        self.channel = Wire(ours, deadline=DEADLINE) if ours else None
        try:
            self.sure(Q.SET_BACKEND_REQ_FD, None, theirs)
        finally:
            for each in theirs:
                each.close()  # type: ignore[attr-defined]

    def regions(self, features: int) -> None:
        if self.acknowledged >> F.SHMEM & 1:
            self.value(Q.GET_SHMEM_CONFIG, 2056)

    def slots(self, features: int) -> None:
        self.value(Q.GET_MAX_MEM_SLOTS)

    def memory(self, features: int) -> None:
        files = self.script.files()
        try:
            self.sure(Q.SET_MEM_TABLE, self.script.table, files)
        finally:
            close_all(files)

    def added(self, features: int) -> None:
        for number in range(BLOCKS):
            with sparse_file(4096, seal=True) as file:
                region = MemoryRegion((1 + number) << 20, 4096, (1 + number) << 20, 0)
                self.sure(Q.ADD_MEM_REG, bytes(8) + region.pack(), [file])

    def ring(self, features: int) -> None:
        for part in self.script.ring.split():
            getattr(self, f"ring_{part}")()

    def ring_num(self) -> None:
        self.tell(Q.SET_VRING_NUM, VringState(self.script.index, self.script.num))

    def ring_base(self) -> None:
        self.tell(Q.SET_VRING_BASE, VringState(self.script.index, self.script.base))

    def ring_addr(self) -> None:
        self.tell(Q.SET_VRING_ADDR, self.script.addresses)

    def ring_call(self) -> None:
        self.signal(Q.SET_VRING_CALL)

    def ring_kick(self) -> None:
        self.signal(Q.SET_VRING_KICK)

    def signal(self, request: int) -> None:
        files = self.script.kick()
        try:
            self.sure(request, U64(self.script.index | self.script.kick_bits), files)
        finally:
            close_all(files)

    def ring_enable(self) -> None:
        self.sure(Q.SET_VRING_ENABLE, VringState(self.script.index, self.script.enable))

    def ring_again(self) -> None:
        self.sure(Q.SET_VRING_ENABLE, VringState(self.script.index, 1))

    # Serving

    def serve(self) -> None:
        """Answer the back-end's requests until the end."""
        while True:
            poll = select.poll()
            for wire in (self.wire, self.channel):
                if wire:
                    poll.register(wire, select.POLLIN)
            ready = [fd for fd, _ in poll.poll(DEADLINE * 1000)]
            if not ready:
                return
            if self.channel and self.channel.fileno() in ready:
                self.hear(self.channel)
            elif self.wire.fileno() in ready:
                self.main_says()

    def main_says(self) -> None:
        """Something came on the main channel: its end, or a message, which is not looked at."""
        if not self.wire.socket.recv(4096) and not self.script.deaf:
            raise _Enough
        if self.script.deaf:
            poll = select.poll()
            poll.register(self.wire, 0)
            poll.poll(DEADLINE * 1000)
            raise _Enough

    def hear(self, channel: Wire) -> None:
        """One request, or the end of the back-end channel."""
        if self.script.whole:
            data = channel.socket.recv(4096)
            frame: Frame[OwnedFd] | None = Frame(int.from_bytes(data[:4], "little"), 9, data[12:]) if data else None
            if data and len(data) != 52:
                raise _Enough
        else:
            frame = channel.receive_or_end()
        if frame is None:
            if self.script.clings:
                raise _Enough
            channel.close()
            self.channel = None
            return
        channel.send(self.script.answers(frame))
        close_all(frame.fds)
        if frame.request == B.SHMEM_MAP:
            for request, body in self.script.at_the_end:
                self.wire.request(request, body)


def answers_all(status: int) -> Callable[[Frame[OwnedFd]], bytes]:
    """Acknowledge all, also what does not ask for it."""
    return lambda frame: message(frame.request, U64(status), flags=ACK)


def answers_twice(frame: Frame[OwnedFd]) -> bytes:
    """Acknowledge twice."""
    return answers_all(1)(frame) * 2


def hasty(sock: socket.socket) -> None:
    """Ours, without any patience."""
    steady(sock, reply_timeout=0.1)


@dataclass
class Forgetful(Script):
    """It resets its device as soon as something was mapped, and keeps the mapping."""

    at_the_end: tuple[tuple[int, Payload | None], ...] = (
        (Q.RESET_DEVICE, None),
        (Q.SET_VRING_KICK, U64(1 << 8)),
        (Q.SET_VRING_ENABLE, VringState(0, 1)),
    )

    def __call__(self, sock: socket.socket) -> None:
        taken: set[bytes] = set()

        def answer(frame: Frame[OwnedFd]) -> bytes:
            status = int(frame.payload in taken)
            taken.add(frame.payload)
            return message(frame.request, U64(status), flags=ACK)

        self.answers = answer
        super().__call__(sock)
