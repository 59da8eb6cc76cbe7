"""A front-end goes on with another back-end ("Inflight I/O tracking"): raw ones, whose device halves lie in this process."""

from __future__ import annotations

import os
import random
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Final
from unittest import mock

import pytest

from vhostuser import (
    AddressError,
    DescriptorChain,
    Disconnected,
    Frontend,
    LocalProtocolError,
    Queue,
    QueueBroken,
    RemoteProtocolError,
    RequestFailed,
)
from vhostuser.errors import DeadlineExpired
from vhostuser.memory.guest import GuestMemory, GuestRegion
from vhostuser.protocol.framing import Frame
from vhostuser.protocol.numbers import FrontendRequest as Q
from vhostuser.protocol.numbers import ProtocolFeature as F
from vhostuser.protocol.numbers import mask
from vhostuser.protocol.payloads import Inflight, ShmemConfig, VringState
from vhostuser.queue import Completion
from vhostuser.testing import DEADLINE, RawBackend, Served, joined, listening, memory_file, message, sparse_file
from vhostuser.testing.raw_backend import FEATURES, PROTOCOL_FEATURES
from vhostuser.testing.wire import ACK
from vhostuser.transport import listen
from vhostuser.transport.fds import OwnedFd
from vhostuser.virtio.formats import DeviceQueue, ring_format
from vhostuser.virtio.numbers import Feature

from .devices import Answering

SIZE: Final = 8
AREA: Final = 4096
TRACKED: Final = PROTOCOL_FEATURES | mask((F.INFLIGHT_SHMFD, F.GET_VRING_BASE_INFLIGHT, F.CONFIGURE_MEM_SLOTS))
formats = pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])


class Tracked(RawBackend):
    """A back-end that has an inflight area; `told` is what it was told in the requests that matter here, in order."""

    def __init__(self, *, protocol_features: int = TRACKED, features: int = FEATURES, size: int = AREA) -> None:
        super().__init__(features=features | 1 << Feature.RING_PACKED, protocol_features=protocol_features, queues=2)
        self.area = sparse_file(AREA)
        self.told: list[tuple[Q, bytes]] = []
        self.areas: list[int] = []
        self.answers[Q.GET_INFLIGHT_FD] = self._give_area(size)
        self.answers[Q.GET_MAX_MEM_SLOTS] = struct.pack("<Q", 32)
        self.files[Q.GET_INFLIGHT_FD] = [self.area]
        for request in (Q.SET_INFLIGHT_FD, Q.SET_FEATURES, Q.SET_PROTOCOL_FEATURES, Q.SET_VRING_BASE, Q.SET_VRING_NUM):
            self.raw_answers[request] = self._note

    def all(self, request: Q) -> list[bytes]:
        """The payloads of one request."""
        return [payload for number, payload in self.told if number == request]

    def close(self) -> None:
        super().close()
        self.area.close()

    def _give_area(self, size: int) -> Callable[[Frame[OwnedFd]], bytes]:
        def answer(frame: Frame[OwnedFd]) -> bytes:
            self.told.append((Q.GET_INFLIGHT_FD, frame.payload))
            asked = Inflight.unpack(frame.payload)
            return Inflight(size, 0, asked.num_queues, asked.queue_size).pack()

        return answer

    def _note(self, frame: Frame[OwnedFd]) -> bytes:
        self.told.append((Q(frame.request), frame.payload))
        if frame.request == Q.SET_INFLIGHT_FD:
            self.areas += [os.fstat(fd.fileno()).st_ino for fd in frame.fds]
        return message(frame.request, bytes(8), flags=ACK) if frame.need_reply else b""


def device_half(queue: Queue, packed: bool, base: int | None = None) -> DeviceQueue:
    """The device's end of a queue, from `base` on."""
    row = ring_format(packed << Feature.RING_PACKED)
    where = queue.addresses.descriptor, queue.addresses.available, queue.addresses.used
    view = queue._memory.view
    sizes = row.sizes(queue.size)
    table, driver, device = (view[start : start + size] for start, size in zip(where, sizes, strict=True))
    memory = GuestMemory([GuestRegion(0, 0, view, ())])
    return row.device(queue.size, table, driver, device, memory, base=row.first_base if base is None else base)


def pop(half: DeviceQueue) -> DescriptorChain:
    """The next request, which is there."""
    chain = half.pop()
    if chain is None:
        raise AssertionError("no request is available")
    return chain


def answer(half: DeviceQueue, chains: list[DescriptorChain]) -> None:
    """Echo, in that order."""
    for chain in chains:
        chain.write(chain.read())
        half.push(chain)
    half.publish()


def answer_all(half: DeviceQueue) -> int:
    """Echo to all that is available; how many."""
    chains = []
    while chain := half.pop():
        chains.append(chain)
    answer(half, chains)
    return len(chains)


@contextmanager
def begun(packed: bool, *, inflight: bool = True) -> Iterator[tuple[Tracked, Frontend, Queue]]:
    """A front-end with one queue at its first back-end."""
    with Tracked() as raw, raw.frontend(packed=packed, inflight=inflight) as frontend:
        if inflight:
            frontend.track_inflight(SIZE)
        frontend.share_memory(1 << 20)
        yield raw, frontend, frontend.start_queue(0, size=SIZE)


def submit(queue: Queue, count: int) -> dict[int, bytes]:
    """Requests, and what is to be answered to each, by ticket."""
    datas = [bytes([number + 1]) * 3 for number in range(count)]
    return {queue.submit([data], [3]): data for data in datas}


def end(raw: RawBackend) -> None:
    """Die, as far as the front-end can see."""
    raw.main.socket.shutdown(socket.SHUT_RDWR)


def base_of(raw: Tracked) -> int:
    """Where the first queue goes on, as the back-end was told."""
    return VringState.unpack(raw.all(Q.SET_VRING_BASE)[0]).num


# What is said to the back-ends


def test_the_area_is_asked_for_and_handed_back_in_24_bytes() -> None:
    with begun(packed=False) as (raw, _, _):
        wanted, given = Inflight(0, 0, 2, SIZE), Inflight(AREA, 0, 2, SIZE)
        assert len(wanted.pack()) == 24
        told = [each for each in raw.told if each[0] in (Q.GET_INFLIGHT_FD, Q.SET_INFLIGHT_FD)]
        assert told == [(Q.GET_INFLIGHT_FD, wanted.pack()), (Q.SET_INFLIGHT_FD, given.pack())]
        assert raw.areas == [os.fstat(raw.area.fileno()).st_ino]
        assert raw.seen.index(Q.SET_INFLIGHT_FD) < raw.seen.index(Q.SET_VRING_NUM)


def test_inflight_features_are_taken_only_where_they_are_asked_for_and_offered() -> None:
    names = {"INFLIGHT_SHMFD", "GET_VRING_BASE_INFLIGHT"}
    for options, offered, taken in (
        ({"inflight": True}, TRACKED, names),
        ({}, TRACKED, set()),
        ({"inflight": True}, PROTOCOL_FEATURES, set()),
        ({"inflight": True}, TRACKED & ~(1 << F.INFLIGHT_SHMFD), set()),
    ):
        with Tracked(protocol_features=offered) as raw, raw.frontend(inflight=bool(options)) as frontend:
            assert frontend.protocol_features & names == taken
            if not taken:
                with pytest.raises(LocalProtocolError, match=r"GET_INFLIGHT_FD .* needs protocol feature INFLIGHT_SHMFD"):
                    frontend.track_inflight()


def test_a_queue_waits_for_the_area_and_fits_in() -> None:
    with Tracked() as raw, raw.frontend(inflight=True) as frontend:
        frontend.share_memory(1 << 20)
        with pytest.raises(LocalProtocolError, match="needs track_inflight first"):
            frontend.start_queue(0)
        for size in (0, -1, 32769):
            with pytest.raises(LocalProtocolError, match=f"queue_size {size} is not between 1 and 32768"):
                frontend.track_inflight(size)
        frontend.track_inflight(SIZE)
        with pytest.raises(LocalProtocolError, match="queue 0 size 16 is more than the 8"):
            frontend.start_queue(0, size=16)
        with pytest.raises(LocalProtocolError, match="tracked already"):
            frontend.track_inflight(SIZE)
        frontend.start_queue(0, size=SIZE)


@pytest.mark.parametrize(
    ("size", "with_fd", "error"), [(0, True, "no area"), (AREA, False, "no area"), (AREA + 1, True, "passes")]
)
def test_an_area_that_is_none_is_refused_and_nothing_is_kept(size: int, with_fd: bool, error: str) -> None:
    with Tracked(size=size) as raw, raw.frontend(inflight=True) as frontend:
        if not with_fd:
            raw.files.clear()
        with pytest.raises(RemoteProtocolError if size > AREA else RequestFailed, match=error):
            frontend.track_inflight(SIZE)
        assert Q.SET_INFLIGHT_FD not in raw.seen
        raw.answers[Q.GET_INFLIGHT_FD] = Inflight(AREA, 0, 2, SIZE)
        raw.files[Q.GET_INFLIGHT_FD] = [raw.area]
        frontend.track_inflight(SIZE)


def test_an_area_far_larger_than_its_queues_need_is_refused() -> None:
    """A reset writes zeroes to all of it, and a sparse file may have any size."""
    with Tracked() as raw, raw.frontend(inflight=True) as frontend:
        for size, taken in ((1 << 62, False), ((2 << 20) + 1, False), (2 << 20, True)):
            os.ftruncate(raw.area.fileno(), size)
            raw.answers[Q.GET_INFLIGHT_FD] = Inflight(size, 0, 2, SIZE)
            with nullcontext() if taken else pytest.raises(RemoteProtocolError, match=f"mmap_size {size:#x} is more than"):
                frontend.track_inflight(SIZE)


def test_an_area_that_the_back_end_does_not_take_back_is_not_kept() -> None:
    with Tracked() as raw, raw.frontend(inflight=True) as frontend:
        raw.raw_answers[Q.SET_INFLIGHT_FD] = message(Q.SET_INFLIGHT_FD, struct.pack("<Q", 1), flags=ACK)
        with pytest.raises(RequestFailed):
            frontend.track_inflight(SIZE)
        raw.raw_answers.pop(Q.SET_INFLIGHT_FD)
        frontend.track_inflight(SIZE)


def test_a_reset_leaves_nothing_in_progress() -> None:
    with begun(packed=False) as (raw, frontend, _):
        os.pwrite(raw.area.fileno(), b"\1" * AREA, 0)
        frontend.reset()
        assert os.pread(raw.area.fileno(), AREA, 0) == bytes(AREA)
        assert len(raw.areas) == 2


# Going on


@formats
@pytest.mark.parametrize("seed", range(6))
def test_p01_every_request_is_done_once_over_three_back_ends(packed: bool, seed: int) -> None:
    """Each takes some requests, does some of those in any order, and dies; the next one goes on by what was tracked."""
    rand = random.Random(seed)
    with begun(packed) as (first, frontend, queue), ExitStack() as stack:
        raw, half, held = first, device_half(queue, packed), list[DescriptorChain]()
        wanted: dict[int, bytes] = {}
        done: dict[int, bytes] = {}
        for _ in range(3):
            for _ in range(5):  # on to where indexes and counters have wrapped
                room = (SIZE - 2 * queue.in_flight) // 2
                data = rand.randbytes(3)
                wanted |= {queue.submit([data], [3]): data for _ in range(rand.randrange(room + 1))}
                while (chain := half.pop()) and rand.random() < 0.8:
                    held.append(chain)
                held += [chain] if chain else []
                rand.shuffle(held)
                answer(half, [held.pop() for _ in range(rand.randrange(len(held) + 1))])
                if queue.in_flight and rand.random() < 0.5:
                    with suppress(DeadlineExpired):
                        done |= {each.ticket: each.data for each in queue.completions(0)}
            end(raw)
            raw = stack.enter_context(Tracked())
            left = queue.in_flight
            raw.take_over(frontend)
            assert queue.in_flight == left
            assert raw.areas == first.areas
            half = _successor(half, queue, packed, base_of(raw))
        answer(half, held)
        answer_all(half)
        while queue.in_flight:
            done |= {each.ticket: each.data for each in queue.completions(DEADLINE)}
        assert done == wanted


def _successor(before: DeviceQueue, queue: Queue, packed: bool, base: int) -> DeviceQueue:
    """Goes on at the used position that it was told, and with the next request that was not taken: as in its area."""
    if not packed:
        assert base == int.from_bytes(queue._memory.view[queue.addresses.used + 2 :][:2], "little")
        return device_half(queue, packed, before.base)
    assert base == before.base >> 16 | before.base >> 16 << 16
    return device_half(queue, packed, before.base & 0xFFFF | base >> 16 << 16)


@formats
def test_a_queue_goes_on_with_all_that_it_was(packed: bool) -> None:
    with begun(packed) as (first, frontend, queue):
        block = frontend.add_memory(4096)
        wanted = submit(queue, 4)
        half = device_half(queue, packed)
        answer(half, [pop(half), pop(half)])
        end(first)
        with Tracked() as raw:
            raw.take_over(frontend)
            assert raw.seen == [
                *(Q.GET_FEATURES, Q.GET_PROTOCOL_FEATURES, Q.SET_PROTOCOL_FEATURES, Q.GET_QUEUE_NUM, Q.GET_MAX_MEM_SLOTS),
                *(Q.SET_OWNER, Q.SET_FEATURES, Q.SET_BACKEND_REQ_FD, Q.GET_SHMEM_CONFIG, Q.SET_INFLIGHT_FD),
                *(Q.SET_MEM_TABLE, Q.ADD_MEM_REG, Q.SET_VRING_NUM, Q.SET_VRING_BASE, Q.SET_VRING_ADDR),
                *(Q.SET_VRING_CALL, Q.SET_VRING_ERR, Q.SET_VRING_KICK, Q.SET_VRING_ENABLE),
            ]
            for request in (Q.SET_FEATURES, Q.SET_PROTOCOL_FEATURES, Q.SET_INFLIGHT_FD, Q.SET_VRING_NUM):
                assert raw.all(request) == first.all(request)
            assert base_of(raw) == (0x80048004 if packed else 2)
            assert os.eventfd_read(queue.kick.fileno()) == 1
            answer_all(device_half(queue, packed, 0x80048004 if packed else 2))
            assert {ticket: queue.finish(ticket, timeout=DEADLINE).data for ticket in wanted} == wanted
            frontend.remove_memory(block)
            assert frontend.counters.closed == 1


def test_p02_regions_are_empty_after_it() -> None:
    with begun(packed=False) as (first, frontend, _), memory_file() as file:
        region = frontend.shm[0]
        first.channel.accepted(9, _map(4096), fds=[file])
        assert region.mappings
        end(first)
        with Tracked() as raw:
            raw.take_over(frontend)
            assert frontend.shm[0] is region
            assert not region.mappings
            raw.channel.accepted(9, _map(4096), fds=[file])
            assert len(region.mappings) == 1


def _map(len: int) -> bytes:
    return struct.pack("<B7xQQQQ", 0, 0, 0, len, 0)


def test_a_wait_that_the_end_interrupted_goes_on() -> None:
    with begun(packed=False) as (first, frontend, queue):
        ticket = queue.submit([b"abc"], [3])
        end(first)
        for _ in range(2):
            with pytest.raises(Disconnected):
                queue.finish(ticket)
        with pytest.raises(Disconnected):
            queue.exchange(b"x", 1)
        assert queue.in_flight == 1
        with Tracked() as raw:
            raw.take_over(frontend)
            assert answer_all(device_half(queue, False)) == 2
            assert queue.finish(ticket, timeout=DEADLINE).data == b"abc"
            assert queue.in_flight == 0


def test_what_was_submitted_in_between_is_done_too() -> None:
    with begun(packed=False) as (first, frontend, queue):
        end(first)
        wanted = submit(queue, 3)
        with Tracked() as raw:
            raw.take_over(frontend)
            answer_all(device_half(queue, False))
            assert {each.ticket: each.data for each in queue.completions(DEADLINE)} == wanted


# Without tracking


@formats
def test_untracked_requests_are_not_given_to_another_back_end_unasked(packed: bool) -> None:
    with begun(packed, inflight=False) as (first, frontend, queue):
        submit(queue, 3)
        answer(half := device_half(queue, packed), [pop(half)])
        end(first)
        for _ in range(2):
            with Tracked() as raw, pytest.raises(LocalProtocolError, match="2 requests are in flight and not tracked"):
                raw.take_over(frontend)
        assert [each.data for each in queue.completions()] == [b"\1" * 3]


@formats
def test_untracked_requests_are_done_at_least_once_on_demand(packed: bool) -> None:
    with begun(packed, inflight=False) as (first, frontend, queue):
        wanted = submit(queue, 4)
        half = device_half(queue, packed)
        chains = [pop(half) for _ in range(4)]
        answer(half, [chains[2]])
        with pytest.raises(DeadlineExpired):
            queue.finish(min(wanted), timeout=0)
        free = queue._memory.free
        end(first)
        with Tracked() as raw:
            raw.take_over(frontend, resubmit=True)
            assert base_of(raw) == (0x80008000 if packed else 0)
            assert queue._memory.free == free + 32  # what was given up is over
            assert answer_all(device_half(queue, packed)) == 2
            left = {ticket: data for ticket, data in wanted.items() if ticket != min(wanted)}
            assert {ticket: queue.finish(ticket, timeout=DEADLINE).data for ticket in left} == left


@formats
def test_an_idle_queue_goes_on_without_tracking(packed: bool) -> None:
    device = Answering(lambda chain: chain.write(chain.read()))
    with joined(device, packed=packed) as both:
        both.frontend.share_memory(1 << 20)
        queue = both.frontend.start_queue(0, size=16)
        assert queue.exchange(b"ping", 4, timeout=DEADLINE) == b"ping"
        both.served.stop()
        with listening(device) as (path, _):
            both.frontend.reconnect(path, wait=DEADLINE)
            for _ in range(40):
                assert queue.exchange(b"pong", 4, timeout=DEADLINE) == b"pong"


@formats
def test_a_real_back_end_does_what_its_predecessor_left(packed: bool) -> None:
    device = Answering(lambda chain: chain.write(chain.read()))
    with RawBackend(features=FEATURES | packed << Feature.RING_PACKED, shared_memory={}) as raw:
        raw.answers[Q.GET_PROTOCOL_FEATURES] = struct.pack("<Q", mask((F.MQ, F.REPLY_ACK)))
        with raw.frontend(packed=packed) as frontend:
            frontend.share_memory(1 << 20)
            queue = frontend.start_queue(0, size=16)
            wanted = submit(queue, 6)
            end(raw)
            served = Served(device)
            try:
                frontend.reconnect(served.connected(), wait=DEADLINE, resubmit=True)
                assert {ticket: queue.finish(ticket, timeout=DEADLINE).data for ticket in wanted} == wanted
            finally:
                served.stop()


# What is refused, and leaves all as it was


def test_a_back_end_that_is_there_is_not_left() -> None:
    with begun(packed=False) as (_, frontend, _):
        with Tracked() as raw, pytest.raises(LocalProtocolError, match="the back-end is still there"):
            raw.take_over(frontend)
        frontend.config(0, 1)
    with Tracked() as raw, pytest.raises(LocalProtocolError, match="was closed"):
        raw.take_over(frontend)


@pytest.mark.parametrize("shared_memory", [{0: 1 << 20}, {}], ids=["regions", "none"])
def test_one_whose_channels_have_both_ended_is_gone_though_nobody_waits(shared_memory: dict[int, int]) -> None:
    with RawBackend(shared_memory=shared_memory) as first, first.frontend() as frontend:
        first.channel.socket.shutdown(socket.SHUT_RDWR)
        end(first)
        with RawBackend(shared_memory=shared_memory) as raw:
            raw.take_over(frontend)
            frontend.config(0, 1)


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ({"protocol_features": TRACKED & ~(1 << F.INFLIGHT_SHMFD)}, "GET_PROTOCOL_FEATURES .* lack INFLIGHT_SHMFD, in use"),
        ({"features": FEATURES & ~(1 << 32)}, "GET_FEATURES .* lack VERSION_1, in use"),
        ({"features": FEATURES & ~(1 << 30)}, "GET_FEATURES .* lack PROTOCOL_FEATURES, in use"),
    ],
)
def test_a_back_end_that_lacks_what_is_in_use_is_refused_and_the_next_one_may_have_it(
    wrong: dict[str, int], error: str
) -> None:
    with begun(packed=True) as (first, frontend, queue):
        wanted = submit(queue, 3)
        features = frontend.features, frontend.protocol_features
        end(first)
        for _ in range(2):
            with Tracked(**wrong) as raw, pytest.raises(RemoteProtocolError, match=error):
                raw.take_over(frontend)
            assert (frontend.features, frontend.protocol_features) == features
            with pytest.raises(Disconnected):
                queue.completions()
        with Tracked() as raw:
            raw.take_over(frontend)
            answer_all(device_half(queue, True))
            assert {each.ticket: each.data for each in queue.completions(DEADLINE)} == wanted


@pytest.mark.parametrize(
    ("asked", "count", "error"),
    [
        (Q.GET_QUEUE_NUM, 1, "GET_QUEUE_NUM num 1 is less than the 2 of the last connection"),
        (Q.GET_MAX_MEM_SLOTS, 31, "GET_MAX_MEM_SLOTS num 31 is less than the 32 of the last connection"),
    ],
)
def test_fewer_queues_or_memory_slots_than_before_are_refused(asked: Q, count: int, error: str) -> None:
    with begun(packed=False) as (first, frontend, queue):
        wanted = submit(queue, 1)
        end(first)
        with Tracked() as raw:
            raw.answers[asked] = struct.pack("<Q", count)
            with pytest.raises(RemoteProtocolError, match=error):
                raw.take_over(frontend)
        with Tracked() as raw:
            raw.take_over(frontend)
            answer_all(device_half(queue, False))
            assert {each.ticket: each.data for each in queue.completions(DEADLINE)} == wanted


def test_other_regions_than_before_are_refused() -> None:
    with begun(packed=False) as (first, frontend, _):
        end(first)
        with Tracked() as raw:
            raw.answers[Q.GET_SHMEM_CONFIG] = ShmemConfig({0: 1 << 21})
            with pytest.raises(RemoteProtocolError, match=r"GET_SHMEM_CONFIG mem_size .* is not what it was"):
                raw.take_over(frontend)


@pytest.mark.parametrize("at", [Q.GET_FEATURES, Q.SET_INFLIGHT_FD, Q.SET_MEM_TABLE, Q.SET_VRING_BASE, Q.SET_VRING_ENABLE])
def test_one_that_dies_meanwhile_is_followed_by_another(at: Q) -> None:
    with begun(packed=False) as (first, frontend, queue):
        wanted = submit(queue, 3)
        end(first)
        with Tracked() as raw, dying(raw, at), pytest.raises(Disconnected):
            raw.take_over(frontend)
        with Tracked() as raw:
            raw.take_over(frontend)
            answer_all(device_half(queue, False))
            assert {each.ticket: each.data for each in queue.completions(DEADLINE)} == wanted


@contextmanager
def dying(raw: RawBackend, at: Q) -> Iterator[None]:
    """The back-end dies when a request comes."""

    def die(frame: Frame[OwnedFd]) -> bytes:
        end(raw)
        return b""

    raw.raw_answers[at] = die
    yield


def test_close_from_another_thread_ends_a_reconnect() -> None:
    ended: list[Exception] = []
    with begun(packed=False) as (first, frontend, _), Tracked() as raw:
        asked = threading.Event()
        end(first)

        def keep_silent(frame: Frame[OwnedFd]) -> bytes:
            asked.set()
            return b""

        def reconnect() -> None:
            try:
                raw.take_over(frontend)
            except Disconnected as error:
                ended.append(error.with_traceback(None))

        raw.raw_answers[Q.GET_FEATURES] = keep_silent
        thread = threading.Thread(target=reconnect, daemon=True)
        thread.start()
        assert asked.wait(DEADLINE)
        frontend.close()
        thread.join(DEADLINE)
        assert len(ended) == 1
        with pytest.raises(LocalProtocolError, match="was closed"):
            frontend.reconnect("/nonexistent/socket")


class Reached:
    """A path that says when it is about to be connected to."""

    def __init__(self, path: Path) -> None:
        self.now, self._path = threading.Event(), str(path)

    def __fspath__(self) -> str:
        self.now.set()
        return self._path


@pytest.mark.parametrize("busy", [False, True], ids=["nobody", "busy"])
def test_close_from_another_thread_ends_the_wait_for_a_listener(busy: bool, tmp_path: Path) -> None:
    """Be it that nobody listens there, or that somebody does and has no room for a connection more."""
    ended: list[Exception] = []
    path = Reached(tmp_path / "socket")

    def reconnect() -> None:
        try:
            frontend.reconnect(path, wait=600)
        except Disconnected as error:
            ended.append(error.with_traceback(None))

    with begun(packed=False) as (first, frontend, _), ExitStack() as stack:
        stack.enter_context(mock.patch.object(listen, "CONNECT_TIMEOUT", 600))
        if busy:
            occupy(stack.enter_context(socket.socket(socket.AF_UNIX)), str(tmp_path / "socket"), stack)
        end(first)
        waiting, closing = (threading.Thread(target=each, daemon=True) for each in (reconnect, frontend.close))
        waiting.start()
        assert path.now.wait(DEADLINE)
        closing.start()
        closing.join(DEADLINE)
        assert not closing.is_alive()
        waiting.join(DEADLINE)
        assert [str(error) for error in ended] == ["closed"]


def occupy(listener: socket.socket, path: str, stack: ExitStack) -> None:
    """Listen on a path, with no room for a connection more."""
    listener.bind(path)
    listener.listen(0)
    with suppress(BlockingIOError):
        while True:
            sock = stack.enter_context(socket.socket(socket.AF_UNIX))
            sock.setblocking(False)
            sock.connect(path)


def test_nobody_at_the_path_leaves_all_as_it_was() -> None:
    with begun(packed=False) as (first, frontend, queue):
        wanted = submit(queue, 1)
        end(first)
        with pytest.raises(AddressError):
            frontend.reconnect("/nonexistent/socket")
        with Tracked() as raw:
            raw.take_over(frontend)
            answer_all(device_half(queue, False))
            assert {each.ticket: each.data for each in queue.completions(DEADLINE)} == wanted


def test_nonsense_that_the_old_one_left_is_named() -> None:
    with begun(packed=False) as (first, frontend, queue):
        used = queue.addresses.used
        queue._memory.view[used + 2 : used + 12] = struct.pack("<HII", 1, 5, 0)
        end(first)
        with Tracked() as raw, pytest.raises(QueueBroken, match="gave back chain 5"):
            raw.take_over(frontend)


@formats
@pytest.mark.parametrize("inflight", [False, True], ids=["untracked", "tracked"])
def test_nonsense_that_the_old_one_left_does_not_matter_to_a_ring_that_begins_anew(packed: bool, inflight: bool) -> None:
    with begun(packed, inflight=inflight) as (first, frontend, queue):
        wanted = submit(queue, 3)
        half = device_half(queue, packed)
        answer(half, [pop(half)])
        spoil(half)
        os.pwrite(first.area.fileno(), b"\1" * AREA, 0)
        end(first)
        for _ in range(2):
            with Tracked() as raw, pytest.raises(QueueBroken, match="gave back chain 6"):
                raw.take_over(frontend)
        with Tracked() as raw:
            raw.take_over(frontend, resubmit=True)
            assert base_of(raw) == (0x80008000 if packed else 0)
            assert os.pread(first.area.fileno(), AREA, 0) == bytes([not inflight]) * AREA
            assert answer_all(device_half(queue, packed)) == 2
            assert {each.ticket: each.data for each in drained(queue)} == wanted


def spoil(half: DeviceQueue) -> None:
    """Give back what it has not: number 6."""
    chain = pop(half)
    chain.head = 6
    half.push(chain)
    half.publish()


def drained(queue: Queue) -> list[Completion]:
    """All that is in flight, once it is done."""
    done: list[Completion] = []
    while queue.in_flight:
        done += queue.completions(DEADLINE)
    return done


# Stopped with requests in progress


@pytest.mark.parametrize(("packed", "base"), [(False, 0x10000), (False, 0x12345678), (True, 0x80088000), (True, 0x80008008)])
@pytest.mark.parametrize("inflight", [False, True], ids=["untracked", "tracked"])
def test_a_base_that_is_none_is_refused_and_the_queue_may_be_started_again(packed: bool, base: int, inflight: bool) -> None:
    with begun(packed, inflight=inflight) as (raw, frontend, queue):
        half = device_half(queue, packed)
        ticket = queue.submit([b"abc"], [3])
        answer(half, [pop(half)])
        raw.answers[Q.GET_VRING_BASE] = VringState(0, base)
        with pytest.raises(RemoteProtocolError, match=f"GET_VRING_BASE num {base:#x} is no base of queue 0 of {SIZE}"):
            frontend.stop_queue(0)
        again = frontend.start_queue(0, size=SIZE)
        assert (again is queue) is inflight
        told = VringState.unpack(raw.all(Q.SET_VRING_BASE)[-1]).num
        if inflight:
            assert told == (0x80028002 if packed else 1)
            assert queue.finish(ticket, timeout=DEADLINE).data == b"abc"
        else:
            assert told == (0x80008000 if packed else 0)


@formats
def test_a_queue_that_is_stopped_with_requests_in_progress_goes_on(packed: bool) -> None:
    with begun(packed) as (raw, frontend, queue):
        wanted = submit(queue, 3)
        half = device_half(queue, packed)
        chains = [pop(half) for _ in range(3)]
        answer(half, [chains[1]])
        raw.answers[Q.GET_VRING_BASE] = VringState(0, half.base)
        assert frontend.stop_queue(0) == half.base
        with pytest.raises(LocalProtocolError, match="size 4 is not 8, with which it was suspended; another needs a reset"):
            frontend.start_queue(0, size=4)
        assert frontend.start_queue(0, size=SIZE) is queue
        assert os.eventfd_read(queue.kick.fileno()) == 1
        assert [VringState.unpack(each).num for each in raw.all(Q.SET_VRING_BASE)][-1] == half.base
        answer(half, [chains[2], chains[0]])
        assert {ticket: queue.finish(ticket, timeout=DEADLINE).data for ticket in wanted} == wanted
        frontend.stop_queue(0)
        assert frontend.start_queue(0, size=SIZE) is queue
        frontend.reset()
        with pytest.raises(LocalProtocolError, match="queue 0 is stopped"):
            queue.submit([b"x"])
        assert frontend.start_queue(0, size=4) is not queue


def test_a_suspended_queue_is_started_with_the_next_back_end() -> None:
    with begun(packed=False) as (first, frontend, queue):
        wanted = submit(queue, 3)
        half = device_half(queue, False)
        answer(half, [pop(half)])
        pop(half)
        first.answers[Q.GET_VRING_BASE] = VringState(0, half.base)
        frontend.stop_queue(0)
        end(first)
        with Tracked() as raw:
            raw.take_over(frontend)
            assert raw.all(Q.SET_VRING_BASE) == []
            assert frontend.start_queue(0, size=SIZE) is queue
            assert base_of(raw) == 1
            answer_all(device_half(queue, False, 1))
            assert {ticket: queue.finish(ticket, timeout=DEADLINE).data for ticket in wanted} == wanted
