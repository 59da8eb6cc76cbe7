"""A front-end of coroutines, against back-ends in threads."""

from __future__ import annotations

import asyncio
import socket
import tempfile
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tests.process.test_kept import Keeper
from tests.process.test_undrained import Spoiler
from vhostuser import (
    AddressError,
    DeadlineExpired,
    DescriptorChain,
    Device,
    Disconnected,
    Frontend,
    LocalProtocolError,
    QueueBroken,
    RequestFailed,
)
from vhostuser.aio import AsyncFrontend, AsyncQueue
from vhostuser.aio.worker import NAME, Worker
from vhostuser.testing import DEADLINE, Served, leaving_nothing, sparse_file

from .loops import run, until

PAGE = 4096
MANY = 40


class Echo(Device):
    """Gives back what came, maps a page if asked, and fails if asked."""

    queue_sizes = (64, 64)
    shared_memory = {0: 1 << 20}  # noqa: RUF012  # as users write it
    config = b"configuration"

    def process(self, queue: int, chain: DescriptorChain) -> None:
        if (request := chain.read()) == b"map":
            with sparse_file(PAGE) as file:
                self.shm[0].map(file, shm_offset=0, len=PAGE)
        chain.write(request)


class ManyQueues(Device):
    """Gives back what came, in more queues than a front-end watches in compiled code."""

    queue_sizes = (16,) * MANY

    def process(self, queue: int, chain: DescriptorChain) -> None:
        chain.write(chain.read())


@asynccontextmanager
async def driving(device: Device, *, packed: bool = False) -> AsyncIterator[tuple[AsyncFrontend, Served]]:
    served = Served(device)
    try:
        async with await AsyncFrontend.over(served.connected(), packed=packed) as frontend:
            await frontend.share_memory(4 << 20)
            yield frontend, served
    finally:
        await asyncio.to_thread(served.stop)


@pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
def test_more_requests_than_the_ring_has_room_for_are_all_answered(packed: bool) -> None:
    async def work() -> None:
        async with driving(Echo(), packed=packed) as (frontend, _):
            queues = [await frontend.start_queue(index, size=8) for index in (0, 1)]
            requests = [b"request %d" % number for number in range(500)]
            answers = await asyncio.gather(*(queues[at % 2].exchange(each, 32) for at, each in enumerate(requests)))
            assert answers == requests

    run(work())


def test_more_queues_than_the_plain_way_watches_are_all_served() -> None:
    async def work() -> None:
        async with driving(ManyQueues()) as (frontend, _):
            queues = [await frontend.start_queue(index, size=16) for index in range(MANY)]
            requests = [b"request %d" % number for number in range(3 * MANY)]
            answers = await asyncio.gather(*(queues[at % MANY].exchange(each, 32) for at, each in enumerate(requests)))
            assert answers == requests

    run(work())


def test_answers_come_in_the_device_s_order_each_to_its_request() -> None:
    async def work() -> None:
        device = Keeper()
        async with driving(device) as (frontend, _):
            queue = await frontend.start_queue(0, size=16)
            tasks = [asyncio.create_task(queue.exchange(b"%d" % number, 8)) for number in range(8)]
            await until(lambda: len(device.kept) == 8, "all are kept at a time")
            ended: list[bytes] = []
            for task in tasks:
                task.add_done_callback(lambda task: ended.append(task.result()))
            for which in (7, 0, 3):
                device.finish(which)
            await until(lambda: len(ended) == 3, "three come back")
            assert ended == [b"7", b"0", b"4"]
            while device.kept:
                device.finish(0)
            assert await asyncio.gather(*tasks) == [b"%d" % number for number in range(8)]

    run(work())


def test_submit_gives_a_ticket_and_finish_its_answer() -> None:
    async def work() -> None:
        async with driving(Echo()) as (frontend, _):
            queue = await frontend.start_queue(0, size=16)
            tickets = [await queue.submit([b"abc", b"def"], [4, 4]) for _ in range(3)]
            assert queue.in_flight == 3
            for ticket in reversed(tickets):
                assert (await queue.finish(ticket)).buffers == (b"abcd", b"ef\0\0")
            with pytest.raises(LocalProtocolError, match="no request 1 in flight"):
                await queue.finish(tickets[0])
            assert queue.in_flight == 0

    run(work())


def test_a_mapping_is_answered_while_nothing_waits_and_even_while_the_loop_is_blocked() -> None:
    async def work() -> None:
        device = Echo()
        async with driving(device) as (frontend, _):
            queue = await frontend.start_queue(0, size=16)
            assert await queue.exchange(b"map", 8) == b"map"
            mapped = threading.Event()

            def map_more() -> None:
                with sparse_file(PAGE) as file:
                    device.shm[0].map(file, shm_offset=PAGE, len=PAGE)
                mapped.set()

            thread = threading.Thread(target=map_more)
            thread.start()
            assert mapped.wait(DEADLINE), "this blocks the loop on purpose"
            thread.join()
            assert [each.shm_offset for each in frontend.shm[0].mappings] == [0, PAGE]
            await frontend.reset()
            assert not frontend.shm[0].mappings
            with pytest.raises(LocalProtocolError, match="queue 0 is stopped"):
                await queue.exchange(b"too late", 8)
            again = await frontend.start_queue(0, size=16)
            assert await again.exchange(b"fresh", 8) == b"fresh"
            assert frontend.counters.maps == 2

    run(work())


@pytest.mark.parametrize("how", ["cancelled", "late"])
def test_a_request_that_is_given_up_costs_nothing_but_itself(how: str) -> None:
    """Its buffers are free once the device has given it back, and its answer is nobody else's."""

    async def work() -> None:
        device = Keeper()
        async with driving(device) as (frontend, _):
            queue = await frontend.start_queue(0, size=4)
            given_up = [asyncio.create_task(queue.exchange(b"%d" % number, 8, timeout=0.05)) for number in range(2)]
            await until(lambda: len(device.kept) == 2, "both are kept")
            error: type[BaseException] = DeadlineExpired
            if how == "cancelled":
                error = asyncio.CancelledError
                for task in given_up:
                    task.cancel()
            for task in given_up:
                with pytest.raises(error):
                    await task
            waiting = asyncio.create_task(queue.exchange(b"now", 8))
            never = asyncio.create_task(queue.exchange(b"never", 8))
            await frontend.run(lambda core: None)
            never.cancel()
            with pytest.raises(asyncio.CancelledError):
                await never
            assert not waiting.done(), "there is no room"
            device.finish(1)
            device.finish(0)
            assert await waiting == b"done"
            assert [await queue.exchange(b"now", 8) for _ in range(10)] == [b"done"] * 10
            assert not device.kept, "what was cancelled before there was room never came"

    run(work())


def test_stopping_a_queue_ends_what_waits_for_it() -> None:
    async def work() -> None:
        device = Keeper()
        async with driving(device) as (frontend, _):
            queue, other = await frontend.start_queue(0, size=4), await frontend.start_queue(1, size=4)
            tasks = [asyncio.create_task(queue.exchange(b"%d" % number, 8)) for number in range(4)]
            await until(lambda: len(device.kept) == 2, "as many are kept as there is room for")
            assert await frontend.stop_queue(0) == 2
            for task in tasks:
                with pytest.raises(LocalProtocolError, match="queue 0 is stopped"):
                    await task
            assert await other.exchange(b"now", 8) == b"done"

    run(work())


def test_a_queue_that_is_started_again_ends_what_was_in_flight_in_it() -> None:
    async def work() -> None:
        device = Keeper()
        async with driving(device) as (frontend, _):
            queue = await frontend.start_queue(0, size=4)
            task = asyncio.create_task(queue.exchange(b"kept", 8))
            await until(lambda: device.kept, "it is kept")
            await frontend.run(lambda core: core.stop_queue(0))
            await frontend.run(lambda core: core.serve(0.01))
            again = await frontend.start_queue(0, size=4)
            with pytest.raises(LocalProtocolError, match="queue 0 is stopped"):
                await task
            assert await again.exchange(b"now", 8) == b"done"

    run(work())


def test_a_request_that_can_never_be_placed_says_why() -> None:
    async def work() -> None:
        async with driving(Echo()) as (frontend, _):
            queue = await frontend.start_queue(0, size=4)
            with pytest.raises(BufferError):
                await queue.submit([b"x"] * 5)
            with pytest.raises(MemoryError):
                await queue.exchange(b"", 8 << 20)
            with pytest.raises(TypeError):
                await queue.submit(["no bytes"])  # type: ignore[list-item]
            with pytest.raises(ValueError, match="-1 bytes"):
                await queue.submit([], [-1])
            assert await queue.exchange(b"fits", 8) == b"fits"

    run(work())


def test_the_end_of_the_back_end_ends_everything_with_it() -> None:
    async def work() -> None:
        device = Keeper()
        async with driving(device) as (frontend, served):
            queue = await frontend.start_queue(0, size=4)
            task = asyncio.create_task(queue.exchange(b"kept", 8))
            await until(lambda: device.kept, "it is kept")
            served.backend.stop()
            with pytest.raises(Disconnected):
                await task
            with pytest.raises(Disconnected):
                await queue.exchange(b"now", 8)
            with pytest.raises(Disconnected):
                await frontend.start_queue(1)

    run(work())


# Another back-end


@asynccontextmanager
async def followed(second: Device, *, noticed: bool = True) -> AsyncIterator[tuple[AsyncFrontend, AsyncQueue]]:
    """A front-end that has gone on with a second back-end, and a queue of the first: that died before, or only then."""
    later = Served(second)
    try:
        async with driving(device := Keeper()) as (frontend, served):
            queue = await frontend.start_queue(0, size=4)
            assert await queue.exchange(b"now", 8) == b"done"
            if noticed:
                lost = asyncio.create_task(queue.exchange(b"kept", 8))
                await until(lambda: device.kept, "it is kept")
                await asyncio.to_thread(served.stop)
                with pytest.raises(Disconnected):
                    await lost

            def reconnect(core: Frontend) -> None:
                served.backend.stop()
                core.reconnect(later.connected(), wait=DEADLINE)

            await frontend.run(reconnect)
            yield frontend, queue
    finally:
        await asyncio.to_thread(later.stop)


@pytest.mark.parametrize("noticed", [True, False], ids=["gone before", "gone meanwhile"])
def test_after_a_reconnect_queues_are_started_again_and_the_back_end_is_answered(noticed: bool) -> None:
    async def work() -> None:
        async with followed(device := Recorder(), noticed=noticed) as (frontend, old):
            with pytest.raises(Disconnected):
                await old.exchange(b"too late", 8)
            queues = [await frontend.start_queue(index, size=16) for index in (0, 1)]
            requests = [b"%d" % number for number in range(50)]
            assert await asyncio.gather(*(queues[at % 2].exchange(each, 8) for at, each in enumerate(requests))) == requests
            with pytest.raises(Disconnected):
                await old.exchange(b"too late", 8)
            assert await frontend.stop_queue(0) == 25
            queue = await frontend.start_queue(0, size=8)
            assert await queue.exchange(b"again", 8) == b"again"
            assert sorted(device.seen) == sorted([*requests, b"again"]), "what the first back-end had is not done again"

    class Recorder(Device):
        queue_sizes = (64, 64)

        def __init__(self) -> None:
            self.seen: list[bytes] = []

        def process(self, queue: int, chain: DescriptorChain) -> None:
            self.seen.append(request := chain.read())
            chain.write(request)

    run(work())


def test_after_a_reconnect_mappings_are_answered_while_nothing_waits() -> None:
    async def work() -> None:
        first, later = Served(Echo()), Served(device := Echo())
        async with await AsyncFrontend.over(first.connected()) as frontend:
            await frontend.share_memory(1 << 20)
            await frontend.start_queue(0, size=16)
            await asyncio.to_thread(first.stop)
            await frontend.run(lambda core: core.reconnect(later.connected(), wait=DEADLINE))
            queue = await frontend.start_queue(0, size=16)
            assert await queue.exchange(b"map", 8) == b"map"
            with sparse_file(PAGE) as file:
                await asyncio.to_thread(device.shm[0].map, file, shm_offset=PAGE, len=PAGE)
            assert [each.shm_offset for each in frontend.shm[0].mappings] == [0, PAGE]
        await asyncio.to_thread(later.stop)

    with leaving_nothing():
        run(work())


@pytest.mark.parametrize("how", ["stopped", "stopped in the core", "reset"])
def test_a_queue_of_before_a_reconnect_may_be_stopped_first(how: str) -> None:
    async def work() -> None:
        async with followed(Keeper()) as (frontend, _):
            if how == "stopped":
                await frontend.stop_queue(0)
            elif how == "reset":
                await frontend.reset()
            else:
                await frontend.run(lambda core: core.stop_queue(0))
            queue = await frontend.start_queue(0, size=8)
            assert await queue.exchange(b"now", 8) == b"done"

    run(work())


def test_a_reconnect_that_fails_may_be_tried_again() -> None:
    async def work() -> None:
        first, later = Served(Echo()), Served(Echo())
        async with await AsyncFrontend.over(first.connected()) as frontend:
            await frontend.share_memory(1 << 20)
            queue = await frontend.start_queue(0, size=16)
            await asyncio.to_thread(first.stop)
            ours, theirs = socket.socketpair()
            theirs.close()
            with pytest.raises(Disconnected):
                await frontend.run(lambda core: core.reconnect(ours, wait=DEADLINE))
            with pytest.raises(Disconnected):
                await queue.exchange(b"x", 8)
            with pytest.raises(Disconnected):
                await frontend.start_queue(0, size=16)
            await frontend.run(lambda core: core.reconnect(later.connected(), wait=DEADLINE))
            queue = await frontend.start_queue(0, size=16)
            assert await queue.exchange(b"at last", 8) == b"at last"
        await asyncio.to_thread(later.stop)

    run(work())


def test_close_ends_a_request_of_a_back_end_that_came_later() -> None:
    async def work() -> None:
        async with followed(device := Slow()) as (frontend, _):
            task = asyncio.create_task(frontend.reset())
            await asyncio.to_thread(device.entered.wait, DEADLINE)
            async with asyncio.timeout(DEADLINE / 2):
                await frontend.close()
            assert not device.goes_on.is_set()
            with pytest.raises(Disconnected):
                await task
            device.goes_on.set()

    run(work())


def test_close_ends_the_wait_for_another_back_end() -> None:
    async def work(path: str) -> None:
        async with driving(Echo()) as (frontend, served):
            await asyncio.to_thread(served.stop)
            begun = threading.Event()

            def reconnect(core: Frontend) -> None:
                begun.set()
                core.reconnect(path, wait=2 * DEADLINE)

            task = asyncio.create_task(frontend.run(reconnect))
            await asyncio.to_thread(begun.wait, DEADLINE)
            async with asyncio.timeout(DEADLINE / 2):
                await frontend.close()
            with pytest.raises((Disconnected, LocalProtocolError)):
                await task

    with tempfile.TemporaryDirectory(prefix="vhu-") as folder:
        run(work(f"{folder}/s"))


def test_a_queue_that_the_back_end_declares_broken_is_over_and_no_other() -> None:
    async def work() -> None:
        async with driving(Spoiler()) as (frontend, _):
            queue = await frontend.start_queue(0, size=4)
            with pytest.raises(QueueBroken):
                await queue.exchange(b"now", 8)
            with pytest.raises(QueueBroken):
                await queue.exchange(b"now", 8)
            await frontend.stop_queue(0)
            await frontend.start_queue(0, size=4)

    run(work())


def test_what_has_no_coroutine_is_called_in_the_thread() -> None:
    async def work() -> None:
        async with driving(Echo()) as (frontend, _):
            assert await frontend.run(lambda core: core.config(0, 6)) == b"config"
            with pytest.raises(RequestFailed):
                await frontend.run(lambda core: core.config(100, 6))
            assert frontend.queue_count == 2
            assert "VERSION_1" in frontend.features
            assert "SHMEM" in frontend.protocol_features

    run(work())


def test_many_front_ends_live_in_one_loop() -> None:
    async def one(number: int) -> bytes:
        async with driving(Echo()) as (frontend, _):
            queue = await frontend.start_queue(0, size=8)
            return b"".join(await asyncio.gather(*(queue.exchange(b"%d" % number, 8) for _ in range(20))))

    async def work() -> None:
        assert await asyncio.gather(*map(one, range(10))) == [b"%d" % number * 20 for number in range(10)]

    run(work())


# Beginnings and ends


def test_nobody_there_is_an_address_error() -> None:
    async def work(path: str) -> None:
        with pytest.raises(AddressError):
            await AsyncFrontend.connect(path)

    with tempfile.TemporaryDirectory(prefix="vhu-") as folder:
        run(work(f"{folder}/s"))


@pytest.mark.parametrize("when", ["before", "handshake", "after"])
def test_a_connection_that_is_cancelled_leaves_nothing(when: str) -> None:
    async def work() -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            task = asyncio.create_task(AsyncFrontend.over(ours))
            if when != "before":
                await asyncio.sleep(0)
                await asyncio.to_thread(theirs.recv, 1)
            if when == "after":
                theirs.close()
                with pytest.raises(Disconnected):
                    await task
                return
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            if when == "before":
                ours.close()
            else:
                theirs.settimeout(DEADLINE)
                while await asyncio.to_thread(theirs.recv, 100):
                    pass

    with leaving_nothing():
        run(work())


def test_who_is_cancelled_while_nobody_listens_takes_no_back_end_that_comes_later() -> None:
    async def work(path: str) -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await AsyncFrontend.connect(path, wait=2 * DEADLINE)
        await until(lambda: not any(thread.name == NAME for thread in threading.enumerate()), "nobody connects any more")
        served = Served(Echo())
        await asyncio.to_thread(served.at, path, once=True)
        async with await AsyncFrontend.connect(path) as frontend:
            assert frontend.queue_count == 2
        await asyncio.to_thread(served.join)

    with tempfile.TemporaryDirectory(prefix="vhu-") as folder, leaving_nothing():
        run(work(f"{folder}/s"))


class Slow(Device):
    """Takes its time for a reset."""

    queue_sizes = (16, 16)

    def __init__(self) -> None:
        self.entered, self.goes_on = threading.Event(), threading.Event()

    def reset(self) -> None:
        self.entered.set()
        self.goes_on.wait(DEADLINE)


def test_a_thread_that_is_ended_before_it_connects_closes_its_socket() -> None:
    for _ in range(20):
        ours, theirs = socket.socketpair()
        with theirs:
            worker = Worker(ours)
            worker.stop()
            worker.join()
            assert ours.fileno() == -1


def test_close_ends_a_request_that_is_not_answered() -> None:
    async def work() -> None:
        device = Slow()
        async with driving(device) as (frontend, _):
            task = asyncio.create_task(frontend.reset())
            await asyncio.to_thread(device.entered.wait, DEADLINE)
            await frontend.close()
            assert not device.goes_on.is_set()
            with pytest.raises(Disconnected):
                await task
            with pytest.raises(Disconnected):
                await frontend.start_queue(0)
            await frontend.close()
            device.goes_on.set()

    run(work())


def test_a_method_that_is_cancelled_in_its_turn_is_done_all_the_same() -> None:
    async def work() -> None:
        served, entered, goes_on = Served(Echo()), threading.Event(), threading.Event()
        async with await AsyncFrontend.over(served.connected()) as frontend:

            def first(core: object) -> None:
                entered.set()
                goes_on.wait(DEADLINE)

            busy = asyncio.create_task(frontend.run(first))
            await asyncio.to_thread(entered.wait, DEADLINE)
            second = asyncio.create_task(frontend.share_memory(1 << 20))
            third = asyncio.create_task(frontend.share_memory(1 << 20))
            await asyncio.sleep(0)
            for task in (busy, third):
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
            goes_on.set()
            await second
            with pytest.raises(LocalProtocolError, match="memory is shared already"):
                await frontend.share_memory(1 << 20)
        await asyncio.to_thread(served.stop)

    run(work())
