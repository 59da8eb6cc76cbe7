"""Back-ends that are wrong on purpose: ours, with one thing changed on the way."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from vhostuser.backend import Backend
from vhostuser.device import Device
from vhostuser.errors import VhostUserError
from vhostuser.protocol.numbers import NEED_REPLY, REPLY, VERSION
from vhostuser.protocol.payloads import HEADER
from vhostuser.protocol.rules import Channel
from vhostuser.testing import DEADLINE
from vhostuser.testing.files import message
from vhostuser.trace.event import Message
from vhostuser.trace.proxy import Proxy
from vhostuser.trace.verdict import Alter, Verdict

Make = Callable[[], Alter]


@dataclass(frozen=True, slots=True)
class Wrong:
    """What makes a back-end break a rule."""

    alter: Make | None = None
    """What is done to its messages."""
    device: Callable[[], Device] | None = None
    queue: Callable[..., object] | None = None
    """What makes its queues, in place of `virtqueue.new_device_queue`."""
    serve: Callable[[socket.socket], None] | None = None
    """A back-end of its own."""
    timeout: float = 1.0


class Behind:
    """A Peer: each connection is to a back-end of this process, through a proxy that `alter` makes wrong."""

    def __init__(self, device: Callable[[], Device], alter: Make | None = None) -> None:
        self._device, self._alter = device, alter
        self._ends: list[Callable[[], None]] = []

    def connect(self) -> socket.socket:
        backend = Backend(self._device())
        ours, front = socket.socketpair()
        back, theirs = socket.socketpair()
        alter = self._alter() if self._alter else None
        proxy = Proxy(front, back, lambda event: None, alter=alter)
        threads = [
            threading.Thread(target=_serve, args=(backend, theirs.detach()), name="back-end"),
            threading.Thread(target=proxy.run, name="proxy"),
        ]
        for thread in threads:
            thread.start()
        self._ends += [proxy.stop, backend.stop, *(lambda thread=thread: thread.join(DEADLINE) for thread in threads)]
        return ours

    def crashed(self) -> str:
        return ""

    def renew(self) -> None:
        pass

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        for end in self._ends:
            end()


class Scripted:
    """A Peer: a function of its socket, in a thread."""

    def __init__(self, serve: Callable[[socket.socket], None]) -> None:
        self._serve = serve
        self._threads: list[threading.Thread] = []

    def connect(self) -> socket.socket:
        ours, theirs = socket.socketpair()
        thread = threading.Thread(target=self._run, args=(theirs,), name="scripted back-end")
        thread.start()
        self._threads.append(thread)
        return ours

    def _run(self, sock: socket.socket) -> None:
        with sock, contextlib.suppress(ConnectionError):
            self._serve(sock)

    def crashed(self) -> str:
        return ""

    def renew(self) -> None:
        pass

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        for thread in self._threads:
            thread.join(DEADLINE)


def _serve(backend: Backend, fd: int) -> None:
    with contextlib.suppress(VhostUserError):  # that the front-end breaks the protocol is what rules are about
        backend.serve_fd(fd)


# What may be done to a message


def reply_flags(flags: int) -> Callable[[], Alter]:
    """Replies of the back-end have these flags."""
    return lambda: lambda sent, fds: None if sent.asks else _changed(sent, flags=flags)


def reply_flags_if_asked(flags: int, asked: int) -> Callable[[], Alter]:
    """The same, of those to requests with the flags `asked`."""

    def make() -> Alter:
        last = [0]

        def alter(sent: Message, fds: Sequence[int]) -> Verdict | None:
            if sent.asks:
                last[0] = sent.flags
                return None
            return _changed(sent, flags=flags) if last[0] == asked else None

        return alter

    return make


def yes_to(request: int, size: int = -1) -> Wrong:
    """A request of that number that wants an acknowledgement gets a yes, and is not done; or only one of `size` bytes."""

    def alter(sent: Message, fds: Sequence[int]) -> Verdict | None:
        mine = _asks(sent, request) and sent.flags & NEED_REPLY and size in (-1, len(sent.payload))
        return Verdict("yes", data=b"", answer=acknowledgement(request)) if mine else None

    return Wrong(lambda: alter)


def no_to(request: int) -> Wrong:
    """The same with a no."""

    def alter(sent: Message, fds: Sequence[int]) -> Verdict | None:
        mine = _asks(sent, request) and sent.flags & NEED_REPLY
        return Verdict("no", data=b"", answer=acknowledgement(request, 1)) if mine else None

    return Wrong(lambda: alter)


def then_no_to(request: int, done: int = 1) -> Wrong:
    """So many times it is done, then there is a no."""

    def make() -> Alter:
        times = [0]

        def alter(sent: Message, fds: Sequence[int]) -> Verdict | None:
            if not _asks(sent, request):
                return None
            times[0] += 1
            return Verdict("no", data=b"", answer=acknowledgement(request, 1)) if times[0] > done else None

        return alter

    return Wrong(make)


def replying(request: int, payload: bytes) -> Wrong:
    """A request of that number is answered with this payload, whatever it asked."""
    return Wrong(instead(request, message(request, payload, flags=VERSION | REPLY)))


def answering_unasked(request: int, payload: bytes = bytes(8)) -> Wrong:
    """A request of that number is done, and answered once more."""

    def alter(sent: Message, fds: Sequence[int]) -> Verdict | None:
        answer = message(request, payload, flags=VERSION | REPLY)
        return Verdict("answered as well", answer=answer) if _asks(sent, request) else None

    return Wrong(lambda: alter)


def silent_to(request: int, *, after: int = 0) -> Wrong:
    """A request of that number is not answered, once it was so many times."""
    return Wrong(lambda: _at(request, after, Verdict("lost", data=b"")), timeout=0.15)


def leaving_at(request: int, *, after: int = 0) -> Wrong:
    """The same with one that ends the connection: nothing that comes behind it is seen."""

    def make() -> Alter:
        times = [0]

        def alter(sent: Message, fds: Sequence[int]) -> Verdict | None:
            times[0] += _asks(sent, request)
            return Verdict("left", data=b"", close=True) if times[0] > after else None

        return alter

    return Wrong(make)


def _at(request: int, after: int, verdict: Verdict) -> Alter:
    times = [0]

    def alter(sent: Message, fds: Sequence[int]) -> Verdict | None:
        times[0] += _asks(sent, request)
        return verdict if _asks(sent, request) and times[0] > after else None

    return alter


def in_reply(request: int, change: Callable[[bytes], bytes]) -> Wrong:
    """The payload of the reply to a request is another one."""

    def alter(sent: Message, fds: Sequence[int]) -> Verdict | None:
        if sent.asks or sent.channel is not Channel.FRONTEND or sent.request != request:
            return None
        return _with_payload(sent, change(sent.payload))

    return Wrong(lambda: alter)


def in_request(request: int, change: Callable[[bytes], bytes], *, device: Callable[[], Device] | None = None) -> Wrong:
    """The payload of a request on the back-end channel is another one."""

    def alter(sent: Message, fds: Sequence[int]) -> Verdict | None:
        if not sent.asks or sent.channel is not Channel.BACKEND or sent.request != request:
            return None
        return _with_payload(sent, change(sent.payload))

    return Wrong(lambda: alter, device)


def told(request: int, change: Callable[[bytes], bytes]) -> Wrong:
    """The payload of a request of the front-end is another one when it comes."""

    def alter(sent: Message, fds: Sequence[int]) -> Verdict | None:
        return _with_payload(sent, change(sent.payload)) if _asks(sent, request) else None

    return Wrong(lambda: alter)


def deaf_to(request: int, time: int) -> Wrong:
    """A request of that number gets a yes each time, and is not done that time, or ever if `time` is 0."""

    def make() -> Alter:
        times = [0]

        def alter(sent: Message, fds: Sequence[int]) -> Verdict | None:
            times[0] += _asks(sent, request)
            if not _asks(sent, request) or time not in (0, times[0]):
                return None
            return Verdict("not done", data=b"", answer=acknowledgement(request))

        return alter

    return Wrong(make)


def calling(request: int, other: int) -> Wrong:
    """A request on the back-end channel has the number of another one."""

    def alter(sent: Message, fds: Sequence[int]) -> Verdict | None:
        if not sent.asks or sent.channel is not Channel.BACKEND or sent.request != request:
            return None
        return Verdict("renamed", data=message(other, sent.payload, flags=sent.flags))

    return Wrong(lambda: alter)


def put(at: int, value: int, size: int = 8) -> Callable[[bytes], bytes]:
    """A payload in which a number is another one."""
    return lambda data: data[:at] + value.to_bytes(size, "little") + data[at + size :]


def instead(request: int, answer: bytes) -> Make:
    """A request of that number never reaches the back-end; this is what comes back."""
    return lambda: lambda sent, fds: Verdict("answered", data=b"", answer=answer) if _asks(sent, request) else None


def acknowledgement(request: int, status: int = 0) -> bytes:
    """An acknowledgement."""
    return message(request, status.to_bytes(8, "little"), flags=VERSION | REPLY)


def _asks(sent: Message, request: int) -> bool:
    return sent.asks and sent.channel is Channel.FRONTEND and sent.request == request


def _with_payload(sent: Message, payload: bytes) -> Verdict:
    return Verdict("changed", data=HEADER.pack(sent.request, sent.flags, len(payload)) + payload)


def _changed(sent: Message, *, flags: int) -> Verdict:
    return Verdict("changed", data=HEADER.pack(sent.request, flags, len(sent.payload)) + sent.payload)
