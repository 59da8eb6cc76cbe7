"""Too much of what is legal: requests without end, kicks without requests, noise in suppression fields, stops under load."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Iterator

import pytest

from tests.virtio_rig import BUFFERS, DESCRIPTOR, WRITE
from tests.wire.devices import Scripted
from vhostuser.protocol.numbers import FrontendRequest as Q
from vhostuser.protocol.payloads import U64, VringState
from vhostuser.testing import DEADLINE, BackendProcess, RawFrontend, sparse_file
from vhostuser.transport.fds import OwnedFd
from vhostuser.virtio.packed import available_flags, used_flags

from .rig import (
    ANSWER,
    KINDS,
    MEMORY,
    Connected,
    ConnectedPacked,
    ConnectedSplit,
    Kind,
    backend_of,
    connected,
    echoes,
    prepared,
    wait_for,
)

SIZE = 256
ROUNDS = 80
"""20,480 requests here; FLOOD_ROUNDS=3907 makes a million of them."""
KICKS = 20_000
SPLITS = {name: kind for name, kind in KINDS.items() if "split" in name}
both = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())


class Noted(Scripted):
    """Echoes, and keeps what it was asked; `held` once it has come to request number `hold`, which `goes_on` lets go."""

    def __init__(self, hold: int = -1) -> None:
        super().__init__(self._note, {})
        self.seen: list[bytes] = []
        self.hold, self.held, self.goes_on = hold, threading.Event(), threading.Event()

    @staticmethod
    def _note(device: Scripted, request: bytes) -> bytes:
        assert isinstance(device, Noted)
        device.seen.append(request)
        if len(device.seen) == device.hold + 1:
            device.held.set()
            device.goes_on.wait(DEADLINE)
        return request


def noted(rig: Connected) -> Noted:
    device = backend_of(rig).device
    assert isinstance(device, Noted)
    return device


# Q26


class Flood:
    """Offers the whole ring, waits until the device is done with it, and never takes anything back."""

    def __init__(self, rig: Connected) -> None:
        self.rig, self.done = rig, 0
        self.rounds = [self._descriptors(first) for first in (0, rig.size)]
        if isinstance(rig, ConnectedSplit):
            rig.descriptors[:] = self.rounds[0]
            rig.available[4:] = b"".join(index.to_bytes(2, "little") for index in range(rig.size))

    def _descriptors(self, first: int) -> bytes:
        """A whole table from a position on. It is made apart: the device looks at the ring already, kicked or not."""
        size = self.rig.size
        if self.rig.format.is_packed:
            flags = WRITE | available_flags(first, size)
            return b"".join(DESCRIPTOR.pack(ANSWER, 8, index, flags) for index in range(size))
        return b"".join(DESCRIPTOR.pack(ANSWER, 8, WRITE, index) for index in range(size))

    def round(self) -> None:
        """Offer all of it once."""
        rig = self.rig
        if isinstance(rig, ConnectedSplit):
            self.done = (self.done + rig.size) & 0xFFFF
            rig.available.cast("H")[1] = self.done
        else:
            data = self.rounds[self.done > 0]
            rig.descriptors[16:], rig.descriptors[:16] = data[16:], data[:16]
        rig.kicked()
        while not self._finished():
            assert wait_for(rig.call, rig.err) == [rig.call.fileno()]
            os.eventfd_read(rig.call.fileno())
        if isinstance(rig, ConnectedPacked):
            self.done = rig.size - self.done

    def _finished(self) -> bool:
        if isinstance(self.rig, ConnectedSplit):
            return self.rig.used.cast("H")[1] == self.done
        flags = self.rig.descriptors.cast("H")[7::8].tolist()
        return {each & (1 << 7 | 1 << 15) for each in flags} == {used_flags(self.done, self.rig.size)}


def resident(pid: int) -> int:
    """Bytes of memory that a process has of its own."""
    with open(f"/proc/{pid}/statm") as file:
        fields = file.read().split()
    return (int(fields[1]) - int(fields[2])) * os.sysconf("SC_PAGE_SIZE")


@both
@pytest.mark.timeout(600)
def test_q26_requests_without_end_whose_answers_nobody_takes(kind: Kind) -> None:
    """What is in flight is at most the ring, and memory does not grow."""
    made, seal = kind
    rounds = int(os.environ.get("FLOOD_ROUNDS", ROUNDS))
    with BackendProcess("tests.hostile.devices:Filler") as process, sparse_file(MEMORY, seal=seal) as file:
        assert process.socket is not None
        with RawFrontend(process.socket) as raw:
            rig = made(raw, prepared(raw, file, made.format), size=SIZE)
            flood = Flood(rig)
            for _ in range(10):
                flood.round()
            before = resident(process.pid)
            for _ in range(rounds):
                flood.round()
            assert resident(process.pid) - before < 2 << 20
            taken = (rounds + 10) * SIZE
            position = taken % (2 * SIZE) if made.format.is_packed else taken & 0xFFFF
            assert rig.stop() == rig.base_at(position)
            rig.close()
        code, errors = process.wait()
    assert (code, "Traceback" in errors) == (0, False), errors


@pytest.mark.parametrize(
    "kind", [KINDS[name] for name in KINDS if "split" in name], ids=[name for name in KINDS if "split" in name]
)
def test_q26_more_in_flight_than_the_ring_holds_breaks(kind: Kind) -> None:
    """While the device is busy with the first of them."""
    device = Noted(hold=0)
    with connected(device, kind) as rig:
        assert isinstance(rig, ConnectedSplit)
        rig.describe(0, addr=BUFFERS, len=1)
        rig.offer(*[0] * 8)
        rig.kicked()
        assert device.held.wait(DEADLINE)
        rig.offer(*[0] * 8)
        device.goes_on.set()
        rig.broken()
        assert len(device.seen) <= 8
        echoes(rig.another())


# Q27


def looked_for(rig: Connected) -> tuple[int, int]:
    """The next request that comes back, whether that is said or not."""
    end = time.monotonic() + DEADLINE
    while (done := rig.driver.collect()) is None:
        assert time.monotonic() < end, "it does not come back"
        os.sched_yield()
    return done


@both
def test_q27_noise_in_the_fields_of_suppression_loses_no_request(kind: Kind) -> None:
    """The driver's flags and events change all the time; whatever they say, what is offered and kicked is done."""
    dice = random.Random(27)
    with connected(Noted(), kind) as rig:
        for _ in range(200):
            if isinstance(rig, ConnectedSplit):
                rig.available[:2] = dice.randbytes(2)
                rig.used[:2] = dice.randbytes(2)
            else:
                rig.available[:4] = dice.randbytes(4)
                rig.used[:2] = dice.randbytes(2)
            given = rig.give((BUFFERS, 4, 0), (ANSWER, 4, WRITE))
            rig.kicked()
            assert looked_for(rig) == (given, 4)
        assert backend_of(rig).counters.broken == 0
        assert len(noted(rig).seen) == 200


# Q28


def storm(kick: OwnedFd, stop: threading.Event) -> None:
    count = 0
    while count < KICKS or not stop.is_set():
        os.eventfd_write(kick.fileno(), 1)
        count += 1


@pytest.fixture
def storming() -> Iterator[list[threading.Thread]]:
    threads: list[threading.Thread] = []
    yield threads
    for thread in threads:
        thread.join(DEADLINE)


@both
def test_q28_a_storm_of_kicks_does_no_work_and_holds_nobody_up(kind: Kind, storming: list[threading.Thread]) -> None:
    with connected(Noted(), kind) as rig:
        other, stop, before = rig.another(index=1), threading.Event(), bytes(rig.memory)
        storming.append(threading.Thread(target=storm, args=(rig.kick, stop)))
        storming[0].start()
        try:
            echoes(other, 100)
        finally:
            stop.set()
            storming[0].join(DEADLINE)
        assert len(noted(rig).seen) == 100
        assert bytes(rig.memory) == before
        echoes(rig)
        other.close()


def full() -> int:
    """An eventfd that counts down, from as far up as there is."""
    return os.eventfd((1 << 32) - 1, os.EFD_SEMAPHORE | os.EFD_CLOEXEC)


def full_once() -> int:
    fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    os.eventfd_write(fd, (1 << 64) - 2)
    return fd


def endless() -> int:
    return os.open("/dev/zero", os.O_RDONLY | os.O_CLOEXEC)


@both
@pytest.mark.parametrize("make", [full, full_once, endless])
def test_q28_a_kick_that_never_ends_holds_nobody_up(kind: Kind, make: object) -> None:
    """Neither another queue, nor the main channel, nor what comes in its place."""
    assert callable(make)
    with connected(Noted(), kind) as rig:
        other = rig.another(index=1)
        with OwnedFd(make()) as kick:
            rig.raw.accepted(Q.SET_VRING_KICK, U64(0), fds=[kick])
            echoes(other, 50)
            assert len(noted(rig).seen) == 50
            rig.stop()
        echoes(rig.another())
        other.close()


@both
def test_q28_a_kick_after_the_stop_does_no_work(kind: Kind) -> None:
    """What it announced is done when the ring is started again, without a kick, once."""
    with connected(Noted(), kind) as rig:
        other = rig.another(index=1)
        echoes(rig, 3)
        base = rig.stop()
        given = rig.driver.add([(BUFFERS, 4)], [(ANSWER, 4)])
        for _ in range(100):
            rig.kicked()
        echoes(other, 3)
        assert (len(noted(rig).seen), rig.driver.collect()) == (6, None)
        rig.start_again(base)
        assert rig.collect() == (given, 4)
        echoes(other, 3)
        assert len(noted(rig).seen) == 10
        other.close()


# Q29


@both
@pytest.mark.parametrize("hold", [0, 50, 99])
def test_q29_a_stop_under_load_returns_when_all_that_was_taken_is_given_back(kind: Kind, hold: int) -> None:
    """100 requests are in flight; the rest of them is done after the start, none twice."""
    device = Noted(hold)
    with connected(device, kind, size=SIZE) as rig:
        numbers = [number.to_bytes(4, "little") for number in range(100)]
        given = []
        for at, number in enumerate(numbers):
            rig.buffers[4 * at : 4 * at + 4] = number
            given.append(rig.driver.add([(BUFFERS + 4 * at, 4)], [(ANSWER + 4 * at, 4)]))
        rig.kicked()
        assert device.held.wait(DEADLINE)
        rig.raw.request(Q.GET_VRING_BASE, VringState(0, 0))
        device.goes_on.set()
        base = VringState.unpack(rig.raw.receive().payload).num
        taken = device.seen[:]
        assert hold < len(taken) <= 100
        assert taken == numbers[: len(taken)]
        assert base == rig.base_at(len(taken) * (2 if rig.format.is_packed else 1) % rig.last)
        assert [rig.driver.collect() for _ in taken] == [(each, 4) for each in given[: len(taken)]]
        assert rig.driver.collect() is None
        rig.started = False
        rig.start_again(base)
        assert [rig.collect() for _ in given[len(taken) :]] == [(each, 4) for each in given[len(taken) :]]
        assert device.seen == numbers
        assert bytes(rig.buffers[ANSWER - BUFFERS :][:400]) == b"".join(numbers)
