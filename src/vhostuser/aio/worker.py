"""The thread of a front-end whose methods are coroutines.

It lives in the blocking core: while it has nothing to do it waits there, and so the back-end's requests are answered however
busy the event loop is. The loop gives it jobs; it gives the loop futures.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Final, TypeVar

from ..errors import Disconnected
from ..frontend import Frontend
from ..transport.loop import Waker
from ..transport.socket import wait
from .flights import Flights, Request

NAME: Final = "vhost-user front-end"
T = TypeVar("T")
Job = Callable[[], None]


class Worker:
    """A thread that connects a front-end, drives it, and closes it in the end."""

    def __init__(self, sock: socket.socket | None = None) -> None:
        self._lock = threading.Lock()
        self._jobs: deque[Job] = deque()
        self._waker = Waker()
        self._ending = self._ended = False
        self._sock = sock
        self._frontend: Frontend | None = None
        self._connections = 0
        """Those that the front-end had when this was looked at last."""
        self._flights: dict[int, Flights] = {}
        self._left: set[int] = set()
        """Queues of the connection before, which the front-end has taken along to this one."""
        self._lost: Exception | None = None
        self._thread = threading.Thread(target=self._run, name=NAME, daemon=True)
        self._thread.start()

    # For the loop: nothing of this waits

    def run(self, job: Callable[[], T]) -> Future[T]:
        """Do something in the thread, once it has done what came before. A future that is cancelled in time is not begun."""
        future: Future[T] = Future()
        self._post(lambda: self._do(future, job))
        return future

    def offer(self, flights: Flights, request: Request) -> None:
        """Give the device a request."""
        self._post(lambda: self._offer(flights, request))

    def stop(self) -> None:
        """End the connection, and with it whatever waits in it, and then the thread."""
        with self._lock:
            self._ending = True
            if self._frontend:
                self._frontend.shutdown()
            elif self._sock:
                with contextlib.suppress(OSError):
                    self._sock.shutdown(socket.SHUT_RDWR)
        self._waker.set()

    def join(self) -> None:
        """Wait for the end of the thread. Not for the loop."""
        self._thread.join()

    def _post(self, job: Job) -> None:
        with self._lock:
            if self._ended:
                raise Disconnected("the connection is over: closed")
            self._jobs.append(job)
        self._waker.set()

    # In the thread

    @property
    def frontend(self) -> Frontend:
        """The blocking core. Disconnected before it is there."""
        if self._frontend is None:
            raise Disconnected("the connection is over: closed")
        return self._frontend

    def check(self) -> None:
        """Disconnected once `stop` was called."""
        if self._ending:
            raise Disconnected("closed")

    def connect(self, reach: Callable[[], socket.socket], make: Callable[[socket.socket], Frontend]) -> None:
        """Connect, unless there is a socket already, and agree on features."""
        sock = self._sock or reach()
        with self._lock:
            self._sock = sock
            self.check()
        frontend = make(sock)
        with self._lock:
            self._frontend, self._connections = frontend, frontend.connections

    def start_queue(self, index: int, size: int) -> Flights:
        """Start a queue; what was in flight in its place is not answered any more."""
        if index in self._left:
            self.stop_queue(index)
        queue = self.frontend.start_queue(index, size=size)
        if old := self._flights.get(index):
            old.stop()
        self._flights[index] = Flights(queue)
        return self._flights[index]

    def stop_queue(self, index: int) -> int:
        """Stop a queue."""
        base = self.frontend.stop_queue(index)
        self._left.discard(index)
        if old := self._flights.pop(index, None):
            old.stop()
        return base

    def reset(self) -> None:
        """Reset the device: no queue is left."""
        self.frontend.reset()
        for flights in self._flights.values():
            flights.stop()
        self._flights.clear()
        self._left.clear()

    def _do(self, future: Future[T], job: Callable[[], T]) -> None:
        _settle(future, job)
        if self._frontend and self._frontend.connections != self._connections:
            self._begin_again(self._frontend.connections)

    def _begin_again(self, connections: int) -> None:
        """Another back-end is there, or was for a moment: the queues of the one before are over."""
        self._lose(Disconnected("another back-end has come"))
        self._left.update(self._flights)
        self._flights.clear()
        self._lost, self._connections = None, connections

    def _offer(self, flights: Flights, request: Request) -> None:
        if self._lost:
            request.fail(Disconnected(f"the connection is over: {self._lost}"))
        else:
            flights.offer(request)

    def _run(self) -> None:
        try:
            while not self._told_to_end():
                self._do_jobs()
                self._wait()
        finally:
            self._end()

    def _told_to_end(self) -> bool:
        """Whether `stop` was called; what is said from now on is heard in the next wait."""
        self._waker.clear()
        return self._ending

    def _do_jobs(self) -> None:
        while self._jobs:
            self._jobs.popleft()()

    def _wait(self) -> None:
        """Serve the back-end until there is a job, or a device has done something."""
        if self._frontend is None or self._lost:
            wait((self._waker,), None)
            return
        try:
            watched = {fd: flights for flights in self._flights.values() for fd in flights.watch()}
            ready = self._frontend.wait_for_any([*map(_Fd, watched), self._waker])
            if ready in watched:
                watched[ready].look(ready)
        except Exception as error:
            self._lose(error)

    def _lose(self, error: Exception) -> None:
        """The connection is over, and every request with it."""
        self._lost = error
        for flights in self._flights.values():
            flights.end(error)

    def _end(self) -> None:
        with self._lock:
            self._ended = True
        self._lose(Disconnected("closed"))
        if self._frontend:
            self._frontend.close()
        elif self._sock:
            self._sock.close()
        self._do_jobs()
        self._waker.close()


class _Fd:
    """An fd by its number."""

    def __init__(self, number: int) -> None:
        self._number = number

    def fileno(self) -> int:
        """The number."""
        return self._number


def _settle(future: Future[T], job: Callable[[], T]) -> None:
    """Do a job, unless nobody wants it any more, and tell how it went."""
    if not future.set_running_or_notify_cancel():
        return
    try:
        future.set_result(job())
    except BaseException as error:
        future.set_exception(error)
