"""A back-end of ours, and a front-end that is an input: all that it will ever send is there before the back-end looks."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable
from itertools import pairwise
from types import MappingProxyType
from typing import Final

from tests.fuzz.bodies import body
from tests.fuzz.fd_pool import KINDS, MEMORY, Pool, send
from tests.fuzz.taking import Taker
from tests.fuzz.watching import check
from vhostuser import Backend, DescriptorChain, Device
from vhostuser.errors import VhostUserError
from vhostuser.protocol.layout import Payload
from vhostuser.protocol.numbers import BackendRequest, FrontendRequest, mask
from vhostuser.protocol.numbers import ProtocolFeature as F
from vhostuser.protocol.payloads import (
    HEADER,
    U64,
    Config,
    Inflight,
    Log,
    MemoryRegion,
    MemoryTable,
    SingleRegion,
    VringAddr,
    VringState,
)
from vhostuser.protocol.rules import FRONTEND
from vhostuser.testing import message
from vhostuser.transport.fds import HasFileno
from vhostuser.virtio.numbers import Feature

Q = FrontendRequest
PAGE: Final = 4096
SIZE: Final = 8
STEPS: Final = 50
WAIT: Final = 0.1
"""Seconds that the back-end waits for an answer that was not there from the start."""
FEATURES: Final = (1 << 32 | 1 << 30, 1 << 32 | 1 << 30 | 1 << Feature.RING_PACKED, 1 << 32, 1 << 26 | 1 << 32 | 1 << 30, 0)
SHARING: Final = (F.MQ, F.REPLY_ACK, F.BACKEND_REQ, F.BACKEND_SEND_FD, F.CONFIG, F.STATUS, F.RESET_DEVICE, F.SHMEM)
PROTOCOL: Final = (
    mask(SHARING),
    mask((*SHARING, F.INFLIGHT_SHMFD, F.LOG_SHMFD)),
    mask((*SHARING[:-1], F.CONFIGURE_MEM_SLOTS, F.INFLIGHT_SHMFD, F.GET_VRING_BASE_INFLIGHT, F.GPA_ADDRESSES)),
    mask((F.REPLY_ACK, F.BACKEND_REQ, F.INBAND_NOTIFICATIONS)),
    mask((F.REPLY_ACK,)),
    0,
)
FLAGS: Final = (1, 9, 9, 1)


class Mapper(Device):
    """Maps what it is told to, where it is told to, and says what came of it."""

    queue_sizes = (SIZE, SIZE)
    config = bytes(range(32))
    spin = 0.0

    def __init__(self, pool: Pool, *, regions: bool) -> None:
        self._pool = pool
        self.shared_memory = MappingProxyType({0: MEMORY * PAGE, 3: PAGE} if regions else {})

    def driver_ready(self) -> None:
        self._try(0, 0)

    def process(self, queue: int, chain: DescriptorChain) -> None:
        request = chain.read(16)
        if self.shm and len(request) > 1:
            self._try(request[0], request[1])
        chain.write(request)

    def _try(self, how: int, place: int) -> None:
        with contextlib.suppress(VhostUserError, OSError, KeyError):
            region = self.shm[how & 3]
            if how & 4:
                region.unmap(shm_offset=place * PAGE, len=PAGE)
            else:
                region.map(self._pool.get("sealed").fileno(), shm_offset=place * PAGE, len=PAGE)

    def write_config(self, offset: int, data: bytes) -> None:
        pass


def against_back_end(taker: Taker) -> None:
    """Serve what the input says, and then an honest front-end."""
    with Pool() as pool:
        backend = Backend(Mapper(pool, regions=taker.flag()), reply_timeout=WAIT, partial_timeout=WAIT)
        ours, theirs = pool.pair()
        _hostile(taker, pool, ours)
        with contextlib.suppress(VhostUserError):
            backend.serve_fd(theirs.detach())
        ours, theirs = pool.pair()
        send(ours, message(Q.GET_FEATURES))
        ours.shutdown(socket.SHUT_WR)
        backend.serve_fd(theirs.detach())
        request, flags, size = HEADER.unpack(ours.recv(HEADER.size))
        check((request, flags, size) == (Q.GET_FEATURES, 5, 8), "the next front-end is not served", request, flags, size)
        check(not any(region.mappings for region in backend.device.shm.values()), "mappings outlive their front-end")


def _hostile(taker: Taker, pool: Pool, sock: socket.socket) -> None:
    """All that one front-end says."""
    for _ in range(STEPS):
        if taker.left:
            how = taker.byte()
            if how < 160:
                STORIES[how % len(STORIES)](taker, pool, sock)
            elif how < 240:
                _any_message(taker, pool, sock)
            else:
                send(sock, taker.some(60), _fds(taker, pool))
    sock.shutdown(socket.SHUT_WR)


def _any_message(taker: Taker, pool: Pool, sock: socket.socket) -> None:
    """A known request, whose fields are anything, with fds of any kind."""
    request = sorted(FRONTEND)[taker.below(len(FRONTEND))] if not taker.rarely() else taker.number(4)
    payload = body(taker, FRONTEND.get(request))
    flags = taker.number(4) if taker.rarely() else taker.pick(FLAGS)
    data = message(request, payload, flags=flags, size=taker.number(4) if taker.rarely() else None)
    if taker.rarely():
        cut = taker.below(len(data))
        send(sock, data[:cut] or data[:1], _fds(taker, pool))
        data = data[cut or 1 :]
    send(sock, data, _fds(taker, pool))


def _fds(taker: Taker, pool: Pool) -> list[HasFileno]:
    how = taker.byte()
    count = how % 3 if how < 200 else how % 9
    return [pool.get(taker.pick(tuple(KINDS))) for _ in range(count)]


# What an honest front-end does, or nearly


def _say(sock: socket.socket, request: Q, payload: Payload | None = None, *fds: HasFileno) -> None:
    send(sock, message(request, payload, flags=9), fds)


def _negotiate(taker: Taker, pool: Pool, sock: socket.socket) -> None:
    protocol, features = taker.pick(PROTOCOL), taker.pick(FEATURES)
    send(sock, message(Q.SET_PROTOCOL_FEATURES, U64(protocol & ~(taker.number(4) if taker.rarely() else 0))))
    _say(sock, Q.SET_FEATURES, U64(features | taker.below(2) << Feature.RING_INDIRECT_DESC))


def _share(taker: Taker, pool: Pool, sock: socket.socket) -> None:
    """Memory in one region or two."""
    memory, middle = pool.get("plain" if taker.rarely() else "sealed"), taker.below(MEMORY) * PAGE
    bounds = [0, middle, MEMORY * PAGE] if middle else [0, MEMORY * PAGE]
    regions = [MemoryRegion(at, end - at, at, at) for at, end in pairwise(bounds)]
    _say(sock, Q.SET_MEM_TABLE, MemoryTable(regions), *(memory for _ in regions))


def _add(taker: Taker, pool: Pool, sock: socket.socket) -> None:
    at, pages = taker.below(32) * PAGE, 1 + taker.below(8)
    request = Q.ADD_MEM_REG if taker.flag() else Q.REM_MEM_REG
    fds = [pool.get("plain" if taker.rarely() else "sealed")] if request is Q.ADD_MEM_REG else []
    _say(sock, request, SingleRegion(at, pages * PAGE, at, 0), *fds)


def _requests(taker: Taker, pool: Pool, sock: socket.socket) -> None:
    """A back-end channel, with answers on it that come before they are asked for."""
    ours, theirs = pool.pair()
    for _ in range(taker.below(6)):
        kind = BackendRequest.SHMEM_MAP if taker.flag() else BackendRequest.SHMEM_UNMAP
        send(ours, message(kind if not taker.rarely() else taker.byte(), U64(taker.rarely()), flags=5))
    if taker.rarely():
        send(ours, taker.some(30), _fds(taker, pool))
    if not taker.rarely():
        ours.shutdown(socket.SHUT_WR)
    _say(sock, Q.SET_BACKEND_REQ_FD, None, theirs)


def _ring(taker: Taker, pool: Pool, sock: socket.socket) -> None:
    """Lay a ring, full of requests, and start it."""
    index, at = taker.below(2), taker.below(3) * 4 * PAGE
    memory = pool.get("sealed").fileno()
    for slot in range(SIZE):
        flags = taker.pick((0, 2, 1, 0x80, 0x82, 0x81, 4)).to_bytes(2, "little")
        link = taker.below(SIZE + 1).to_bytes(2, "little")
        start = (0x8000 + taker.below(64) * 16).to_bytes(8, "little") + (2 + taker.below(30)).to_bytes(4, "little")
        os.pwrite(memory, start + flags + link if not flags[0] & 0x80 else start + link + flags, at + 16 * slot)
    heads = b"".join(taker.below(SIZE + 1).to_bytes(2, "little") for _ in range(SIZE))
    os.pwrite(memory, bytes(2) + taker.below(SIZE + 2).to_bytes(2, "little") + heads, at + 0x100)
    os.pwrite(memory, taker.some(64), 0x8000)
    _say(sock, Q.SET_VRING_NUM, VringState(index, SIZE))
    _say(sock, Q.SET_VRING_BASE, VringState(index, taker.pick((0, 0x80008000, 1))))
    _say(sock, Q.SET_VRING_ADDR, VringAddr(index, taker.below(2), at, at + 0x200, at + 0x100, 0))
    _say(sock, Q.SET_VRING_CALL, U64(index), pool.get("eventfd"))
    _say(sock, Q.SET_VRING_ERR, U64(index), pool.get("semaphore"))
    _say(sock, Q.SET_VRING_KICK, U64(index), pool.get("eventfd that waits"))
    _say(sock, Q.SET_VRING_ENABLE, VringState(index, 1))


def _ring_word(taker: Taker, pool: Pool, sock: socket.socket) -> None:
    """One of the requests about a ring."""
    requests = (Q.SET_VRING_ENABLE, Q.GET_VRING_BASE, Q.VRING_KICK, Q.SET_VRING_NUM, Q.SET_VRING_BASE, Q.SET_VRING_ENDIAN)
    _say(sock, taker.pick(requests), VringState(taker.below(3), taker.pick((0, 1, 2, 8, 16, 0xFFFF))))


def _ring_file(taker: Taker, pool: Pool, sock: socket.socket) -> None:
    """Another eventfd, or none, or no eventfd at all."""
    request, without = taker.pick((Q.SET_VRING_KICK, Q.SET_VRING_CALL, Q.SET_VRING_ERR)), taker.flag() and taker.flag()
    fds = [] if without else [pool.get(taker.pick(tuple(KINDS)))]
    _say(sock, request, U64(taker.below(3) | without << 8), *fds)


def _plain_word(taker: Taker, pool: Pool, sock: socket.socket) -> None:
    """One of the requests that carry nothing."""
    words = (Q.GET_FEATURES, Q.SET_OWNER, Q.RESET_DEVICE, Q.GET_QUEUE_NUM, Q.GET_STATUS, Q.GET_SHMEM_CONFIG, Q.RESET_OWNER)
    _say(sock, taker.pick(words))


def _status(taker: Taker, pool: Pool, sock: socket.socket) -> None:
    _say(sock, Q.SET_STATUS, U64(taker.pick((0, 1, 3, 11, 15, 128))))


def _config(taker: Taker, pool: Pool, sock: socket.socket) -> None:
    data = taker.some(32)
    _say(sock, Q.SET_CONFIG if taker.flag() else Q.GET_CONFIG, Config(taker.below(33), len(data), taker.below(2), data))


def _track(taker: Taker, pool: Pool, sock: socket.socket) -> None:
    """An inflight area: a new one, or one of ours with something in it."""
    if taker.flag():
        _say(sock, Q.GET_INFLIGHT_FD, Inflight(0, 0, 1 + taker.below(2), 1 + taker.below(SIZE)))
        return
    area = pool.get("plain" if taker.rarely() else "sealed")
    os.pwrite(area.fileno(), taker.some(200), 0xC000)
    _say(sock, Q.SET_INFLIGHT_FD, Inflight(0x400, 0xC000, 2, SIZE), area)


def _log(taker: Taker, pool: Pool, sock: socket.socket) -> None:
    _say(sock, Q.SET_LOG_BASE, Log(taker.pick((PAGE, 8, 0)), taker.pick((0, PAGE, 1))), pool.get("plain"))


STORIES: Final[tuple[Callable[[Taker, Pool, socket.socket], None], ...]] = (
    *(_negotiate, _share, _requests, _ring, _ring_word, _ring_file, _plain_word, _status, _config, _track, _log, _add),
    *(_ring, _ring_word),
)
