"""Back-ends that are wrong on purpose: ours, with one thing changed on the way."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

from vhostuser.backend import Backend
from vhostuser.device import Device
from vhostuser.errors import VhostUserError
from vhostuser.protocol.numbers import VERSION
from vhostuser.protocol.payloads import HEADER
from vhostuser.testing import DEADLINE
from vhostuser.testing.files import message
from vhostuser.trace.event import Message
from vhostuser.trace.proxy import Proxy
from vhostuser.trace.verdict import Alter, Verdict


class Behind:
    """A Peer: each connection is to a back-end of this process, through a proxy that `alter` makes wrong."""

    def __init__(self, device: Callable[[], Device], alter: Callable[[], Alter] | None = None) -> None:
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

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        for end in self._ends:
            end()


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


def instead(request: int, answer: bytes) -> Callable[[], Alter]:
    """A request of that number never reaches the back-end; this is what comes back."""
    return lambda: (
        lambda sent, fds: Verdict("answered", data=b"", answer=answer) if sent.asks and sent.request == request else None
    )


def _changed(sent: Message, *, flags: int) -> Verdict:
    return Verdict("changed", data=HEADER.pack(sent.request, flags, len(sent.payload)) + sent.payload)


def acknowledged(request: int, status: int = 0) -> Callable[[], Alter]:
    """A request of that number is acknowledged, and not done."""
    return instead(request, message(request, status.to_bytes(8, "little"), flags=VERSION | 4))
