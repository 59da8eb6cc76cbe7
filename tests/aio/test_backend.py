"""A back-end whose requests are coroutines."""

from __future__ import annotations

import asyncio
import os
import socket
import tempfile
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from uuid import UUID

import pytest

from tests.process.test_undrained import Rig
from vhostuser import DescriptorChain, Device, Disconnected, Frontend, LocalProtocolError, MapRequest, RequestFailed
from vhostuser.aio import AsyncBackend, AsyncDevice, AsyncFrontend
from vhostuser.aio.device import MEANINGLESS, Bridge
from vhostuser.aio.mapper import Mapper
from vhostuser.protocol.numbers import FrontendRequest
from vhostuser.protocol.payloads import Config, VringState
from vhostuser.rings import Rings
from vhostuser.testing import DEADLINE, RawFrontend, is_listened_on, leaving_nothing, sparse_file, wait_until

from .loops import both, run, serving, until

Q = FrontendRequest
PAGE = 4096
Work = Callable[["Scripted", bytes], Awaitable[bytes]]


async def echo(device: Scripted, request: bytes) -> bytes:
    return request


class Scripted(AsyncDevice):
    """Does with each request what the test says; knows what is at work, and how it ended."""

    queue_sizes = (64, 64)
    shared_memory = {0: 1 << 20}  # noqa: RUF012  # as users write it
    config = b"configuration"

    def __init__(self, work: Work = echo) -> None:
        self.work, self.goes_on = work, asyncio.Event()
        self.at_work = self.cancelled = self.resets = self.writes = 0
        self.seen: list[bytes] = []

    async def process(self, queue: int, chain: DescriptorChain) -> None:
        request = chain.read()
        self.seen.append(request)
        self.at_work += 1
        try:
            chain.write(await self.work(self, request))
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.at_work -= 1

    async def driver_ready(self) -> None:
        self.seen.append(b"ready")

    def reset(self) -> None:
        self.resets += 1

    def write_config(self, offset: int, data: bytes) -> None:
        self.writes += 1


async def wait(device: Scripted, request: bytes) -> bytes:
    """Answer once the test lets it; `now` at once."""
    if not request.startswith(b"now"):
        await device.goes_on.wait()
    return b"ok"


@pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
def test_many_requests_are_at_work_at_a_time(packed: bool) -> None:
    async def work() -> None:
        device = Scripted(wait)
        async with both(device, packed=packed) as frontend:
            queues = [await frontend.start_queue(index, size=64) for index in (0, 1)]
            tasks = [asyncio.create_task(queue.exchange(b"x", 8)) for queue in queues for _ in range(30)]
            await until(lambda: device.at_work == 60, "all are at work")
            assert await queues[0].exchange(b"now", 8) == b"ok"
            device.goes_on.set()
            assert await asyncio.gather(*tasks) == [b"ok"] * 60
            assert device.seen[0] == b"ready"

    run(work())


@pytest.mark.parametrize("in_order", [False, True])
def test_requests_come_back_as_they_are_done_unless_the_device_says_that_they_may_be_had_in_order(in_order: bool) -> None:
    """A device whose requests wait for each other would wait for ever else."""

    async def released(device: Scripted, request: bytes) -> bytes:
        if request == b"wait":
            await device.goes_on.wait()
        elif request == b"release":
            device.goes_on.set()
        return b"ok"

    async def work() -> None:
        device = Scripted(released)
        if in_order:
            device.in_order = True
        async with serving(device) as (sock, _), await AsyncFrontend.over(sock, in_order=True) as frontend:
            assert ("IN_ORDER" in frontend.features) == in_order
            await frontend.share_memory(1 << 20)
            queue = await frontend.start_queue(0, size=16)
            waiting = asyncio.create_task(queue.exchange(b"wait", 8))
            await until(lambda: device.at_work, "it waits")
            behind = asyncio.create_task(queue.exchange(b"behind", 8))
            await until(lambda: b"behind" in device.seen and device.at_work == 1, "what came behind it is done")
            if in_order:
                assert not behind.done()
            else:
                assert await behind == b"ok"
            for answer in (queue.exchange(b"release", 8), waiting, behind):
                assert await answer == b"ok"

    run(work())


def test_what_a_device_of_coroutines_says_in_vain_is_told(caplog: pytest.LogCaptureFixture) -> None:
    class Choosy(Scripted):
        spin = 0.0

        def takes(self, queue: int) -> bool:
            return False

    AsyncBackend(Scripted())
    assert not caplog.text
    AsyncBackend(Choosy())
    assert "Choosy.spin means nothing in an AsyncDevice" in caplog.text
    assert "Choosy.takes means nothing in an AsyncDevice" in caplog.text


def test_what_a_device_has_is_taken_over_or_said_to_mean_nothing() -> None:
    """Whoever adds to `Device` decides which of the two it is."""
    every = {name for name in vars(Device) if not name.startswith("_")}
    ways_back = {"complete", "resume", "queues", "object_fd"}
    assert every == {name for name in vars(AsyncDevice) if not name.startswith("_")} | set(MEANINGLESS) | ways_back


def test_an_exception_fails_its_request_alone(caplog: pytest.LogCaptureFixture) -> None:
    async def choosy(device: Scripted, request: bytes) -> bytes:
        await asyncio.sleep(0)
        if request == b"fail":
            raise ZeroDivisionError("on purpose")
        if request == b"refuse":
            raise RequestFailed("it", 1, "an honest no")
        if request == b"cancel":
            raise asyncio.CancelledError
        return request

    async def work() -> None:
        async with both(Scripted(choosy)) as frontend:
            queue = await frontend.start_queue(0, size=64)
            requests = [b"fine", b"fail", b"refuse", b"cancel"] * 5
            answers = await asyncio.gather(*(queue.exchange(each, 8) for each in requests))
            assert answers == [b"fine", b"", b"", b""] * 5

    run(work())
    assert "Scripted.process failed for a request of queue 0" in caplog.text
    assert "a request of queue 0 failed: an honest no" in caplog.text


def test_a_device_without_process_says_so(caplog: pytest.LogCaptureFixture) -> None:
    class Empty(AsyncDevice):
        queue_sizes = (16,)
        config = b"read-only"

    async def work() -> None:
        async with both(Empty()) as frontend:
            queue = await frontend.start_queue(0, size=16)
            assert await queue.exchange(b"x", 8) == b""
            with pytest.raises(RequestFailed):
                await frontend.run(lambda core: core.request(Q.SET_CONFIG, Config(0, 1, 0, b"x")))

    run(work())
    assert "Empty has no process() for the requests of queue 0" in caplog.text


# Shared memory


async def mapped(device: Scripted, request: bytes) -> bytes:
    """Map, or unmap, pages of a file that begins with the request."""
    region = device.shm[0]
    if request == b"undo":
        await region.unmap(shm_offset=0, len=PAGE)
        done = await region.unmap_many([(PAGE, PAGE), (2 * PAGE, PAGE)])
    else:
        with sparse_file(PAGE) as file:
            os.pwrite(file.fileno(), request, 0)
            await region.map(file, shm_offset=0, len=PAGE)
            done = await region.map_many([MapRequest(file, each * PAGE, PAGE) for each in (1, 2)])
    return b"%d" % done.count(None)


def test_regions_are_mapped_without_blocking_the_loop() -> None:
    async def work() -> None:
        device = Scripted(mapped)
        async with both(device) as frontend:
            assert device.shm[0].size == 1 << 20
            queue = await frontend.start_queue(0, size=16)
            assert await queue.exchange(b"words", 8) == b"2"
            assert [frontend.shm[0].read(each * PAGE, 5) for each in range(3)] == [b"words"] * 3
            assert [each.shm_offset for each in device.shm[0].mappings] == [0, PAGE, 2 * PAGE]
            assert await queue.exchange(b"undo", 8) == b"2"
            assert not frontend.shm[0].mappings
            with pytest.raises(LocalProtocolError, match="SHMEM_UNMAP shm_offset 0x0"):
                await device.shm[0].unmap(shm_offset=0, len=PAGE)
            with pytest.raises(OSError, match="Bad file descriptor"):
                await device.shm[0].map(12345, shm_offset=0, len=PAGE)

    run(work())


def test_many_requests_map_at_a_time() -> None:
    async def one(device: Scripted, request: bytes) -> bytes:
        offset = int(request) * PAGE
        with sparse_file(PAGE) as file:
            os.pwrite(file.fileno(), request, 0)
            await device.shm[0].map(file, shm_offset=offset, len=PAGE)
        if int(request) % 2:
            await device.shm[0].unmap(shm_offset=offset, len=PAGE)
        return request

    async def work() -> None:
        async with both(Scripted(one)) as frontend:
            queues = [await frontend.start_queue(index, size=64) for index in (0, 1)]
            requests = [b"%d" % number for number in range(200)]
            await asyncio.gather(*(queues[at % 2].exchange(each, 8) for at, each in enumerate(requests)))
            region = frontend.shm[0]
            assert [each.shm_offset for each in region.mappings] == [number * PAGE for number in range(0, 200, 2)]
            assert all(region.read(number * PAGE, 4).rstrip(b"\0") == b"%d" % number for number in range(0, 200, 2))

    run(work())


@pytest.mark.parametrize("how", ["answered", "cancelled", "gone"])
def test_a_front_end_that_does_not_answer_holds_up_nobody_but_who_maps(how: str) -> None:
    """Its answer comes once it waits; a blocking front-end of this test does not for a while."""

    async def work() -> None:
        device = Scripted()
        async with serving(device) as (sock, _):
            frontend = await asyncio.to_thread(Frontend, sock)
            frontend.share_memory(1 << 20)
            queue = await asyncio.to_thread(frontend.start_queue, 0, size=16)
            assert await asyncio.to_thread(queue.exchange, b"ping", 4) == b"ping"
            with sparse_file(PAGE) as file:
                maps = [asyncio.create_task(device.shm[0].map(file, shm_offset=at * PAGE, len=PAGE)) for at in range(3)]
                await asyncio.sleep(0)
            if how == "gone":
                await asyncio.to_thread(frontend.close)
                for task in maps:
                    with pytest.raises((Disconnected, LocalProtocolError)):
                        await task
                return
            if how == "cancelled":
                maps[2].cancel()
                with pytest.raises(asyncio.CancelledError):
                    await maps[2]
            assert not maps[0].done()
            await asyncio.to_thread(lambda: wait_until(lambda: _served(frontend) >= 2, "the front-end is asked"))
            await asyncio.gather(*maps[: 2 if how == "cancelled" else 3])
            assert len(device.shm[0].mappings) == (2 if how == "cancelled" else 3)
            await asyncio.to_thread(frontend.close)

    with leaving_nothing():
        run(work())


def _served(frontend: Frontend) -> int:
    frontend.serve(0.1)
    return frontend.counters.maps


def test_without_a_front_end_nothing_is_mapped_and_no_file_kept() -> None:
    async def work() -> None:
        device = Scripted()
        AsyncBackend(device)
        with sparse_file(PAGE) as file:
            with pytest.raises(Disconnected, match="no front-end is connected"):
                await device.shm[0].map(file, shm_offset=0, len=PAGE)
            with pytest.raises(Disconnected, match="no front-end is connected"):
                await device.shm[0].map_many([MapRequest(file, 0, PAGE)])
            with pytest.raises(OSError, match="Bad file descriptor"):
                await device.shm[0].map_many([MapRequest(file, 0, PAGE), MapRequest(12345, 0, PAGE)])

    with leaving_nothing():
        run(work())


def test_what_waits_for_its_turn_when_the_end_comes_is_told_the_reason() -> None:
    """It is not cancelled: who awaits it was not."""

    async def work() -> None:
        mapper, goes_on = Mapper(), threading.Event()
        mapper.start()
        tasks = [asyncio.create_task(mapper.run(work)) for work in (lambda: goes_on.wait(DEADLINE), lambda: False)]
        await asyncio.sleep(0)
        mapper.stop()
        goes_on.set()
        assert await asyncio.gather(*tasks) == [True, False]

    run(work())


def test_a_device_maps_before_its_first_request() -> None:
    class Ready(Scripted):
        async def driver_ready(self) -> None:
            with sparse_file(PAGE) as file:
                await self.shm[0].map(file, shm_offset=0, len=PAGE)
            self.seen.append(b"ready")

    async def work() -> None:
        device = Ready()
        async with both(device) as frontend:
            for _ in range(2):
                queue = await frontend.start_queue(0, size=16)
                assert await queue.exchange(b"first", 8) == b"first"
                assert len(frontend.shm[0].mappings) == 1
                await frontend.reset()
        assert device.seen == [b"ready", b"first"] * 2

    run(work())


def test_a_reset_ends_the_wait_for_a_device_that_is_not_ready() -> None:
    class Never(Scripted):
        async def driver_ready(self) -> None:
            if not self.resets:
                await asyncio.Event().wait()

    async def work() -> None:
        device = Never()
        device.drain_timeout = 0.05
        async with both(device) as frontend:
            await frontend.start_queue(0, size=16)
            await frontend.reset()
            queue = await frontend.start_queue(0, size=16)
            assert await queue.exchange(b"ready now", 16) == b"ready now"

    run(work())


def test_a_device_that_fails_to_start_is_served_all_the_same(caplog: pytest.LogCaptureFixture) -> None:
    class Late(Scripted):
        async def driver_ready(self) -> None:
            raise ZeroDivisionError("on purpose")

    async def work() -> None:
        async with both(Late()) as frontend:
            queue = await frontend.start_queue(0, size=16)
            assert await queue.exchange(b"even so", 8) == b"even so"

    run(work())
    assert "the start of the device failed" in caplog.text


def test_a_start_that_is_no_coroutine_is_told_and_holds_up_nothing(caplog: pytest.LogCaptureFixture) -> None:
    class Plain(Scripted):
        def driver_ready(self) -> None:  # type: ignore[override]
            self.seen.append(b"plain")

    async def work() -> None:
        async with both(device := Plain()) as frontend:
            queue = await frontend.start_queue(0, size=16)
            assert await queue.exchange(b"even so", 8) == b"even so"
            assert device.seen == [b"plain", b"even so"]

    run(work())
    assert "the start of the device failed" in caplog.text
    assert "a coroutine was expected" in caplog.text


@pytest.mark.parametrize("lost", [False, True], ids=["late", "lost"])
def test_the_end_frees_what_waits_for_a_device_to_be_ready(lost: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop turns to the start only behind the end, or never if it is closed then."""

    async def work() -> None:
        loop, posted = asyncio.get_running_loop(), threading.Event()
        bridge = Bridge(device := Scripted())
        bridge.attach(loop)
        post = loop.call_soon_threadsafe

        def call(callback: Callable[..., object], *arguments: object) -> None:
            if not lost:
                post(callback, *arguments)
            posted.set()

        with monkeypatch.context() as patch:
            patch.setattr(loop, "call_soon_threadsafe", call)
            thread = threading.Thread(target=bridge.driver_ready, daemon=True)
            thread.start()
            assert posted.wait(DEADLINE), "this blocks the loop on purpose"
        await bridge.detach()
        thread.join(DEADLINE)
        assert not thread.is_alive()
        await asyncio.sleep(0.01)
        assert not device.seen, "nothing of the device runs any more"

    run(work())


def test_no_request_begins_behind_the_end() -> None:
    class Counting(AsyncDevice):
        begun = 0

        async def process(self, queue: int, chain: DescriptorChain) -> None:
            self.begun += 1

    async def work() -> None:
        bridge = Bridge(device := Counting())
        bridge.attach(asyncio.get_running_loop())
        thread = threading.Thread(target=bridge.process, args=(0, None))
        thread.start()
        thread.join(DEADLINE)
        assert not thread.is_alive(), "this blocks the loop on purpose"
        await bridge.detach()
        await asyncio.sleep(0.01)
        assert not device.begun

    run(work())


def test_a_loop_that_is_blocked_does_not_hold_up_the_front_end_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vhostuser.aio.device.LOOP_TIMEOUT", 0.05)

    async def work() -> None:
        refused = threading.Event()
        async with serving(device := Scripted()) as (sock, _):
            frontend = await asyncio.to_thread(Frontend, sock)

            def write() -> None:
                with pytest.raises(RequestFailed):
                    frontend.request(Q.SET_CONFIG, Config(0, 1, 0, b"x"))
                refused.set()

            thread = threading.Thread(target=write)
            thread.start()
            assert refused.wait(DEADLINE), "this blocks the loop on purpose"
            thread.join()
            await asyncio.sleep(0)
            assert device.writes == 0, "what was refused is not done later"
            await asyncio.to_thread(frontend.close)

    run(work())


class Told(Scripted):
    """Knows when it was reset."""

    def reset(self) -> None:
        super().reset()
        self.seen.append(b"reset")


def test_a_reset_is_late_while_the_loop_is_blocked_but_comes_before_the_next_driver(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("vhostuser.aio.device.LOOP_TIMEOUT", 0.05)

    async def work() -> None:
        device, again = Told(wait), threading.Event()
        device.drain_timeout = 0.05
        async with serving(device) as (sock, _):
            frontend = await asyncio.to_thread(Frontend, sock)
            frontend.share_memory(1 << 20)
            queue = await asyncio.to_thread(frontend.start_queue, 0, size=16)
            queue.submit([b"old"])
            queue.notify()
            await until(lambda: device.at_work, "it is at work")

            def take_again() -> None:
                frontend.reset()
                queue = frontend.start_queue(0, size=16)
                queue.submit([b"now"], [8])
                queue.notify()
                again.set()

            thread = threading.Thread(target=take_again)
            thread.start()
            assert again.wait(DEADLINE), "this blocks the loop on purpose"
            thread.join()
            assert not device.resets
            await until(lambda: b"now" in device.seen, "the next driver's request has come")
            assert device.seen == [b"ready", b"old", b"reset", b"ready", b"now"]
            assert device.cancelled == 1
            await asyncio.to_thread(frontend.close)

    run(work())
    assert "the device is reset once it turns to that" in caplog.text


def test_what_a_late_reset_makes_of_it_is_told(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr("vhostuser.aio.device.LOOP_TIMEOUT", 0.05)

    class Failing(Scripted):
        def reset(self) -> None:
            super().reset()
            raise ZeroDivisionError("on purpose")

    async def work() -> None:
        bridge = Bridge(device := Failing())
        bridge.attach(asyncio.get_running_loop())
        thread = threading.Thread(target=bridge.reset)
        thread.start()
        thread.join(DEADLINE)
        assert not device.resets, "this blocks the loop on purpose"
        await until(lambda: device.resets == 1, "the reset has come")
        await bridge.detach()

    run(work())
    assert "Failing.reset failed" in caplog.text
    assert "on purpose" in caplog.text


@pytest.mark.parametrize("hook", ["reset", "write_config", "shared_object"])
def test_a_device_s_own_time_limit_is_not_taken_for_a_busy_loop(hook: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def expire(*arguments: object) -> None:
        raise TimeoutError("on purpose")

    async def work() -> None:
        device = Scripted()
        monkeypatch.setattr(device, hook, expire)
        bridge = Bridge(device)
        bridge.attach(asyncio.get_running_loop())
        calls = {
            "reset": bridge.reset,
            "write_config": lambda: bridge.write_config(0, b"x"),
            "shared_object": lambda: bridge.object_fd(UUID(int=1)),
        }
        with pytest.raises(TimeoutError, match="on purpose"):
            await asyncio.to_thread(calls[hook])
        await bridge.detach()

    run(work())


# Stops, resets, ends


@pytest.mark.parametrize("drained", [True, False])
def test_q29_a_stop_waits_for_the_tasks_of_its_queue_as_long_as_was_said(drained: bool) -> None:
    async def work() -> None:
        device = Scripted(wait)
        device.drain_timeout = 4 * DEADLINE if drained else 0.05
        async with serving(device) as (sock, backend):
            raw = RawFrontend(sock)
            rig = await asyncio.to_thread(Rig, raw, device)  # type: ignore[arg-type]
            rig.ask(b"one ", b"two ", b"now ")
            await until(lambda: device.at_work == 2, "two are at work")
            raw.request(Q.GET_VRING_BASE, VringState(0, 0))
            if drained:
                await until(lambda: not _rings(backend).vrings[0].active, "the stop waits")
                device.goes_on.set()
            assert VringState.unpack((await asyncio.to_thread(raw.receive)).payload).num == 3
            assert rig.answers() == (3 if drained else 1)
            device.goes_on.set()
            await until(lambda: not device.at_work, "all have ended")
            await asyncio.to_thread(rig.set_up)
            rig.ask(b"new ")
            await until(lambda: rig.answers() == 1, "the ring that was set up anew is served, and gets nothing else")
            rig.close()
            raw.close()

    run(work())


def _rings(backend: AsyncBackend) -> Rings:
    """The rings behind a back-end: nothing else tells that a stop has begun."""
    rings = backend._bridge.queues
    assert isinstance(rings, Rings)
    return rings


def test_a_reset_cancels_what_is_at_work() -> None:
    async def work() -> None:
        device = Scripted(wait)
        device.drain_timeout = 0.05
        async with both(device) as frontend:
            queue = await frontend.start_queue(0, size=16)
            tasks = [asyncio.create_task(queue.exchange(b"x", 8)) for _ in range(5)]
            await until(lambda: device.at_work == 5, "all are at work")
            await frontend.reset()
            assert await asyncio.gather(*tasks, return_exceptions=True)
            await until(lambda: device.cancelled == 5, "all are cancelled")
            assert device.resets == 1
            queue = await frontend.start_queue(0, size=16)
            assert await queue.exchange(b"now", 8) == b"ok"

    run(work())


def test_the_end_of_the_front_end_cancels_what_is_at_work_and_the_next_is_served() -> None:
    async def work(path: str) -> None:
        device = Scripted(wait)
        backend = AsyncBackend(device)
        task = asyncio.create_task(backend.serve(path))
        for turn in (1, 2):
            async with await AsyncFrontend.connect(path, wait=DEADLINE) as frontend:
                await frontend.share_memory(1 << 20)
                queue = await frontend.start_queue(0, size=16)
                lost = asyncio.create_task(queue.exchange(b"x", 8))
                await until(lambda: device.at_work == 1, "it is at work")
                assert await queue.exchange(b"now", 8) == b"ok"
            with pytest.raises(Disconnected):
                await lost
            await until(lambda turn=turn: device.cancelled == turn == device.resets, "it is cancelled")  # type: ignore[misc]
        backend.stop()
        await task
        assert not Path(path).exists()
        assert backend.counters.closed == 2

    with tempfile.TemporaryDirectory(prefix="vhu-") as folder:
        run(work(f"{folder}/s"))


@pytest.mark.parametrize("when", ["idle", "at work"])
def test_to_cancel_serve_is_to_stop_it(when: str) -> None:
    async def work(path: str) -> None:
        device = Scripted(wait)
        backend = AsyncBackend(device)
        task = asyncio.create_task(backend.serve(path))
        await until(lambda: is_listened_on(path), "it listens")
        with pytest.raises(LocalProtocolError, match="serves already"):
            await backend.serve(path)
        if when == "at work":
            async with await AsyncFrontend.connect(path) as frontend:
                await frontend.share_memory(1 << 20)
                queue = await frontend.start_queue(0, size=16)
                request = asyncio.create_task(queue.exchange(b"x", 8))
                await until(lambda: device.at_work, "it is at work")
                task.cancel()
                with pytest.raises(Disconnected):
                    await request
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not Path(path).exists()
        assert device.cancelled == (when == "at work")
        assert not any("vhost-user back-end" in thread.name for thread in threading.enumerate() if thread.is_alive())

    with tempfile.TemporaryDirectory(prefix="vhu-") as folder, leaving_nothing():
        run(work(f"{folder}/s"))


def test_what_the_front_end_does_wrong_is_the_error_of_serve() -> None:
    async def work() -> None:
        ours, theirs = socket.socketpair()
        with ours:
            task = asyncio.create_task(AsyncBackend(Scripted()).serve_fd(theirs.detach()))
            ours.sendall(b"\xff" * 12)
            with pytest.raises(Exception, match="version"):
                await task

    run(work())


def test_the_configuration_space_is_the_device_s_own() -> None:
    class Writable(Scripted):
        def write_config(self, offset: int, data: bytes) -> None:
            if data == b"?":
                raise LocalProtocolError("no question marks")
            self.config = self.config[:offset] + data + self.config[offset + len(data) :]

    async def work() -> None:
        async with both(Writable()) as frontend:

            def write(data: bytes) -> Awaitable[object]:
                return frontend.run(lambda core: core.request(Q.SET_CONFIG, Config(0, len(data), 0, data)))

            await write(b"CON")
            assert await frontend.run(lambda core: core.config(0, 6)) == b"CONfig"
            with pytest.raises(RequestFailed):
                await write(b"?")
            assert await frontend.run(lambda core: core.config(0, 6)) == b"CONfig"

    run(work())
