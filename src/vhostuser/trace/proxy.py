"""Between a front-end and a back-end: passes on every message of both channels as it came, and tells what passed.

One thread, one loop. A message is passed on first and described afterwards, before its fds are closed; what takes longer,
the sink, waits until nothing else is to do. Nobody is kept waiting for the other channel: a side that reads no more stops
what goes its way, and nothing else.
"""

from __future__ import annotations

import select
import socket
import time
from collections import deque
from collections.abc import Callable
from typing import Final

from .. import _native
from ..protocol.rules import Channel
from ..transport.loop import SignalWaker
from . import clock
from .clock import now
from .describe import described
from .event import Event, FdNote, Message, Remark, Remarkable
from .flow import Flow
from .on_way import OnWay
from .splice import Splice
from .takeover import broken, taken_over, who
from .turns import Turns
from .undelivered import undelivered
from .verdict import Alter, Verdict, Watch

BACKLOG: Final = 1024
"""Events that may wait for the sink; from there on each message waits for one of them."""
LONGEST: Final = 86400.0
"""Seconds of one wait: a pause may be longer, the kernel's poll may not."""
QUIET: Final = 0.001
"""Seconds of silence after which the sink gets what waits."""
HELD: Final = 20_000_000
"""Nanoseconds that an fd waits with less than a header, which would tell whether it is one to replace."""
LAST: Final = 256
"""Messages that are passed on yet on back-end channels once the main channel has ended."""
_MOST: Final = 8
"""Sockets that are seen to in one turn."""
_WRITES: Final = select.EPOLLOUT | select.EPOLLERR
_ENDED: Final = select.EPOLLHUP | select.EPOLLERR
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
        self._plain = alter is None and watch is None
        self._turns = Turns()
        self._waiting: deque[Event] = deque()
        self._record = self._waiting.append
        self._on_way = OnWay(self._waiting)
        self._waker = SignalWaker()
        self._poll = select.epoll()
        self._poll.register(self._waker, select.EPOLLIN)
        self._passer = self._passing() if _native.accelerated and alter is None and watch is None else None
        self._masks: dict[int, int] = {}
        self._at: dict[int, _Place] = {}
        self._main = Splice(Channel.FRONTEND, front, back)
        self._paused: dict[Flow, Splice] = {}
        self._reason = ""

    def run(self) -> None:
        """Pass messages on until the main channel has ended, or `stop`."""
        try:
            self._record(Remark(now(), self.connection, Remarkable.OPENED, who(self._main)))
            self._add(self._main)
            with self._waker.alert():
                while not self._main.over and not self._reason:
                    self._turn(self._timeout() if self._paused else QUIET if self._waiting else -1.0)
            for _ in range(LAST):
                if self._reason or not self._turn(0):
                    break
        finally:
            self._close()

    def stop(self, reason: str = "the tracer ended it") -> None:
        """End the session, from any thread or a signal handler."""
        self._reason = self._reason or reason
        self._waker.set()

    def tell(self, event: Event) -> None:
        """Let `event` go to the sink too, behind what waits; from any thread."""
        self._record(event)
        self._waker.set()

    def has_room(self) -> bool:
        """What waits for the sink is not too much yet: who tells what need not be told has to ask."""
        return len(self._waiting) < BACKLOG

    # The loop

    def _turn(self, timeout: float) -> bool:
        """Wait for something to pass, and pass it on; whether there was. When there is nothing, the sink gets what waits."""
        passed = False
        for fd, events in self._ready(timeout):
            place = self._at.get(fd)
            if place is None:
                self._waker.clear()
                continue
            passed = True
            if events == select.EPOLLIN:
                self._read(place[0], place[2])
            else:
                self._serve(place, events)
        if self._paused:
            self._resume()
        if not passed:
            self._tell_waiting()
        return passed

    def _ready(self, timeout: float) -> list[tuple[int, int]]:
        """What there is to be seen to. While nothing else is, compiled code passes plain messages on meanwhile."""
        if self._passer is None or self._paused or self._main.over:
            return self._poll.poll(timeout, _MOST)
        flows = {fd: place[2] for fd, place in self._at.items() if place[2].clear}
        ways = {fd: (flow.target.fileno(), flow.channel, flow.sender) for fd, flow in flows.items()}
        ready, pieces, went = self._passer.run(ways, bool(self._waiting))
        if pieces:
            flows[ready[0][0]].go_on(pieces, went)
        return ready

    def _timeout(self) -> float:
        """Seconds until there is something to do with no fd ready for it; below 0 for never."""
        quiet = QUIET if self._waiting else -1.0
        if not self._paused:
            return quiet
        first = min(flow.paused_until for flow in self._paused)
        left = min(max(0.0, (first - time.monotonic_ns()) / 1e9), LONGEST)
        return min(left, quiet) if self._waiting else left

    def _resume(self) -> None:
        """Go on with the flows that have waited long enough."""
        moment = time.monotonic_ns()
        for flow, splice in [*self._paused.items()]:
            if moment >= flow.paused_until:
                del self._paused[flow]
                self._write(splice, flow)

    def _tell_waiting(self) -> None:
        """Give the sink what waits, until there is something else to do."""
        while self._waiting:
            self._sink(self._waiting.popleft())
            if self._has_work():
                return

    def _has_work(self) -> bool:
        """Something may pass. What was told meanwhile is no work: it is among what waits."""
        ready = self._poll.poll(0, 2)
        if ready and ready[0][0] not in self._at:
            self._waker.clear()
            return len(ready) > 1
        return bool(ready)

    def _serve(self, place: _Place, events: int) -> None:
        """There is room again at a socket, or its peer is gone."""
        splice, sock, comes = place
        goes = splice.other(comes)
        if events & _WRITES and goes.blocked:
            self._write(splice, goes)
        self._read(splice, comes)
        if events & _ENDED:
            splice.hang_up(sock)
            self._end(splice, goes)

    def _read(self, splice: Splice, flow: Flow) -> None:
        """Take what has come: a message is passed on and told; of half a one goes on what may."""
        if not flow.reads:
            return
        if flow.read():
            at, data = now(), flow.data
            if self._plain and flow.send_at_once():
                self._tell_plain(Message(at, self.connection, flow.channel, flow.sender, data))
                return
            self._pass(splice, flow)
        elif self._alter is None and not flow.hands_over:
            flow.send()
        elif self._alter is None and not flow.ended:
            flow.paused_until = flow.paused_until or time.monotonic_ns() + HELD
        if flow.blocked or not flow.calm:
            self._end(splice, flow)

    def _tell_plain(self, message: Message) -> None:
        """Tell a whole message without fds that has gone."""
        self.messages += 1
        self._record(message)
        if len(self._waiting) > BACKLOG:
            self._sink(self._waiting.popleft())

    def _write(self, splice: Splice, flow: Flow) -> None:
        """Go on sending where it stopped."""
        flow.send()
        if flow.sent and not flow.paused_until:
            self._on_way.settle(flow)
            flow.release()
        if flow.extra:
            flow.send(inserted_only=True)
        self._end(splice, flow)

    def _pass(self, splice: Splice, flow: Flow) -> None:
        """Pass on what is held, and tell it."""
        at, verdict = now(), None
        notes: tuple[FdNote, ...] = ()
        flow.paused_until = 0
        if flow.fault:
            self._record(Remark(at, self.connection, Remarkable.BROKEN, broken(flow)))
        if self._alter is not None and flow.whole:
            notes = tuple([described(fd.fileno()) for fd in flow.fds])
            verdict = self._obey(flow, Message(at, self.connection, flow.channel, flow.sender, flow.data, notes))
        if flow.fds and flow.whole and flow.hands_over and flow.pieces:
            notes = self._hand_over(flow) or notes
        place, total = len(self._waiting), flow.left if self._alter is not None else len(flow.data)
        flow.send()
        if flow.fds:
            notes = notes or tuple([described(fd.fileno()) for fd in flow.fds])
        note = verdict.note if verdict else ""
        message = Message(at, self.connection, flow.channel, flow.sender, flow.data, notes, flow.whole, note)
        if flow.gone and flow.left:
            message = undelivered(message, total - flow.left, total)
        elif flow.left:
            self._on_way.holds(flow, message, total)
        self.messages += flow.whole
        self._show(flow, message, place)
        if flow.gone or not (flow.pieces or flow.paused_until):
            flow.release()
        if self._alter is not None and message.whole:
            self._take_turns(splice, flow, message, verdict)
        while len(self._waiting) > BACKLOG:
            self._sink(self._waiting.popleft())

    def _show(self, flow: Flow, message: Message, place: int) -> None:
        """Record a message and let it be watched: what a request begins comes behind it, what a reply ends before that.

        A request began something as soon as it had gone, which others may have told since: from `place` on.
        """
        if message.asks:
            while place < len(self._waiting) and self._waiting[place].at < message.at:
                place += 1
            self._waiting.insert(place, message)
        if self._watch is not None:
            self._watch.passed(message, [fd.fileno() for fd in flow.fds])
        if not message.asks:
            self._record(message)

    # What is done to messages

    def _obey(self, flow: Flow, message: Message) -> Verdict | None:
        """Do to the message that is held what is to be done to it, which is returned."""
        verdict = self._alter(message, [fd.fileno() for fd in flow.fds]) if self._alter else None
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

    def _take_turns(self, splice: Splice, flow: Flow, message: Message, verdict: Verdict | None) -> None:
        """Send the answers in a peer's stead whose turn has come with this message."""
        if message.asks:
            goes = verdict is None or not (verdict.close or verdict.data == b"")
            self._turns.asked(message, verdict.answer if verdict else b"", goes=goes)
        else:
            self._turns.replied(message)
        asking = flow if message.asks else splice.other(flow)
        for data in self._turns.due(message.channel):
            self._answer(splice, asking, data)

    def _answer(self, splice: Splice, flow: Flow, data: bytes) -> None:
        """Send `data` back to where the message came from, in the stead of whoever should have answered."""
        back = splice.other(flow)
        back.insert(data)
        back.send(inserted_only=True)
        message = Message(now(), self.connection, flow.channel, back.sender, data, note="answered in its stead")
        self._record(message)
        self._on_way.inserted(back, message)
        self._end(splice, back)

    def _hand_over(self, flow: Flow) -> tuple[FdNote, ...]:
        """Keep the socket of the back-end channel, and let one of our own go on in its place; what the kept one is.

        Where that can't be done it goes on as it came, and nothing is seen of that channel.
        """
        note = described(flow.fds[0].fileno())
        try:
            front, mine, theirs = taken_over(flow)
        except OSError as error:
            text = f"the back-end channel is not seen: {error.strerror or error}"
            self._record(Remark(now(), self.connection, Remarkable.LOST, text))
            return ()
        flow.fds = [theirs]
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
            elif self._masks.get(fd, -1) < 0:
                self._poll.register(fd, mask)
            else:
                self._poll.modify(fd, mask)
            self._masks[fd] = mask

    def _end(self, splice: Splice, flow: Flow) -> None:
        """See to what follows from what just happened to a flow: its end, a pause, another thing to poll for."""
        if splice.closed:
            return
        if flow.lost and not self._reason:
            text = f"fds of a message from the {flow.sender.value} were lost: this process may open no more"
            self._record(Remark(now(), self.connection, Remarkable.LOST, text))
            self.stop("the tracer ended it, since fds were lost")
        if flow.paused_until:
            self._paused[flow] = splice
        if text := splice.settle(flow):
            self._record(Remark(now(), self.connection, Remarkable.NOTE, text))
        self._register(splice)
        if splice.over and splice is not self._main:
            self._drop(splice)

    def _passing(self) -> _native.passing.Passer:
        quiet = round(QUIET * 1e9)
        return _native.passing.Passer(self._poll.fileno(), quiet, clock.START, Message, self.connection, self._tell_plain)

    def _drop(self, splice: Splice) -> None:
        """A channel is over: let go of its sockets."""
        if splice is not self._main:
            by = f"{splice.ended_by.value} closed" if splice.ended_by else "the tracer closed"
            text = f"{by} the {splice.channel.value} channel"
            self._record(Remark(now(), self.connection, Remarkable.NOTE, text))
        for sock in (splice.front, splice.back):
            fd = sock.fileno()
            if self._masks.pop(fd, -1) >= 0:
                self._poll.unregister(fd)
            del self._at[fd]
        for flow in splice.flows:
            self._paused.pop(flow, None)
            self._on_way.end(flow)
        splice.close()

    def _close(self) -> None:
        """Let go of everything, and tell the sink all that waits."""
        by = self._main.ended_by
        reason = self._reason or f"the {by.value if by else 'tracer'} closed the connection"
        for splice in {id(place[0]): place[0] for place in self._at.values()}.values():
            self._drop(splice)
        self._main.close()
        if self._watch is not None:
            self._watch.close()
        if self._passer is not None:
            self._passer.close()
        self._poll.close()
        self._waker.close()
        self._record(Remark(now(), self.connection, Remarkable.CLOSED, reason))
        while self._waiting:
            self._sink(self._waiting.popleft())
