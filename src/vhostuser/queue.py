"""A queue as its driver uses it, without a VM."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Collection, Sequence
from typing import Final, NamedTuple

from .asking import Waiting
from .errors import DeadlineExpired, Disconnected, LocalProtocolError, QueueBroken
from .memory.arena import Arena
from .protocol.payloads import VringAddr
from .transport.fds import OwnedFd, close_all
from .transport.loop import drain
from .transport.socket import wait
from .virtio.buffers import Buffer, Table, table_size
from .virtio.formats import DriverHalf, new_driver, ring_format

TIMEOUT: Final = 10.0
"""Seconds that a device may take for an answer, unless the caller says otherwise."""


class Completion(NamedTuple):
    """A request that the device is done with."""

    ticket: int
    """What `submit` returned for it."""
    written: int
    """The bytes that the device says it wrote, at most those that it was given."""
    buffers: tuple[bytes, ...]
    """What is in each writable buffer now; zeroes where the device wrote nothing."""

    @property
    def data(self) -> bytes:
        """The bytes that the device says it wrote."""
        return b"".join(self.buffers)[: self.written]


class _Flight(NamedTuple):
    """A request that the device has: the memory that it takes, and the buffers for the answer."""

    ticket: int
    blocks: list[int]
    readable: list[Buffer]
    writable: list[Buffer]
    table: Table | None


class Queue:
    """One started virtqueue: its ring and its buffers lie in the memory that the front-end shares.

    `features` are those that the front-end has acknowledged. `indirect`: a request of more than one buffer takes one
    descriptor, which refers to a table of them.
    """

    def __init__(
        self, index: int, size: int, memory: Arena, waiter: Waiting, features: int, *, indirect: bool = False
    ) -> None:
        self.index, self.size, self.indirect = index, size, indirect
        self.in_band: Callable[[], object] | None = None
        """How the device is told, if not by an eventfd."""
        self._memory, self._waiter, self._features = memory, waiter, features
        sizes = ring_format(features).sizes(size)
        self._blocks: list[int] = []
        try:
            descriptors, available, used = (self._take(self._blocks, size) for size in sizes)
        except MemoryError:
            self._give_back(self._blocks)
            raise
        self.addresses = VringAddr(index, 0, descriptors, used, available, 0)
        self._parts = [memory.view[start : start + size] for start, size in zip(self._blocks, sizes, strict=True)]
        self._ring: DriverHalf | None = new_driver(features, size, *self._parts)
        self._flights: dict[int, _Flight] = {}
        self._done: dict[int, Completion] = {}
        self._owed: set[int] = set()
        self._tickets = 0
        self._notified = True
        try:
            self.kick, self.call, self.err = _eventfds(3)
        except OSError:
            self._give_back(self._blocks)
            raise

    def __repr__(self) -> str:
        state = f"{self.in_flight} in flight" if self._ring else "stopped"
        return f"<Queue {self.index}: {self.size} entries, {state}>"

    def exchange(self, request: bytes = b"", reply_size: int = 0, *, timeout: float = TIMEOUT) -> bytes:
        """Send one request and wait for its answer: the bytes that the device wrote, at most `reply_size`.

        None, as a rule, where the device raised: an exception gives the request back with what was written by then; the log
        of the back-end's process has it. The back-end's own requests are answered meanwhile. DeadlineExpired after `timeout`
        seconds, QueueBroken if the device breaks the ring or says that it is broken, MemoryError if the shared memory is too
        small, LocalProtocolError once the queue is stopped.
        """
        ticket = self.submit([request] if request else [], [reply_size] if reply_size else [])
        try:
            return self.finish(ticket, timeout=timeout).data
        finally:
            self.give_up(ticket)

    # Many requests in flight

    def submit(self, readable: Sequence[bytes] = (), writable: Sequence[int] = ()) -> int:
        """Offer one request: buffers for the device to read, and sizes of those to write. Returns its ticket.

        BufferError if there are not enough free descriptors, or more buffers than the queue has entries, MemoryError if
        there is not enough shared memory; nothing is offered then. The device is told by `notify`, or by whatever waits for
        an answer: once for a whole batch.
        """
        ring = self._running()
        taken: list[int] = []
        try:
            given = [self._place(taken, data) for data in readable]
            wanted = [(self._take(taken, size), size) for size in writable]
            table = self._table(taken, len(given) + len(wanted))
            head = ring.add(given, wanted, table)
        except BaseException:
            self._give_back(taken)
            raise
        self._tickets += 1
        self._flights[head] = _Flight(self._tickets, taken, given, wanted, table)
        self._owed.add(self._tickets)
        self._notified = False
        return self._tickets

    def notify(self) -> None:
        """Tell the device of what was submitted since the last time. In-band, what `Frontend.request` raises."""
        self._running()
        if not self._notified:
            self.wake()

    def wake(self) -> None:
        """Tell the device to look, be there anything or not. An eventfd that is full is as good as set."""
        self._notified = True
        try:
            if self.in_band:
                self.in_band()
            elif wait((), 0, (self.kick,)):
                _set(self.kick)
        except BaseException:
            self._notified = False
            raise

    @property
    def in_flight(self) -> int:
        """Requests that were submitted, but neither handed out as completed nor given up."""
        return len(self._owed)

    def completions(self, timeout: float = TIMEOUT, *, among: Collection[int] | None = None) -> list[Completion]:
        """Wait until the device is done with some of the requests in flight: these, in its order. None if none is in flight.

        `among` are the tickets of interest; all, if it is not given. The back-end's own requests are answered meanwhile.
        DeadlineExpired, QueueBroken and LocalProtocolError as in `exchange`, but what was submitted stays in flight.
        """
        tickets = self._owed if among is None else self._owed.intersection(among)
        if tickets:
            self._wait(lambda: not tickets.isdisjoint(self._done), timeout)
        done = [ticket for ticket in self._done if ticket in tickets]
        self._owed.difference_update(done)
        return [self._done.pop(ticket) for ticket in done]

    def finish(self, ticket: int, *, timeout: float = TIMEOUT) -> Completion:
        """Wait for one request, whatever else is in flight. It is given up if that fails: DeadlineExpired and so on.

        But after Disconnected it is in flight still: wait again after `Frontend.reconnect`, or give it up. The buffers of a
        request that was given up stay the device's until it gives them back, or the queue is stopped.
        """
        if ticket not in self._owed:
            raise LocalProtocolError(f"queue {self.index} has no request {ticket} in flight", field="ticket", value=ticket)
        try:
            self._wait(lambda: ticket in self._done, timeout)
        except Disconnected:
            raise
        except BaseException:
            self.give_up(ticket)
            raise
        self._owed.remove(ticket)
        return self._done.pop(ticket)

    def give_up(self, ticket: int) -> None:
        """Want the answer of a request no more, if it still is in flight."""
        self._owed.discard(ticket)
        self._done.pop(ticket, None)

    # Another back-end

    @property
    def base(self) -> int:
        """Where a back-end begins with this queue, or goes on with it ("SET_VRING_BASE")."""
        return self._running().base

    @property
    def waiting(self) -> int:
        """Requests that the device has and whose answer is wanted."""
        return sum(flight.ticket in self._owed for flight in self._flights.values())

    def settle(self) -> None:
        """The back-end is gone: take what it had done. QueueBroken if there is nonsense behind that."""
        try:
            self._collect()
        finally:
            self.calm()

    def calm(self) -> None:
        """Forget all that either side has told the other by eventfds."""
        for fd in (self.kick, self.call, self.err):
            drain(fd.fileno())

    def renew(self) -> None:
        """Begin the ring anew, with the requests whose answer is wanted, in their order."""
        flights = list(self._flights.values())
        self._running()
        for part in self._parts:
            part[:] = bytes(part.nbytes)
        self._ring = ring = new_driver(self._features, self.size, *self._parts)
        self._flights = {}
        for flight in flights:
            if flight.ticket in self._owed:
                self._flights[ring.add(flight.readable, flight.writable, flight.table)] = flight
            else:
                self._give_back(flight.blocks)

    def close(self) -> None:
        """The queue is stopped: let go of its ring, its buffers and its eventfds."""
        if self._ring is None:
            return
        self._ring = None
        self._give_back(self._blocks)
        for flight in self._flights.values():
            self._give_back(flight.blocks)
        self._flights, self._parts = {}, []
        for fd in (self.kick, self.call, self.err):
            fd.close()

    def _running(self) -> DriverHalf:
        if self._ring is None:
            raise LocalProtocolError(f"queue {self.index} is stopped: start it again", field="index", value=self.index)
        return self._ring

    def _wait(self, holds: Callable[[], bool], timeout: float) -> None:
        """Tell the device, and take what it is done with until something holds."""
        deadline = time.monotonic() + timeout
        self.notify()
        while not holds():
            if self._collect():
                continue
            ready = self._waiter.wait_for_any((self.err, self.call), deadline)
            if ready is None:
                raise DeadlineExpired(f"queue {self.index}: no answer within {timeout:g} s")
            if ready == self.call.fileno():
                drain(ready)
            elif not self._collect():  # what was done before the end still counts
                raise QueueBroken(f"queue {self.index}: the back-end declares it broken: stop it, and start it again")

    def _collect(self) -> bool:
        """Take all that the device is done with; whether there was anything."""
        ring, before = self._running(), len(self._flights)
        while done := ring.collect():
            self._land(self._flights.pop(done[0]), done[1])
        return len(self._flights) < before

    def _land(self, flight: _Flight, written: int) -> None:
        """Keep the answer, unless nobody wants it any more, and give the buffers back."""
        if flight.ticket in self._owed:
            buffers = tuple(bytes(self._memory.view[start : start + size]) for start, size in flight.writable)
            fitting = min(written, sum(size for _, size in flight.writable))
            self._done[flight.ticket] = Completion(flight.ticket, fitting, buffers)
        self._give_back(flight.blocks)

    def _place(self, taken: list[int], data: bytes) -> Buffer:
        start = self._take(taken, len(data))
        self._memory.view[start : start + len(data)] = data
        return start, len(data)

    def _table(self, taken: list[int], count: int) -> Table | None:
        """Room for a table of so many buffers, where one is of use."""
        if not self.indirect or count < 2:
            return None
        start, size = self._take(taken, table_size(count)), table_size(count)
        return Table(start, self._memory.view[start : start + size])

    def _take(self, taken: list[int], size: int) -> int:
        taken.append(self._memory.take(size))
        return taken[-1]

    def _give_back(self, blocks: Sequence[int]) -> None:
        for start in blocks:
            self._memory.give_back(start)


def _set(eventfd: OwnedFd) -> None:
    """Set an eventfd, unless its other owner has just filled it."""
    with contextlib.suppress(BlockingIOError):
        os.eventfd_write(eventfd.fileno(), 1)


def _eventfds(count: int) -> list[OwnedFd]:
    """New eventfds: all of them, or OSError and none."""
    made: list[OwnedFd] = []
    try:
        for _ in range(count):
            made.append(OwnedFd(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)))
    except OSError:
        close_all(made)
        raise
    return made
