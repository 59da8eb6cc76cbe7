"""A queue's requests, as the thread of its front-end keeps them: in flight, or waiting for room in the ring."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

from ..errors import DeadlineExpired, LocalProtocolError, QueueBroken, VhostUserError
from ..queue import Completion, Queue
from ..transport.loop import drain


@dataclass(slots=True, eq=False)
class Request:
    """A request, and what will be known of it."""

    readable: Sequence[bytes]
    writable: Sequence[int]
    placed: Future[int] = field(default_factory=Future)
    """Its ticket, once the device has it."""
    answer: Future[Completion] = field(default_factory=Future)

    @property
    def unwanted(self) -> bool:
        """Nobody waits for it any more."""
        return self.placed.cancelled() or self.answer.cancelled()

    def fail(self, error: BaseException) -> None:
        """Tell whoever still waits for it that there will be no answer."""
        for future in (self.placed, self.answer):
            if not future.done() and future.set_running_or_notify_cancel():
                future.set_exception(error)


class Flights:
    """The requests of one started queue. All methods belong to the front-end's thread."""

    def __init__(self, queue: Queue) -> None:
        self.queue = queue
        self._in_flight: dict[int, Request] = {}
        self._waiting: deque[Request] = deque()
        self._over: BaseException | None = None

    def watch(self) -> list[int]:
        """The fds that are readable when the device has done something; none of a queue that is over."""
        if self.queue.call.closed:
            self.stop()
        return [] if self._over else [self.queue.call.fileno(), self.queue.err.fileno()]

    def offer(self, request: Request) -> None:
        """Give the device a request, or let it wait until there is room for it."""
        if self._over:
            request.fail(self._over)
            return
        self._waiting.append(request)
        try:
            self._place()
        except (VhostUserError, OSError) as error:
            self.end(error)

    def look(self, fd: int) -> None:
        """One of the fds is readable: take what the device is done with, and give it what has waited for that."""
        try:
            if fd == self.queue.call.fileno():
                drain(fd)
            self._collect()
            if fd == self.queue.err.fileno():
                raise QueueBroken(f"queue {self.queue.index}: the back-end declares it broken: stop it, and start it again")
            self._place()
        except (VhostUserError, OSError) as error:
            self.end(error)

    def end(self, error: BaseException) -> None:
        """No request is answered any more, and none done again by another back-end."""
        self._over = self._over or error
        for ticket in self._in_flight:
            self.queue.give_up(ticket)
        requests = [*self._in_flight.values(), *self._waiting]
        self._in_flight.clear()
        self._waiting.clear()
        for request in requests:
            request.fail(error)

    def stop(self) -> None:
        """The queue is stopped."""
        index = self.queue.index
        self.end(LocalProtocolError(f"queue {index} is stopped: start it again", field="index", value=index))

    def _collect(self) -> None:
        """An answer that nobody wants any more is taken all the same: its buffers are free then."""
        with contextlib.suppress(DeadlineExpired):
            for done in self.queue.completions(0):
                request = self._in_flight.pop(done.ticket)
                if not request.answer.done() and request.answer.set_running_or_notify_cancel():
                    request.answer.set_result(done)

    def _place(self) -> None:
        while self._waiting:
            request = self._waiting[0]
            if not request.unwanted and not self._submit(request):
                return
            self._waiting.popleft()
        self.queue.notify()

    def _submit(self, request: Request) -> bool:
        """Whether there is room, or there never will be, which the request is told."""
        try:
            ticket = self.queue.submit(request.readable, request.writable)
        except (BufferError, MemoryError) as error:
            if self._in_flight:
                self.queue.notify()
                return False
            request.fail(error)
            return True
        except Exception as error:
            request.fail(error)
            return True
        self._in_flight[ticket] = request
        if request.placed.set_running_or_notify_cancel():
            request.placed.set_result(ticket)
        return True
