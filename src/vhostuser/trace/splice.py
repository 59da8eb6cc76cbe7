"""The two sockets of one channel with the proxy between them, and how their ends are passed on."""

from __future__ import annotations

import contextlib
import select
import socket
from typing import Final

from ..protocol.rules import Channel
from ..protocol.state import Role
from .flow import Flow

_HANGUP: Final = select.POLLHUP | select.POLLERR


class Splice:
    """One channel: a socket to the front-end, one to the back-end, and a flow each way."""

    def __init__(self, channel: Channel, front: socket.socket, back: socket.socket) -> None:
        self.channel, self.front, self.back = channel, front, back
        self.there = Flow(channel, Role.FRONTEND, front, back)
        self.here = Flow(channel, Role.BACKEND, back, front)
        self.flows = (self.there, self.here)
        self.ended_by: Role | None = None
        """Who ended it, or began to."""

    @property
    def over(self) -> bool:
        """Nothing can pass any more, either way."""
        return self.there.over and self.here.over

    @property
    def closed(self) -> bool:
        """Its sockets are closed."""
        return self.front.fileno() < 0

    def from_and_to(self, sock: socket.socket) -> tuple[Flow, Flow]:
        """The flow that comes from a socket, and the one that goes there."""
        return (self.there, self.here) if sock is self.front else (self.here, self.there)

    def other(self, flow: Flow) -> Flow:
        """The flow the other way."""
        return self.here if flow is self.there else self.there

    def interest(self, sock: socket.socket) -> int:
        """What to poll a socket for; -1 for not at all.

        Even with nothing to read or write a socket tells that its peer is gone, and goes on telling: it may be asked only
        while there is something to be done about that.
        """
        comes, goes = self.from_and_to(sock)
        reads = comes.reads and not (goes.extra and not goes.gone) and not comes.over
        if not reads and goes.over:
            return -1
        return (select.POLLIN if reads else 0) | (select.POLLOUT if goes.blocked and not goes.over else 0)

    def settle(self, flow: Flow) -> str:
        """Pass the end of a flow on once all before it has gone; what happened in words, empty if nothing did."""
        if flow.over or not (flow.gone or flow.done):
            return ""
        flow.over = True
        other = self.other(flow)
        if flow.gone:
            self.ended_by = self.ended_by or other.sender
            _shut(flow.source, socket.SHUT_RD)
            return ""
        if is_gone(flow.source) or other.over:
            other.over = True
            _shut(flow.target, socket.SHUT_RDWR)
        else:
            _shut(flow.target, socket.SHUT_WR)
        first = self.ended_by is None
        self.ended_by = self.ended_by or flow.sender
        return "" if self.over or not first else f"{flow.sender.value} sends no more on the {self.channel.value} channel"

    def hang_up(self, sock: socket.socket) -> None:
        """The peer behind `sock` is gone: nothing goes there any more. What it has sent is read nevertheless."""
        comes, goes = self.from_and_to(sock)
        if not comes.reads:
            goes.gone = True
            self.ended_by = self.ended_by or comes.sender

    def close(self) -> None:
        """Close the sockets, and the fds that are on their way."""
        for flow in self.flows:
            flow.close()
        self.front.close()
        self.back.close()


def is_gone(sock: socket.socket) -> bool:
    """The peer has closed the connection altogether, not just its own direction."""
    poll = select.poll()
    poll.register(sock, 0)
    return any(events & _HANGUP for _, events in poll.poll(0))


def _shut(sock: socket.socket, how: int) -> None:
    with contextlib.suppress(OSError):
        sock.shutdown(how)
