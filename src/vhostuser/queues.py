"""The queues of a front-end: how they are started, stopped, and gone after a reset."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Final, Literal

from .asking import Asking
from .errors import LocalProtocolError, QueueBroken, RemoteProtocolError, VhostUserError
from .memory.arena import Arena
from .protocol.numbers import FrontendRequest, ProtocolFeature, VhostFeature
from .protocol.payloads import U64, VringState
from .protocol.session import Session
from .queue import Queue
from .tracking import Tracking
from .virtio.formats import ring_format
from .virtio.numbers import Feature
from .virtio.packed import read_base

Q = FrontendRequest
LARGEST_INDEX: Final = 0xFFFF
"""Where a split ring's indexes wrap."""


class Queues:
    """Those that one front-end has started, by index."""

    def __init__(self, asking: Asking, session: Session, tracking: Tracking) -> None:
        self._asking, self._session, self._tracking = asking, session, tracking
        self._started: dict[int, Queue] = {}
        self._suspended: dict[int, tuple[Queue, int]] = {}
        """Those that were stopped and are tracked, and where they go on."""
        self._reset_left: frozenset[int] | None = None

    def __iter__(self) -> Iterator[Queue]:
        return iter([*self._started.values(), *(queue for queue, _ in self._suspended.values())])

    def __getitem__(self, index: int) -> Queue:
        return self._started[index]

    def start(self, index: int, size: int, arena: Arena, *, indirect: bool) -> Queue:
        """Set up queue `index` in the arena, start and enable it; the one that was suspended, if it was."""
        self._tracking.check(index, size)
        features = self._session.state.acknowledged
        if indirect and not features >> Feature.RING_INDIRECT_DESC & 1:
            text = "start_queue indirect needs RING_INDIRECT_DESC, which was not offered"
            raise LocalProtocolError(text, request="SET_VRING_NUM", field="indirect", value="True")
        self._finish_reset()
        if index in self._suspended:
            return self._go_on(index, size, indirect=indirect)
        queue, runs = Queue(index, size, arena, self._asking, features, indirect=indirect), self._runs(index)
        try:
            self._set_up(queue, queue.base)
        except BaseException:
            if not runs:  # the one that runs is another one, and is left alone
                self._take_back(index)
            queue.close()
            raise
        if old := self._started.get(index):
            old.close()
        self._started[index] = queue
        return queue

    def _take_back(self, index: int) -> None:
        """Stop a ring that was set up half the way: its memory is given back, and it may be set up again."""
        if self._runs(index):
            with contextlib.suppress(VhostUserError, OSError):
                self._asking.request(Q.GET_VRING_BASE, VringState(index, 0))

    def _runs(self, index: int) -> bool:
        rings = self._session.state.rings
        return index < len(rings) and rings[index].started

    def stop(self, index: int) -> int:
        """Stop a queue, or suspend it; the base that the back-end says ("GET_VRING_BASE").

        RemoteProtocolError if that is none; the queue is stopped all the same, and goes on, if it does, at its used index.
        """
        if self._enables:
            self._asking.request(Q.SET_VRING_ENABLE, VringState(index, 0))
        body = self._asking.request(Q.GET_VRING_BASE, VringState(index, 0))
        base = body.num if isinstance(body, VringState) else 0
        if queue := self._started.pop(index, None):
            wrong = self._wrong_base(queue, base)
            self._put_away(queue, _used_base(queue) if wrong else base)
            if wrong:
                raise wrong
        return base

    def stop_all(self) -> None:
        """Stop every queue."""
        for index in list(self._started):
            self.stop(index)

    def were_reset(self) -> None:
        """RESET_DEVICE was sent: something is left to do before the next start."""
        self._reset_left = (self._reset_left or frozenset()).union(self._started)

    def settle(self, *, resubmit: bool) -> None:
        """The back-end is gone: take what it had done, and see to what it had not.

        LocalProtocolError if nobody knows what that is, and `resubmit` does not say to do it again. QueueBroken if it has
        left nonsense, and `resubmit` does not say to begin anew: with all queues, if they are tracked, for so does the area.
        """
        broken = [error for queue in self if (error := _settled(queue))]
        if broken and not resubmit:
            raise broken[0]
        if self._tracking.active and not broken:
            return
        self._tracking.forget()
        if not resubmit and (left := sum(queue.waiting for queue in self)):
            text = f"reconnect: {left} requests are in flight and not tracked; resubmit=True does them at least once"
            raise LocalProtocolError(text, field="in_flight", value=left, limit=0)
        for queue in self:
            queue.renew()

    def resume(self) -> None:
        """Set up all of them with another back-end, and tell it once to look."""
        self._reset_left = None
        self._suspended = {index: (queue, queue.base) for index, (queue, _) in self._suspended.items()}
        for queue in self._started.values():
            self._set_up(queue, queue.base)

    def hear(self, name: Literal["call", "err"], body: object) -> None:
        """Take a message in place of an eventfd; one that comes too late is as good as none."""
        if isinstance(body, VringState) and (queue := self._started.get(body.index)):
            os.eventfd_write((queue.call if name == "call" else queue.err).fileno(), 1)

    def close(self) -> None:
        """Let go of all of them."""
        for queue in self:
            queue.close()
        self._started.clear()
        self._suspended.clear()

    def _put_away(self, queue: Queue, base: int) -> None:
        """Let go of a queue that was stopped; suspend it where requests are tracked.

        The area speaks of this very ring, and may have some in progress ("GET_VRING_BASE_INFLIGHT"): a new ring needs a
        new area, which only a reset gives.
        """
        if self._tracking.active:
            self._suspended[queue.index] = queue, base
        else:
            queue.close()

    def _wrong_base(self, queue: Queue, base: int) -> RemoteProtocolError | None:
        """What is to be said of a base that is none of the queue."""
        packed = ring_format(self._session.state.acknowledged).is_packed
        if _is_packed_base(base, queue.size) if packed else base <= LARGEST_INDEX:
            return None
        text = f"GET_VRING_BASE num {base:#x} is no base of queue {queue.index} of {queue.size}"
        return RemoteProtocolError(text, request="GET_VRING_BASE", field="num", value=base, limit=queue.size)

    def _go_on(self, index: int, size: int, *, indirect: bool) -> Queue:
        queue, base = self._suspended[index]
        if size != queue.size:
            text = f"queue {index} size {size} is not {queue.size}, with which it was suspended; another needs a reset"
            raise LocalProtocolError(text, request="SET_VRING_NUM", field="size", value=size, limit=queue.size)
        queue.calm()
        self._set_up(queue, base)
        queue.indirect = indirect
        self._started[index] = self._suspended.pop(index)[0]
        return queue

    def _finish_reset(self) -> None:
        """Do what RESET_DEVICE may have left undone, or done too much, before a queue is started.

        The rust-vmm crates forget which features were acknowledged, and enable no ring then. And they only disable the
        rings: a start would be of a ring that runs already, and its new kick would not be heard.
        """
        if self._reset_left is not None:
            self._asking.request(Q.SET_FEATURES, U64(self._session.state.acknowledged))
            for index in sorted(self._reset_left):
                self._asking.request(Q.GET_VRING_BASE, VringState(index, 0))
            self._reset_left = None

    def _set_up(self, queue: Queue, base: int) -> None:
        """Start and enable a queue, and kick it, for some back-ends start at the first kick ("Ring states").

        In-band all do, and there are no eventfds to give.
        """
        index, request = queue.index, self._asking.request
        request(Q.SET_VRING_NUM, VringState(index, queue.size))
        request(Q.SET_VRING_BASE, VringState(index, base))
        request(Q.SET_VRING_ADDR, queue.addresses)
        if not self._in_band:
            request(Q.SET_VRING_CALL, U64(index), [queue.call.fileno()])
            request(Q.SET_VRING_ERR, U64(index), [queue.err.fileno()])
            request(Q.SET_VRING_KICK, U64(index), [queue.kick.fileno()])
        if self._enables:
            request(Q.SET_VRING_ENABLE, VringState(index, 1))
        if self._in_band:
            queue.in_band = lambda: request(Q.VRING_KICK, VringState(index, 0))
        queue.wake()

    @property
    def _in_band(self) -> bool:
        """Kicks, calls and errors are messages."""
        return self._session.state.has(ProtocolFeature.INBAND_NOTIFICATIONS)

    @property
    def _enables(self) -> bool:
        """Rings have to be enabled."""
        return bool(self._session.state.acknowledged >> VhostFeature.PROTOCOL_FEATURES & 1)


def _settled(queue: Queue) -> QueueBroken | None:
    """Take what is done of a queue; what is wrong behind that, if anything."""
    try:
        queue.settle()
    except QueueBroken as error:
        return error
    return None


def _is_packed_base(base: int, size: int) -> bool:
    try:
        read_base(base, size)
    except QueueBroken:
        return False
    return True


def _used_base(queue: Queue) -> int:
    """Where a queue goes on, by itself: behind all that is done."""
    _settled(queue)
    return queue.base
