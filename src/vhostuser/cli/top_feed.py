"""Where `vhu top` has its events from: a capture, or a proxy between front-ends and a back-end. A thread of its own."""

from __future__ import annotations

import contextlib
import threading
from abc import ABC, abstractmethod
from typing import Final

from ..errors import VhostUserError
from ..trace.board import Board
from ..trace.capture import CaptureError, open_capture
from ..trace.moment import before_the_end
from ..trace.proxy import Proxy
from ..trace.session import session
from ..transport.listen import AddressError
from ..transport.loop import SignalWaker
from .outcome import CommandError
from .trace_ends import BackEnd, FrontEnds

PATIENCE: Final = 5.0
"""Seconds that a feed may take to end."""


class Feed(ABC):
    """Gives events to a board; `status` says what is going on, or why it ended."""

    def __init__(self, board: Board, status: str) -> None:
        self.board, self.status = board, status
        self.ended = False
        self._thread = threading.Thread(target=self._run, name="vhu top", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def close(self) -> None:
        """End, and wait for that."""
        self.ended = True
        self.interrupt()
        if self._thread.is_alive():
            self._thread.join(PATIENCE)

    def interrupt(self) -> None:
        """Wake whatever waits, if anything does."""
        return

    @abstractmethod
    def feed(self) -> None:
        """Give all events to the board, until `ended`."""

    def _run(self) -> None:
        try:
            self.feed()
        except (VhostUserError, OSError) as error:
            self.status = str(error)


class OfCapture(Feed):
    """The events of a capture, as quickly as they can be read; its connections are left open at its end."""

    def __init__(self, board: Board, path: str) -> None:
        super().__init__(board, f"reading {path}")
        self._path = path

    def feed(self) -> None:
        """All of it."""
        try:
            for event in before_the_end(open_capture(self._path)):
                if self.ended:
                    return
                self.board.take(event)
        except CaptureError as error:
            self.status = str(error)
        else:
            self.status = f"{self._path}, all of it"
        self.board.end()


class OfProxy(Feed):
    """What passes between the front-ends that connect to one place and the back-end at another."""

    def __init__(self, board: Board, listen: str, connect: str, *, queues: bool) -> None:
        super().__init__(board, f"waiting for a front-end at {listen}")
        self._listen, self._queues = listen, queues
        self._opened = contextlib.ExitStack()
        self._proxy: Proxy | None = None
        with contextlib.ExitStack() as opened:
            self._waker = opened.enter_context(SignalWaker())
            self._front_ends = opened.enter_context(contextlib.closing(_front_ends(listen, self._waker)))
            self._back_end = opened.enter_context(contextlib.closing(BackEnd(connect)))
            self._opened = opened.pop_all()

    def close(self) -> None:
        """End, wait for that, and listen no more."""
        super().close()
        self._opened.close()

    def interrupt(self) -> None:
        """End the session, and the wait for the next one."""
        self._waker.set()
        if self._proxy is not None:
            self._proxy.stop()

    def feed(self) -> None:
        """One session after the other."""
        number = 0
        while (front := self._front_ends.next(lambda: self.ended, None)) is not None:
            try:
                back = self._back_end.reach(None, 0)
            except AddressError as error:
                front.close()
                self.status = f"a front-end came, but {error}"
                continue
            self.status = f"session {number} at {self._listen}"
            with session(front, back, self.board.take, connection=number, queues=self._queues) as self._proxy:
                if self.ended:
                    self._proxy.stop()
                self._proxy.run()
            number += 1
            self.status = f"session {number - 1} is over; waiting for a front-end at {self._listen}"
            if self._front_ends.only_one or self._back_end.only_one:
                break


def _front_ends(where: str, waker: SignalWaker) -> FrontEnds:
    try:
        return FrontEnds(where, waker)
    except AddressError as error:
        raise CommandError(str(error), error.advice.replace("--socket-path", "A")) from None
