"""The queues of a front-end: how they are started, stopped, and gone after a reset."""

from __future__ import annotations

from .asking import Asking
from .memory.arena import Arena
from .protocol.numbers import FrontendRequest, VhostFeature
from .protocol.payloads import U64, VringState
from .protocol.session import Session
from .queue import Queue

Q = FrontendRequest


class Queues:
    """Those that one front-end has started, by index."""

    def __init__(self, asking: Asking, session: Session) -> None:
        self._asking, self._session = asking, session
        self._started: dict[int, Queue] = {}
        self._reset_left: frozenset[int] | None = None

    def __getitem__(self, index: int) -> Queue:
        return self._started[index]

    def start(self, index: int, size: int, arena: Arena) -> Queue:
        """Set up queue `index` in the arena, start and enable it."""
        self._finish_reset()
        queue = Queue(index, size, arena, self._asking, self._session.state.acknowledged)
        try:
            self._set_up(queue)
        except BaseException:
            queue.close()
            raise
        if old := self._started.get(index):
            old.close()
        self._started[index] = queue
        return queue

    def stop(self, index: int) -> int:
        """Stop a queue; the base that the back-end says ("GET_VRING_BASE")."""
        if self._enables:
            self._asking.request(Q.SET_VRING_ENABLE, VringState(index, 0))
        body = self._asking.request(Q.GET_VRING_BASE, VringState(index, 0))
        if queue := self._started.pop(index, None):
            queue.close()
        return body.num if isinstance(body, VringState) else 0

    def stop_all(self) -> None:
        """Stop every queue."""
        for index in list(self._started):
            self.stop(index)

    def were_reset(self) -> None:
        """RESET_DEVICE was sent: something is left to do before the next start."""
        self._reset_left = (self._reset_left or frozenset()).union(self._started)

    def close(self) -> None:
        """Let go of all of them."""
        for queue in self._started.values():
            queue.close()
        self._started.clear()

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

    def _set_up(self, queue: Queue) -> None:
        index, request = queue.index, self._asking.request
        request(Q.SET_VRING_NUM, VringState(index, queue.size))
        request(Q.SET_VRING_BASE, VringState(index, queue.base))
        request(Q.SET_VRING_ADDR, queue.addresses)
        request(Q.SET_VRING_CALL, U64(index), [queue.call.fileno()])
        request(Q.SET_VRING_ERR, U64(index), [queue.err.fileno()])
        request(Q.SET_VRING_KICK, U64(index), [queue.kick.fileno()])
        if self._enables:
            request(Q.SET_VRING_ENABLE, VringState(index, 1))

    @property
    def _enables(self) -> bool:
        """Rings have to be enabled."""
        return bool(self._session.state.acknowledged >> VhostFeature.PROTOCOL_FEATURES & 1)
