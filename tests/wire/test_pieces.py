"""Messages in pieces and in one go: they mean the same, and half of one is not waited for for ever."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise

import pytest

from vhostuser.protocol.numbers import BackendRequest, FrontendRequest
from vhostuser.protocol.payloads import U64, Mmap, VringState
from vhostuser.testing import RawBackend, ServedRawFrontend, Wire, raw_frontend, sparse_file, wait_until
from vhostuser.testing.files import message
from vhostuser.transport.fds import OwnedFd

from .conftest import Attacked
from .devices import Scripted

Q, B = FrontendRequest, BackendRequest
PAGE = 4096
NEED_REPLY = 9
MAP = message(B.SHMEM_MAP, Mmap(0, 0, PAGE, PAGE), flags=NEED_REPLY)
UNMAP = message(B.SHMEM_UNMAP, Mmap(0, 0, PAGE, PAGE), flags=NEED_REPLY)
KICK = message(Q.SET_VRING_KICK, U64(0), flags=NEED_REPLY)
SPLITS = ([1], [11], [12], [13], [1, 11, 12], [1, 12], [11, 12], [12, 19])


def in_pieces(wire: Wire, data: bytes, places: Sequence[int], fds: Sequence[OwnedFd] = ()) -> None:
    """Send `data` cut at `places`, with the fds at the first byte."""
    for start, end in pairwise([0, *places, len(data)]):
        wire.send(data[start:end], () if start else fds)


def all_places(data: bytes) -> list[int]:
    return list(range(1, len(data)))


@contextmanager
def serving(attacked: Attacked) -> Iterator[Wire]:
    """The back-end channel of a front-end that serves in a thread, so that it may wait for the rest of a message."""
    channel, stop = attacked.raw.channel, threading.Event()
    channel.pump = None

    def serve() -> None:
        while not stop.is_set():
            attacked.frontend.serve(0.01)

    thread = threading.Thread(target=serve, name="front-end")
    thread.start()
    try:
        yield channel
    finally:
        stop.set()
        thread.join()


def acknowledged(wire: Wire, request: int) -> int:
    """The status in the acknowledgement that comes next, which is of that request."""
    frame = wire.receive()
    assert (frame.request, frame.flags, len(frame.payload)) == (request, 5, 8)
    return U64.unpack(frame.payload).value


@pytest.mark.parametrize("places", [*SPLITS, all_places(KICK)], ids=str)
def test_w07_w08_pieces_at_a_back_end(raw: ServedRawFrontend, places: list[int]) -> None:
    in_pieces(raw, KICK, places, [raw.eventfd()])
    assert acknowledged(raw, Q.SET_VRING_KICK) == 0
    in_pieces(raw, message(Q.SET_VRING_NUM, VringState(0, 64), flags=NEED_REPLY), places)
    assert acknowledged(raw, Q.SET_VRING_NUM) == 0
    raw.alive()


@pytest.mark.parametrize("places", [*SPLITS, [12, 51], all_places(MAP)], ids=str)
def test_w07_w08_pieces_at_a_front_end(attacked: Attacked, places: list[int]) -> None:
    with sparse_file(PAGE) as file, serving(attacked) as channel:
        in_pieces(channel, MAP, places, [file])
        assert acknowledged(channel, B.SHMEM_MAP) == 0
        assert len(attacked.frontend.shm[0].mappings) == 1
        in_pieces(channel, UNMAP, places)
        assert acknowledged(channel, B.SHMEM_UNMAP) == 0
        assert not attacked.frontend.shm[0].mappings


@pytest.mark.parametrize("count", [2, 3, 64])
def test_w10_many_in_one_go_at_a_back_end(raw: ServedRawFrontend, count: int) -> None:
    requests = [message(Q.SET_VRING_NUM, VringState(0, 1 << at % 9), flags=NEED_REPLY) for at in range(count)]
    wrong = message(Q.SET_VRING_NUM, VringState(0, 3), flags=NEED_REPLY)
    raw.send(b"".join(requests) + wrong + requests[0][:15])
    assert [acknowledged(raw, Q.SET_VRING_NUM) for _ in range(count + 1)] == [0] * count + [1]
    raw.send(requests[0][15:])
    assert acknowledged(raw, Q.SET_VRING_NUM) == 0
    raw.alive()


@pytest.mark.parametrize("count", [2, 3, 64, 200])
def test_w10_many_in_one_go_at_a_front_end(attacked: Attacked, count: int) -> None:
    """Right ones and wrong ones, of which the last is whole only later; answers come in the order of the requests."""
    with sparse_file(PAGE) as file, serving(attacked) as channel:
        channel.send(MAP, [file])
        channel.send((UNMAP + UNMAP) * count + UNMAP[:30])
        assert acknowledged(channel, B.SHMEM_MAP) == 0
        assert [acknowledged(channel, B.SHMEM_UNMAP) for _ in range(2 * count)] == [0] + [1] * (2 * count - 1)
        channel.send(UNMAP[30:])
        assert acknowledged(channel, B.SHMEM_UNMAP) == 1
        assert attacked.frontend.counters.refused == 2 * count


@pytest.mark.parametrize("size", [1, 11, 12, 19])
def test_w40_half_a_message_ends_the_connection_to_a_back_end(size: int) -> None:
    with raw_frontend(Scripted(), partial_timeout=0.1) as slow, raw_frontend(Scripted()) as other:
        slow.negotiate()
        fd = slow.eventfd()
        slow.send(KICK[:size], [fd])
        other.negotiate()
        other.share_memory()
        slow.closes()
        other.alive()
        wait_until(lambda: slow.served.ended, "the back-end gave up")
        assert "not complete within 0.1 s" in str(slow.served.error)


@pytest.mark.parametrize("size", [1, 11, 12, 51])
def test_w40_half_a_message_ends_the_channel_to_a_front_end(size: int) -> None:
    with RawBackend() as raw, raw.frontend(partial_timeout=0.1) as frontend, sparse_file(PAGE) as file:
        raw.channel.accepted(B.SHMEM_MAP, MAP[12:], fds=[file])
        raw.channel.send(UNMAP[:size])
        raw.channel.closes()
        assert frontend.config(0, 0) == b""  # the main channel lives, and so does what is mapped
        assert len(frontend.shm[0].mappings) == 1
