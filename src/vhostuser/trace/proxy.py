"""Between a front-end and a back-end: passes on every message of both channels as it came, and tells what passed.

One thread, one loop. A message is passed on first and described afterwards, before its fds are closed; what takes longer,
the sink, waits until nothing else is to do. Nobody is kept waiting for the other channel: a side that reads no more stops
what goes its way, and nothing else.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct
import time
from collections import deque
from collections.abc import Callable
from typing import Final

from ..protocol.rules import Channel
from ..protocol.state import Role
from ..transport.fds import OwnedFd
from ..transport.loop import Waker
from .describe import described
from .event import Event, FdNote, Message, Remark, Remarkable
from .flow import Flow
from .splice import Splice
from .verdict import Alter, Verdict, Watch

BACKLOG: Final = 1024
"""Events that may wait for the sink; from there on each message waits for one of them."""
QUIET: Final = 1
"""Milliseconds of silence after which the sink gets what waits."""
LAST: Final = 256
"""Messages that are passed on yet on back-end channels once the main channel has ended."""
_WRITES: Final = select.POLLOUT | select.POLLERR
_ENDED: Final = select.POLLHUP | select.POLLERR
_Place = tuple[Splice, socket.socket, Flow]
"""A socket: its channel, and the flow that comes from there."""


class Proxy:
    """Passes messages on between `front` and `back`, two connected sockets that it closes in the end.

    `sink` is called in the thread of `run`, with each event in turn. `alter` is asked about each message before it goes on;
    `watch` sees each one, with its fds, after it went.
    """

    def __init__(
        self,
        front: socket.socket,
        back: socket.socket,
        sink: Callable[[Event], None],
        *,
        connection: int = 0,
        alter: Alter | None = None,
        watch: Watch | None = None,
    ) -> None:
        self.connection, self.messages = connection, 0
        """`messages` counts those that came, on both channels."""
        self._sink, self._alter, self._watch = sink, alter, watch
        self._waiting: deque[Event] = deque()
        self._record = self._waiting.append
        self._waker = Waker()
        self._poll = select.poll()
        self._poll.register(self._waker, select.POLLIN)
        self._masks: dict[int, int] = {}
        self._at: dict[int, _Place] = {}
        self._main = Splice(Channel.FRONTEND, front, back)
        self._paused: dict[Flow, Splice] = {}
        self._reason = ""

    def run(self) -> None:
        """Pass messages on until the main channel has ended, or `stop`."""
        try:
            self._record(Remark(time.time_ns(), self.connection, Remarkable.OPENED, _who(self._main)))
            self._add(self._main)
            while not self._main.over and not self._reason:
                self._turn(self._timeout())
            for _ in range(LAST):
                if not self._turn(0):
                    break
        finally:
            self._close()

    def stop(self, reason: str = "the tracer ended it") -> None:
        """End the session, from any thread or a signal handler."""
        self._reason = self._reason or reason
        self._waker.set()

    def tell(self, event: Event) -> None:
        """Let `event` go to the sink too, behind what waits; from any thread."""
        self._waiting.append(event)
        self._waker.set()

    # The loop

    def _turn(self, timeout: float | None) -> bool:
        """Wait for something to do, and do it; whether there was. When there is nothing, the sink gets what waits."""
        ready = self._poll.poll(timeout)
        for fd, events in ready:
            if (found := self._at.get(fd)) is not None:
                self._serve(found, events)
            else:
                self._waker.clear()
        if self._paused:
            self._resume()
        if not ready:
            self._tell_waiting()
        return bool(ready)

    def _timeout(self) -> float | None:
        """Milliseconds until there is something to do with no fd ready for it."""
        quiet = float(QUIET) if self._waiting else None
        if not self._paused:
            return quiet
        first = min(flow.paused_until for flow in self._paused)
        left = max(0.0, (first - time.monotonic_ns()) / 1e6)
        return left if quiet is None else min(left, quiet)

    def _resume(self) -> None:
        """Go on with the flows that have waited long enough."""
        now = time.monotonic_ns()
        for flow, splice in [*self._paused.items()]:
            if now >= flow.paused_until:
                del self._paused[flow]
                self._write(splice, flow)

    def _tell_waiting(self) -> None:
        """Give the sink what waits, until there is something else to do."""
        while self._waiting:
            self._sink(self._waiting.popleft())
            if self._poll.poll(0):
                return

    def _serve(self, place: _Place, events: int) -> None:
        splice, sock, comes = place
        if events & select.POLLIN and comes.reads:
            self._read(splice, comes)
        if events != select.POLLIN:
            self._serve_end(splice, sock, events)

    def _serve_end(self, splice: Splice, sock: socket.socket, events: int) -> None:
        """There is room again at a socket, or its peer is gone."""
        comes, goes = splice.from_and_to(sock)
        if events & _WRITES and goes.blocked:
            self._write(splice, goes)
        if events & _ENDED:
            if comes.reads:
                self._read(splice, comes)
            splice.hang_up(sock)
            self._end(splice, goes)

    def _read(self, splice: Splice, flow: Flow) -> None:
        """Take what has come: a message is passed on and told; of half a one goes on what may."""
        if flow.read():
            self._pass(splice, flow)
        elif self._alter is None and not flow.hands_over:
            flow.send()
        if not flow.calm or flow.blocked:
            self._end(splice, flow)

    def _write(self, splice: Splice, flow: Flow) -> None:
        """Go on sending where it stopped."""
        flow.send()
        if flow.sent and not flow.paused_until:
            flow.release()
        if flow.extra:
            flow.send(inserted_only=True)
        self._end(splice, flow)

    def _pass(self, splice: Splice, flow: Flow) -> None:
        """Pass on what is held, and tell it."""
        at, verdict = time.time_ns(), None
        notes: tuple[FdNote, ...] = ()
        if flow.fault:
            self._record(Remark(at, self.connection, Remarkable.BROKEN, _broken(flow)))
        if self._alter is not None and flow.whole:
            verdict = self._obey(flow, at, self._alter)
        if flow.fds and flow.whole and flow.hands_over and flow.pieces:
            notes = self._hand_over(flow)
        flow.send()
        if flow.fds:
            notes = notes or tuple([described(fd.fileno()) for fd in flow.fds])
        note = verdict.note if verdict else "not delivered" if flow.gone else ""
        message = Message(at, self.connection, flow.channel, flow.sender, flow.data, notes, flow.whole, note)
        self.messages += flow.whole
        if self._watch is not None:
            self._watch.passed(message, [fd.fileno() for fd in flow.fds])
        self._record(message)
        if verdict and verdict.answer:
            self._answer(splice, flow, verdict.answer)
        if flow.gone or not (flow.pieces or flow.paused_until):
            flow.release()
        if len(self._waiting) > BACKLOG:
            self._sink(self._waiting.popleft())

    # What is done to messages

    def _obey(self, flow: Flow, at: int, alter: Alter) -> Verdict | None:
        """Do to the message that is held what is to be done to it, which is returned."""
        message = Message(at, self.connection, flow.channel, flow.sender, flow.data)
        verdict = alter(message, [fd.fileno() for fd in flow.fds])
        if verdict is None:
            return None
        if verdict.close:
            flow.put(b"")
            self.stop(f"the tracer ended it: {verdict.note}")
        elif verdict.data is not None:
            flow.put(verdict.data)
        if verdict.delay:
            flow.paused_until = time.monotonic_ns() + verdict.delay
        return verdict

    def _answer(self, splice: Splice, flow: Flow, data: bytes) -> None:
        """Send `data` back to where the message came from, in the stead of whoever should have answered."""
        back = splice.other(flow)
        back.insert(data)
        back.send(inserted_only=True)
        now = time.time_ns()
        self._record(Message(now, self.connection, flow.channel, back.sender, data, note="answered in its stead"))

    def _hand_over(self, flow: Flow) -> tuple[FdNote, ...]:
        """Keep the socket of the back-end channel, and let one of our own go on in its place; what the kept one is.

        Where that can't be done it goes on as it came, and nothing is seen of that channel.
        """
        note = described(flow.fds[0].fileno())
        try:
            fd = _connected(flow.fds)
            mine, theirs = socket.socketpair()
        except OSError as error:
            text = f"the back-end channel is not seen: {error.strerror or error}"
            self._record(Remark(time.time_ns(), self.connection, Remarkable.LOST, text))
            return ()
        front = socket.socket(fileno=fd)
        flow.fds[0].detach()
        flow.fds = [OwnedFd(theirs.detach())]
        flow.pieces[0] = (flow.pieces[0][0], flow.fds)
        self._add(Splice(Channel.BACKEND, front, mine))
        return (note,)

    # Beginnings and ends

    def _add(self, splice: Splice) -> None:
        for sock in (splice.front, splice.back):
            self._at[sock.fileno()] = (splice, sock, splice.from_and_to(sock)[0])
        self._register(splice)

    def _register(self, splice: Splice) -> None:
        """Poll both sockets of a channel for what is to be done there now."""
        for sock in (splice.front, splice.back):
            fd, mask = sock.fileno(), splice.interest(sock)
            if mask == self._masks.get(fd, -1):
                continue
            if mask < 0:
                self._poll.unregister(fd)
            else:
                self._poll.register(fd, mask)
            self._masks[fd] = mask

    def _end(self, splice: Splice, flow: Flow) -> None:
        """See to what follows from what just happened to a flow: its end, a pause, another thing to poll for."""
        if splice.closed:
            return
        if flow.lost and not self._reason:
            text = f"fds of a message from the {flow.sender.value} were lost: this process may open no more"
            self._record(Remark(time.time_ns(), self.connection, Remarkable.LOST, text))
            self.stop("the tracer ended it, since fds were lost")
        if flow.paused_until:
            self._paused[flow] = splice
        if text := splice.settle(flow):
            self._record(Remark(time.time_ns(), self.connection, Remarkable.NOTE, text))
        self._register(splice)
        if splice.over and splice is not self._main:
            self._drop(splice)

    def _drop(self, splice: Splice) -> None:
        """A channel is over: let go of its sockets."""
        if splice is not self._main:
            by = splice.ended_by.value if splice.ended_by else "nobody"
            text = f"{by} closed the {splice.channel.value} channel"
            self._record(Remark(time.time_ns(), self.connection, Remarkable.NOTE, text))
        for sock in (splice.front, splice.back):
            fd = sock.fileno()
            if self._masks.pop(fd, -1) >= 0:
                self._poll.unregister(fd)
            del self._at[fd]
        for flow in splice.flows:
            self._paused.pop(flow, None)
        splice.close()

    def _close(self) -> None:
        """Let go of everything, and tell the sink all that waits."""
        by = self._main.ended_by
        reason = self._reason or f"the {by.value if by else 'nobody'} closed the connection"
        for splice in {id(place[0]): place[0] for place in self._at.values()}.values():
            self._drop(splice)
        self._main.close()
        self._waker.close()
        self._record(Remark(time.time_ns(), self.connection, Remarkable.CLOSED, reason))
        while self._waiting:
            self._sink(self._waiting.popleft())


def _broken(flow: Flow) -> str:
    where = f"{flow.sender.value} on the {flow.channel.value} channel"
    return f"{where}: {flow.fault}; what follows is passed on as it comes"


def _connected(fds: list[OwnedFd]) -> int:
    """The one fd, which is a connected Unix stream socket. OSError if not."""
    if len(fds) != 1:
        raise OSError(f"{len(fds)} fds came where there should be one")
    with contextlib.closing(_as_socket(os.dup(fds[0].fileno()))) as sock:
        sock.getpeername()
        if sock.family != socket.AF_UNIX or sock.type != socket.SOCK_STREAM:
            raise OSError("its socket is no Unix stream socket")
    return fds[0].fileno()


def _as_socket(fd: int) -> socket.socket:
    """The fd as a socket. OSError if it is none; it is closed then."""
    try:
        return socket.socket(fileno=fd)
    except OSError:
        os.close(fd)
        raise


def _who(splice: Splice) -> str:
    """Who is at the ends: `front-end pid 12 (qemu), back-end pid 13 (vhu-fs)`."""
    ends = ((Role.FRONTEND, splice.front), (Role.BACKEND, splice.back))
    return ", ".join(f"{role.value} {_process(sock)}" for role, sock in ends)


def _process(sock: socket.socket) -> str:
    """The process that made the other end of a socket, as far as it can be known."""
    try:
        pid = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]
        with open(f"/proc/{pid}/comm", "rb") as file:
            return f"pid {pid} ({file.read().strip().decode(errors='replace')})"
    except OSError:
        return "unknown"
