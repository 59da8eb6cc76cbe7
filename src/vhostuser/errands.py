"""What other threads want of a front-end's back-end: done by the thread that waits in that front-end, between its own."""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable
from uuid import UUID

from .errors import RequestFailed, VhostUserError
from .transport.fds import OwnedFd
from .transport.loop import Waker

Ask = Callable[[UUID], OwnedFd | None]


class Errand:
    """One question for a shared object: who does it calls `run`, who wants it calls `take`, each once, in any thread."""

    def __init__(self, uuid: UUID, tell: Callable[[], None]) -> None:
        self._uuid, self._tell = uuid, tell
        self._lock = threading.RLock()  # re-entrant: a signal handler may close a front-end whose thread has it
        self._fd: OwnedFd | None = None
        self._why = "its front-end is busy"
        self._taken = False
        self.done = False
        """There is an answer."""

    def run(self, ask: Ask) -> None:
        """Get the answer, unless nobody wants it any more, and tell who waits."""
        if self._taken:
            return
        fd, why = None, "its back-end does not give it"
        try:
            fd = ask(self._uuid)
        except (VhostUserError, OSError) as error:
            why = str(error)
        except BaseException:  # an interrupt, which is not for who waits
            self._answer(None, "its front-end was interrupted")
            raise
        self._answer(fd, why)

    @property
    def wanted(self) -> bool:
        """Somebody waits for it still."""
        return not self._taken

    def remind(self) -> None:
        """End the wait of who wants it, who may look whether it can be done now."""
        self._tell()

    def drop(self) -> None:
        """Nobody wants it any more."""
        with contextlib.suppress(RequestFailed):
            self.take().close()

    def _answer(self, fd: OwnedFd | None, why: str) -> None:
        with self._lock:
            if not self._taken:
                self._fd, self._why, self.done = fd, why, True
            elif fd:
                fd.close()
        self._tell()

    def take(self) -> OwnedFd:
        """The answer, which is the caller's; RequestFailed if it is a no, or there is none yet, nor ever will be then."""
        with self._lock:
            self._taken = True
            fd, self._fd = self._fd, None
        if fd is None:
            raise RequestFailed("SHARED_OBJECT_LOOKUP", 1, f"SHARED_OBJECT_LOOKUP {self._uuid} found nothing: {self._why}")
        return fd


class Errands:
    """Those that wait for one front-end, whose back-end `ask` asks. Any thread may `put` one."""

    def __init__(self, ask: Ask) -> None:
        self._ask = ask
        self._waker = Waker()
        self._box: deque[Errand] = deque()

    @property
    def waiting(self) -> bool:
        """There is something to do."""
        return bool(self._box)

    def fileno(self) -> int:
        """What becomes readable when there is something to do, or an answer to what was put elsewhere."""
        return self._waker.fileno()

    def put(self, errand: Errand) -> None:
        """Have this done."""
        self._box.append(errand)
        self._waker.set()

    def wake(self) -> None:
        """End the wait for an answer, or for something to do."""
        self._waker.set()

    def clear(self) -> None:
        """Wait for the next such thing from now on."""
        if self._waker.fileno() >= 0:
            self._waker.clear()

    def run(self) -> None:
        """Do those that are there now: more may come for ever. Whoever calls this has the front-end to itself."""
        self.clear()
        with contextlib.suppress(IndexError):  # one of them has done others
            for _ in range(len(self._box)):
                self._box.popleft().run(self._ask)

    def hand_over(self) -> None:
        """Let somebody who waits do what is left, now that nobody has the front-end."""
        with contextlib.suppress(IndexError):
            while not (errand := self._box.popleft()).wanted:
                pass
            self._box.appendleft(errand)
            errand.remind()

    def close(self) -> None:
        """The front-end is closed, so `ask` refuses those that are left, and there is nothing to wait for any more."""
        while self._box:
            self.run()
        self._waker.close()
