"""When a mapping may be made and when it ends: start, stop, reset, the end of a channel, want of resources."""

from __future__ import annotations

import os
import random
import resource
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from tests.memory_map import areas
from tests.wire.devices import Scripted
from vhostuser import Disconnected, Frontend, LocalProtocolError, MapRequest, RemoteProtocolError, VhostUserError
from vhostuser.protocol.numbers import BackendRequest, FrontendRequest, ProtocolFeature
from vhostuser.protocol.payloads import U64, Mmap, ShmemConfig, VringState
from vhostuser.testing import RawBackend, joined, listening, raw_frontend, sparse_file, usage, wait_until
from vhostuser.testing.files import message
from vhostuser.testing.raw_backend import PROTOCOL_FEATURES

from .conftest import PAGE, SIZES, Pair, Sending

Q, B, F = FrontendRequest, BackendRequest, ProtocolFeature
MAP, UNMAP = B.SHMEM_MAP, B.SHMEM_UNMAP
PAGE_AT_0 = Mmap(0, 0, 0, PAGE)
NOT_NOW = "no driver runs the device"


@contextmanager
def page() -> Iterator[int]:
    with sparse_file(PAGE) as file:
        yield file.fileno()


# SH01: what was not negotiated, or not begun


@pytest.mark.parametrize("without", [F.SHMEM, F.BACKEND_SEND_FD, F.REPLY_ACK])
def test_sh01_a_front_end_refuses_mappings_without_the_feature(without: ProtocolFeature) -> None:
    with RawBackend(protocol_features=PROTOCOL_FEATURES & ~(1 << without)) as raw, raw.frontend() as frontend, page() as fd:
        assert not frontend.shm
        if without is F.REPLY_ACK:
            raw.channel.request(MAP, PAGE_AT_0, fds=[fd], flags=9)
        else:
            raw.channel.refused(MAP, PAGE_AT_0, fds=[fd])
        assert (frontend.counters.refused, frontend.counters.maps) == (1, 0)


@pytest.mark.parametrize("without", [F.SHMEM, F.BACKEND_REQ])
def test_sh01_a_device_maps_nothing_without_the_feature(without: ProtocolFeature) -> None:
    device = Scripted()
    protocol = PROTOCOL_FEATURES & ~(1 << without | 1 << F.SHMEM | 1 << F.BACKEND_SEND_FD)
    with raw_frontend(device) as raw, page() as fd:
        raw.negotiate(protocol=protocol)
        raw.share_memory()
        raw.set_up_queue()
        assert device.ready.wait(10)
        with pytest.raises(VhostUserError, match=r"SHMEM|back-end channel"):
            device.shm[0].map(fd, shm_offset=0, len=PAGE)


def test_map_is_refused_here_before_the_start_after_the_stop_and_in_a_reset(device: Scripted) -> None:
    in_reset: list[Exception] = []

    def reset() -> None:
        with page() as fd, pytest.raises(LocalProtocolError, match=NOT_NOW) as caught:
            device.shm[0].map(fd, shm_offset=0, len=PAGE)
        in_reset.append(caught.value)

    device.reset = reset  # type: ignore[method-assign]  # the test's own
    with joined(device) as both, page() as fd:
        frontend = both.frontend
        frontend.share_memory(1 << 20)
        for act in (lambda: None, lambda: frontend.stop_queue(0), frontend.reset):
            act()
            with pytest.raises(LocalProtocolError, match=NOT_NOW):
                device.shm[0].map(fd, shm_offset=0, len=PAGE)
            with pytest.raises(LocalProtocolError, match=NOT_NOW):
                device.shm[0].unmap_many([(0, PAGE)])
            frontend.start_queue(0, size=16)
            assert device.ready.wait(10)
        assert frontend.counters.messages == 0
    assert len(in_reset) >= 2


# SH37, SH39: resets and ends


@pytest.mark.parametrize("how", ["RESET_DEVICE", "SET_STATUS"])
def test_sh37_a_reset_takes_all_mappings_on_both_sides(device: Scripted, how: str) -> None:
    with joined(device) as both, page() as fd:
        frontend = both.frontend
        frontend.share_memory(1 << 20)
        for _ in range(2):
            frontend.start_queue(0, size=16)
            assert device.ready.wait(10)
            with ThreadPoolExecutor(1) as pool:
                done = pool.submit(device.shm[7].map_many, [MapRequest(fd, 2 * at * PAGE, PAGE) for at in range(500)])
                while not done.done():
                    frontend.serve(0.01)
            assert len(frontend.shm[7].mappings) == len(device.shm[7].mappings) == 500
            if how == "SET_STATUS":
                frontend.request(Q.SET_STATUS, U64(0))
                assert not device.shm[7].mappings
            frontend.reset()
            assert frontend.shm[7].mappings == device.shm[7].mappings == ()
            (area,) = areas(frontend.shm[7].address, frontend.shm[7].address + frontend.shm[7].size)
            assert area.mode == "---p"


@pytest.mark.parametrize("waiting", [1, 2, 64])
def test_sh37_mappings_that_wait_in_the_socket_do_not_outlive_the_reset(sending: Sending, waiting: int) -> None:
    sending.channel.pump = None
    with page() as fd:
        for at in range(waiting):
            sending.channel.request(MAP, Mmap(0 if at < 16 else 7, 0, at * PAGE, PAGE), fds=[fd], flags=9)
    sending.frontend.reset()
    assert not any(region.mappings for region in sending.frontend.shm.values())
    assert [U64.unpack(sending.channel.receive().payload).value for _ in range(waiting)] == [0] * waiting


def test_sh37_a_map_that_is_under_way_when_the_reset_comes_fails(device: Scripted) -> None:
    """The front-end has it, resets the device, and answers only then: the mapping is of before, and counts for nothing."""
    with raw_frontend(device, reply_timeout=10) as raw, page() as fd, ThreadPoolExecutor(1) as pool:
        channel = raw.start()
        assert device.ready.wait(10)
        under_way = pool.submit(device.shm[0].map, fd, shm_offset=0, len=PAGE)
        for each in channel.receive().fds:
            each.close()
        raw.accepted(Q.RESET_DEVICE)
        channel.request(MAP, U64(0), flags=5)
        with pytest.raises(LocalProtocolError, match="the device was reset while the request was under way"):
            under_way.result(10)
        assert not device.shm[0].mappings


@pytest.mark.parametrize("count", [1, 4096])
@pytest.mark.parametrize("end", ["main", "back-end"])
def test_sh39_the_end_of_a_channel(sending: Sending, end: str, count: int) -> None:
    """All mappings go with the main channel; with the back-end channel alone they stay."""
    channel, frontend = sending.channel, sending.frontend
    with page() as fd:
        for at in range(count):
            channel.send(message(MAP, Mmap(7, 0, 2 * at * PAGE, PAGE)), [fd])
    assert len(frontend.shm[7].mappings) == count
    if end == "back-end":
        channel.end()
        assert frontend.config(0, 1) == b"\0"
        assert len(frontend.shm[7].mappings) == count
        frontend.reset()
    else:
        frontend._driving.channel.socket.shutdown(socket.SHUT_RDWR)
        with pytest.raises(Disconnected):
            frontend.serve(1)
    assert not frontend.shm[7].mappings
    (area,) = areas(frontend.shm[7].address, frontend.shm[7].address + frontend.shm[7].size)
    assert area.mode == "---p"


def test_sh39_who_connects_again_may_map_at_once(device: Scripted) -> None:
    with listening(device) as (path, served), page() as fd:
        for _ in range(3):
            with Frontend.connect(path) as frontend:
                frontend.share_memory(1 << 20)
                frontend.start_queue(0, size=16)
                assert device.ready.wait(10)
                with ThreadPoolExecutor(1) as pool:
                    done = pool.submit(device.shm[0].map, fd, shm_offset=0, len=PAGE)
                    while not done.done():
                        frontend.serve(0.01)
                    done.result()
                assert len(frontend.shm[0].mappings) == 1
            wait_until(lambda: not device.shm[0].mappings and not device.ready.is_set(), "the device is as new")
        assert served.backend.counters.closed == 3


# SH42: configurations that can't be


def config(count: int, *sizes: int) -> bytes:
    return (count.to_bytes(4, "little") + bytes(4) + b"".join(size.to_bytes(8, "little") for size in sizes)).ljust(
        2056, b"\0"
    )


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(body, id=name)
        for name, body in {
            "257-regions": config(257, *[PAGE] * 256),
            "2^32-regions": config(0xFFFFFFFF, PAGE),
            "one-too-many": config(2, PAGE),
            "one-too-few": config(1, PAGE, PAGE),
            "no-whole-page": config(1, PAGE + 1),
            "2^63": config(1, 1 << 63),
            "2^64-1-page": config(1, (1 << 64) - PAGE),
            "sum-wraps": config(2, 1 << 63, 1 << 63),
            "short": config(1, PAGE)[:-8],
            "long": config(1, PAGE) + bytes(8),
            "empty": b"",
        }.items()
    ],
)
def test_sh42_a_configuration_that_can_not_be_ends_the_connection(answer: bytes) -> None:
    before = usage()
    with RawBackend() as raw:
        raw.answers[Q.GET_SHMEM_CONFIG] = answer
        with pytest.raises((RemoteProtocolError, OSError)) as caught:
            raw.frontend()
        assert "GET_SHMEM_CONFIG" in str(caught.value) or "address space" in str(caught.value)
        raw.main.closes()
        del caught
    assert usage().fds == before.fds


@pytest.mark.parametrize("sizes", [{}, {0: PAGE}, {255: PAGE, 3: 2 * PAGE}, {0: 1 << 40}])
def test_sh42_sh46_configurations_that_can_be(sizes: dict[int, int]) -> None:
    with RawBackend() as raw:
        raw.answers[Q.GET_SHMEM_CONFIG] = ShmemConfig(sizes)
        with raw.frontend() as frontend:
            assert {shmid: region.size for shmid, region in frontend.shm.items()} == sizes


# SH28, SH29, SH31: want of resources, and a storm


@pytest.mark.parametrize("request_", [MAP, UNMAP])
def test_sh28_without_room_for_an_fd_the_channel_ends_and_the_front_end_lives(
    sending: Sending, request_: BackendRequest
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with page() as fd:
        sending.channel.accepted(MAP, PAGE_AT_0, fds=[fd])
        highest = max(int(name) for name in os.listdir("/proc/self/fd"))
        filler = [os.dup(fd) for _ in range(highest + 1 - len(os.listdir("/proc/self/fd")))]
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (max(filler, default=highest) + 1, hard))
            while True:
                filler.append(os.dup(fd))
        except OSError:
            sending.channel.request(request_, Mmap(0, 0, PAGE, PAGE), fds=[fd], flags=9)
            closed = sending.channel.receive_or_end() is None
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            for each in filler:
                os.close(each)
    assert closed
    assert len(sending.frontend.shm[0].mappings) == 1
    assert sending.frontend.config(0, 1) == b"\0"


@pytest.mark.parametrize("full", [False, True], ids=["fds-come", "fds-are-lost"])
def test_sh28_w12_an_acknowledgement_with_an_fd_ends_the_channel(device: Scripted, full: bool) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with raw_frontend(device) as raw, page() as fd, ThreadPoolExecutor(1) as pool:
        channel = raw.start()
        assert device.ready.wait(10)
        done = pool.submit(device.shm[0].map, fd, shm_offset=0, len=PAGE)
        for each in channel.receive().fds:
            each.close()
        filler: list[int] = []
        if full:
            resource.setrlimit(resource.RLIMIT_NOFILE, (max(int(name) for name in os.listdir("/proc/self/fd")), hard))
            with pytest.raises(OSError, match="Too many open files"):
                filler += iter(lambda: os.dup(fd), -1)
        channel.request(MAP, U64(0), flags=5, fds=[fd])
        with pytest.raises(VhostUserError, match="Too many open files" if full else "came with 1 fds, must be 0"):
            done.result(10)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for number in filler:
            os.close(number)
        channel.closes()
        raw.alive()
        assert not device.shm[0].mappings


LITTLE = """
import resource, sys
from vhostuser import Frontend
from vhostuser.testing import RawBackend
with RawBackend(shared_memory={0: 8 << 30}) as raw:
    resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
    try:
        raw.frontend()
    except OSError as error:
        print(error)
"""


def test_sh29_a_window_that_can_not_be_reserved_is_said_clearly() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", LITTLE],
        env=os.environ,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "cannot reserve 0x200000000 bytes of address space" in done.stdout
    assert "Cannot allocate memory" in done.stdout


def test_sh31_a_storm_of_any_sizes_leaves_nothing(pair: Pair) -> None:
    """2,000 pairs here; `make soak` makes a million of them."""
    dice = random.Random(31)
    with sparse_file(64 << 20) as file:

        def storm(device: Scripted, request: bytes) -> bytes:
            region = device.shm[7]
            for _ in range(2000):
                size = dice.randrange(1, 1 << dice.randrange(1, 15)) * PAGE
                offset = dice.randrange(0, (SIZES[7] - size) // PAGE) * PAGE
                region.map(file, shm_offset=offset, len=size, writable=bool(size & PAGE))
                region.unmap(shm_offset=offset, len=size)
            return b"done"

        pair.device.work = storm
        before = usage()
        assert pair.frontend._queues[0].exchange(b"go", 8, timeout=60) == b"done"
        assert usage() == before
    assert pair.frontend.counters.maps == pair.frontend.counters.unmaps == 2000
    (area,) = areas(pair.frontend.shm[7].address, pair.frontend.shm[7].address + SIZES[7])
    assert area.mode == "---p"


def test_sh47_a_buffer_that_lies_in_the_region_is_no_guest_memory() -> None:
    """A descriptor that points behind the memory table breaks its queue, whatever the front-end has there."""
    device = Scripted()
    with raw_frontend(device) as raw:
        raw.start()
        assert device.ready.wait(10)
        memory, kick, err = raw._owned[0].fileno(), raw.kick, raw.err
        assert kick is not None
        assert err is not None
        os.pwrite(memory, (1 << 32).to_bytes(8, "little") + (4).to_bytes(4, "little") + bytes(4), 0)
        os.pwrite(memory, b"\0\0\1\0\0\0", 256)
        os.eventfd_write(kick.fileno(), 1)
        wait_until(lambda: raw.served.backend.counters.broken == 1, "the queue is broken")
        assert os.eventfd_read(err.fileno()) == 1
        raw.alive()
        raw.accepted(Q.SET_VRING_ENABLE, VringState(1, 1))
