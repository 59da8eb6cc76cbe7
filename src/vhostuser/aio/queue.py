"""A started queue whose requests are awaited, as many at a time as one likes."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from ..errors import DeadlineExpired, LocalProtocolError
from ..queue import TIMEOUT, Completion
from .flights import Flights, Request
from .worker import Worker


class AsyncQueue:
    """One started virtqueue of an AsyncFrontend.

    A request for which there is no room in the ring, or in the shared memory, waits until others are done. Errors are those
    of `Queue`; one that is cancelled, or not answered in time, is given up, and its buffers are the device's until it gives
    them back.
    """

    def __init__(self, index: int, flights: Flights, worker: Worker) -> None:
        self.index, self.size = index, flights.queue.size
        self._flights, self._worker = flights, worker
        self._submitted: dict[int, Request] = {}

    async def exchange(self, request: bytes = b"", reply_size: int = 0, *, timeout: float = TIMEOUT) -> bytes:
        """Send one request and wait for its answer: the bytes that the device wrote, at most `reply_size`."""
        wanted = Request([request] if request else [], [reply_size] if reply_size else [])
        self._worker.offer(self._flights, wanted)
        return (await self._answer(wanted, timeout)).data

    async def submit(self, readable: Sequence[bytes] = (), writable: Sequence[int] = ()) -> int:
        """Offer one request: buffers for the device to read, and sizes of those to write. Its ticket, once there is room."""
        request = Request(readable, writable)
        self._worker.offer(self._flights, request)
        ticket = await asyncio.wrap_future(request.placed)
        self._submitted[ticket] = request
        return ticket

    async def finish(self, ticket: int, *, timeout: float = TIMEOUT) -> Completion:
        """Wait for one request that was submitted. It is given up if that fails: DeadlineExpired and so on."""
        request = self._submitted.pop(ticket, None)
        if request is None:
            raise LocalProtocolError(f"queue {self.index} has no request {ticket} in flight", field="ticket", value=ticket)
        return await self._answer(request, timeout)

    @property
    def in_flight(self) -> int:
        """Requests that were submitted and are not finished."""
        return len(self._submitted)

    async def _answer(self, request: Request, timeout: float) -> Completion:
        try:
            async with asyncio.timeout(timeout):
                return await asyncio.wrap_future(request.answer)
        except TimeoutError:
            raise DeadlineExpired(f"queue {self.index}: no answer within {timeout:g} s") from None
