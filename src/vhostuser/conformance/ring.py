"""A driver of one ring of the back-end under test: honest requests, or descriptors of any kind."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable, Sequence
from typing import Final

from ..errors import QueueBroken
from ..protocol.numbers import FrontendRequest, ProtocolFeature, mask
from ..protocol.payloads import U64, VringState
from ..virtio.buffers import Table
from ..virtio.driver import DriverQueue
from ..virtio.formats import SPLIT, DriverHalf, Format
from ..virtio.numbers import DESCRIPTOR_SIZE
from .backend_bench import FEATURES, BackendBench
from .outcome import NO_DEVICE, Deviation, NotApplicable
from .probes import Probe

F, Q = ProtocolFeature, FrontendRequest
RINGS: Final = mask((F.MQ, F.REPLY_ACK, F.CONFIG, F.RESET_DEVICE, F.STATUS))
"""What is agreed on for rules about rings: nothing that has the back-end ask for anything."""
SIZE: Final = 16
SPACE: Final = 1 << 16
"""Bytes of memory that a ring and its buffers have for themselves."""
DATA: Final = 1 << 14
"""Where in that the buffers begin."""
ROOM: Final = 1 << 15
"""Where in that the room for answers begins."""
UNWRITTEN: Final = 0xA5
"""What no answer ends with."""
_STEP: Final = 0.001
TABLE: Final = 3 << 14
"""Where in that a table of descriptors has room."""


def begin(bench: BackendBench, *, features: int = 0, protocol: int = RINGS) -> None:
    """Agree on what rings want, and share memory, which `bench` shows as its own."""
    probe_of(bench)
    bench.agree(features=FEATURES | features, protocol=protocol)
    bench.map_memory()


def probe_of(bench: BackendBench) -> Probe:
    """The request that the device under test answers."""
    if bench.offer.probe is None:
        raise NotApplicable(NO_DEVICE)
    return bench.offer.probe


class Ring:
    """Ring `index` of the back-end behind `bench`, with buffers in a space of its own."""

    def __init__(
        self,
        bench: BackendBench,
        *,
        form: Format = SPLIT,
        index: int | None = None,
        base: int | None = None,
        in_band: bool = False,
        enabled: bool = True,
    ) -> None:
        self.bench, self.probe, self.form = bench, probe_of(bench), form
        self.index = self.probe.queue if index is None else index
        self.at = self.index % 8 * SPACE
        descriptors, available, used = form.sizes(SIZE)
        behind = descriptors + -(-available // 4) * 4
        view = memoryview(bench.memory)[self.at : self.at + SPACE]
        view[:DATA] = bytes(DATA)
        self.view, self.descriptors = view, view[:descriptors]
        self.available, self.used = view[descriptors : descriptors + available], view[behind : behind + used]
        if base is not None and not form.is_packed:
            self.available[2:4] = self.used[2:4] = base.to_bytes(2, "little")
        self.driver: DriverHalf = form.driver(SIZE, self.descriptors, self.available, self.used)
        if base is not None and isinstance(self.driver, DriverQueue):
            self.driver.go_on_at(base)
        self.call = bench.eventfd()
        if in_band:
            self._set_up_in_band()
        else:
            bench.set_up_queue(self.index, size=SIZE, at=self.at, ring=form, base=base, enabled=enabled)
            bench.accepted(Q.SET_VRING_CALL, U64(self.index), fds=[self.call])
        self.drain()
        self.kick_fd = bench.kick
        view[DATA : DATA + len(self.probe.request)] = self.probe.request

    def _set_up_in_band(self) -> None:
        """Set it up without eventfds."""
        self.bench.accepted(Q.SET_VRING_NUM, VringState(self.index, SIZE))
        self.bench.accepted(Q.SET_VRING_BASE, VringState(self.index, 0))
        self.bench.accepted(Q.SET_VRING_ADDR, self.bench.addresses(self.index, at=self.at))
        self.bench.enable(self.index)

    # Requests

    def buffers(self, pieces: int = 1) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
        """The probe's request and room, each in so many pieces as there are bytes for."""
        return (
            _split(self.at + DATA, len(self.probe.request), pieces),
            _split(self.at + ROOM, self.probe.room, pieces),
        )

    def offer(self, readable: Sequence[tuple[int, int]], writable: Sequence[tuple[int, int]], *, table: bool = False) -> int:
        """Offer a chain, its descriptors in a table of their own if `table`, and say so."""
        room = Table(self.at + TABLE, self.view[TABLE : TABLE + SIZE * DESCRIPTOR_SIZE]) if table else None
        head = self.driver.add(readable, writable, room)
        self.kick()
        return head

    def kick(self) -> None:
        """Notify the device."""
        if self.kick_fd is not None:
            os.eventfd_write(self.kick_fd.fileno(), 1)

    def exchange(self, pieces: int = 1, *, table: bool = False) -> None:
        """Send the probe, and see it come back as it should."""
        last = self.at + ROOM + (self.probe.written or 1) - 1
        self.bench.memory[last] = UNWRITTEN
        head = self.offer(*self.buffers(pieces), table=table)
        self.comes_back(head)
        if self.probe.written and self.bench.memory[last] == UNWRITTEN:
            raise Deviation(f"an answer of {self.probe.written} bytes", "the last of them is not written")

    def comes_back(self, head: int) -> None:
        """That chain is given back next, with no more bytes than the device writes for the probe.

        It may have less: a device need not know what became of each ("The Virtqueue Used Ring").
        """
        done, written = self.collect(f"chain {head} given back")
        if done != head:
            raise Deviation(f"chain {head} given back", f"chain {done}")
        most = self.probe.room if self.probe.written is None else self.probe.written
        if written > most:
            raise Deviation(f"at most {most} bytes written to chain {head}", f"{written} bytes")

    def collect(self, what: str) -> tuple[int, int]:
        """The next chain that comes back, and the bytes written to it."""
        end = time.monotonic() + self.bench.deadline
        while (done := self.collected()) is None:
            if not self.wait(self.call.fileno(), end - time.monotonic()):
                raise Deviation(what, f"nothing within {self.bench.deadline:g} s", hung=True)
        return done

    def collected(self) -> tuple[int, int] | None:
        """A chain that came back, if there is one, and the bytes written to it."""
        try:
            return self.driver.collect()
        except QueueBroken as error:
            raise Deviation("a chain given back that was offered, and once", str(error)) from None

    def wait(self, fd: int, seconds: float) -> bool:
        """Wait for an eventfd and reset it; whether it was set. The main channel's end is a Deviation."""
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        poll.register(self.bench.socket, select.POLLHUP)
        ready = dict(poll.poll(max(0.0, seconds) * 1000))
        if fd in ready:
            os.eventfd_read(fd)
            return True
        if self.bench.fileno() in ready:
            raise Deviation("the request given back", "the end of the connection")
        return False

    def drain(self) -> None:
        """Forget a notification that came already: many a back-end signals an eventfd as soon as it gets it."""
        self.wait(self.call.fileno(), 0)

    def stop(self) -> int:
        """Stop the ring; its base. What the device does for requests that came before has been done then."""
        return VringState.unpack(self.bench.replied(Q.GET_VRING_BASE, VringState(self.index, 0)).payload).num

    def set_or_ended(self, fd: int) -> bool:
        """An eventfd is set, or the connection is over, before the deadline."""
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        poll.register(self.bench.socket, select.POLLHUP)
        return bool(poll.poll(self.bench.deadline * 1000))

    # Anything

    def describe(self, slot: int, *fields: int) -> None:
        """Write a descriptor: address, length, flags and next (of a packed ring: id and flags)."""
        entry = b"".join(value.to_bytes(size, "little") for value, size in zip(fields, (8, 4, 2, 2), strict=True))
        self.descriptors[slot * DESCRIPTOR_SIZE : (slot + 1) * DESCRIPTOR_SIZE] = entry

    def make_available(self, head: int, index: int = 1) -> None:
        """Put a head into a split ring, and set its available index."""
        self.available[4:6] = head.to_bytes(2, "little")
        self.available[2:4] = index.to_bytes(2, "little")

    @property
    def used_index(self) -> int:
        """How many chains came back, of a split ring."""
        return int.from_bytes(self.used[2:4], "little")

    def polled(self, holds: Callable[[], bool], what: str) -> None:
        """Look until it holds."""
        end = time.monotonic() + self.bench.deadline
        while not holds():
            if time.monotonic() > end:
                raise Deviation(what, f"nothing within {self.bench.deadline:g} s", hung=True)
            time.sleep(_STEP)

    def first_comes_back(self, what: str) -> None:
        """The chain at descriptor 0 of a split ring, put there by hand, is the first one given back."""
        self.polled(lambda: self.used_index > 0, what)
        if head := int.from_bytes(self.used[4:8], "little"):
            raise Deviation(f"{what}: chain 0", f"chain {head}")

    def call_comes(self, what: str) -> None:
        """The driver is notified."""
        if not self.wait(self.call.fileno(), self.bench.deadline):
            raise Deviation(what, f"none within {self.bench.deadline:g} s", hung=True)


def _split(at: int, size: int, pieces: int) -> list[tuple[int, int]]:
    """`size` bytes at `at` in so many pieces, or fewer."""
    step = max(1, -(-size // pieces))
    return [(at + start, min(step, size - start)) for start in range(0, size, step)]
