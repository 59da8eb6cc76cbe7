"""The thread in which a device of coroutines asks its front-end: it waits for the answers, not the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import Final, TypeVar

from ..errors import Disconnected
from ..transport.fds import OwnedFd, close_all

NAME: Final = "vhost-user maps"
T = TypeVar("T")


class Mapper:
    """The thread in which the requests of a device to its front-end are made: one after the other, as they are answered."""

    def __init__(self) -> None:
        self._executor: Executor | None = None

    def start(self) -> None:
        """Take requests. The thread begins with the first."""
        self._executor = ThreadPoolExecutor(1, NAME)

    def stop(self) -> None:
        """Take no more. The front-end must be gone, so that those that wait fail at once."""
        executor, self._executor = self._executor, None
        if executor:
            executor.shutdown(wait=False)

    async def run(
        self,
        function: Callable[[], T],
        fds: Sequence[OwnedFd] = (),
        *,
        given_up: Callable[[Future[T]], None] = lambda _: None,
    ) -> T:
        """Call a function there. `fds` are closed when it has ended, or will not begin.

        After a cancellation `given_up` gets what it may come to all the same.
        """
        if self._executor is None:
            close_all(fds)
            raise Disconnected("no front-end is connected")
        future = self._executor.submit(function)
        future.add_done_callback(lambda _: close_all(fds))
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            given_up(future)
            raise
