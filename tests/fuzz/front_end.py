"""A front-end of ours, and a back-end that is an input: its answers are there before they are asked for."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable
from typing import Final
from unittest.mock import patch

from tests.fuzz.back_end import SHARING, WAIT
from tests.fuzz.bodies import body
from tests.fuzz.fd_pool import KINDS, MEMORY, Pool, send
from tests.fuzz.taking import Taker
from tests.fuzz.watching import check
from tests.memory_map import modes
from vhostuser.driving import Driving
from vhostuser.errors import MemoryFault, VhostUserError
from vhostuser.frontend import Frontend
from vhostuser.protocol.layout import Payload
from vhostuser.protocol.numbers import BackendRequest as B
from vhostuser.protocol.numbers import FrontendRequest, mask
from vhostuser.protocol.numbers import ProtocolFeature as F
from vhostuser.protocol.payloads import U64, Config, Inflight, Mmap, ShmemConfig, VringState
from vhostuser.protocol.rules import BACKEND
from vhostuser.testing import message
from vhostuser.transport.fds import HasFileno
from vhostuser.transport.socket import WouldBlock, receive_some

Q = FrontendRequest
PAGE: Final = 4096
STEPS: Final = 40
REGIONS: Final = {0: MEMORY * PAGE, 3: 4 * PAGE}
FEATURES: Final = (1 << 32 | 1 << 30 | 1 << 28, 1 << 34 | 1 << 32 | 1 << 30, 1 << 32)
PROTOCOL: Final = (
    mask(SHARING),
    mask((*SHARING, F.CONFIGURE_MEM_SLOTS, F.INFLIGHT_SHMFD, F.GET_VRING_BASE_INFLIGHT)),
    mask((*SHARING, F.INBAND_NOTIFICATIONS)),
    mask((F.REPLY_ACK,)),
    0,
)
ANSWER: Final = 5


class Hostile:
    """The back-end's end of the main channel, and of its own one once it was given."""

    def __init__(self, taker: Taker, pool: Pool) -> None:
        self.taker, self.pool = taker, pool
        self.main, self.theirs = pool.pair()
        self.requests: socket.socket | None = None
        self.protocol, self.features = taker.pick(PROTOCOL), taker.pick(FEATURES)

    def answer(self, request: Q, payload: Payload | None = None, *fds: HasFileno) -> None:
        """Say what is due, or something else."""
        taker, data = self.taker, message(request, payload, flags=ANSWER)
        how = taker.byte()
        if how >= 252:
            send(self.main, taker.some(40), self.fds())
        elif how >= 248:
            send(self.main, message(request, taker.some(16), flags=taker.pick((ANSWER, 1, 13, 4))), fds)
        elif how >= 244:
            send(self.main, data, self.fds())
        elif how != 243:
            send(self.main, data, fds)

    def ack(self, request: Q) -> None:
        """An acknowledgement, if there are any: mostly a yes."""
        if self.protocol >> F.REPLY_ACK & 1:
            self.answer(request, U64(int(self.taker.byte() >= 250)))

    def negotiate(self) -> None:
        """All the answers that a front-end wants first."""
        has = {feature for feature in F if self.protocol >> feature & 1 and self.features >> 30 & 1}
        self.answer(Q.GET_FEATURES, U64(self.features))
        if self.features >> 30 & 1:
            self.answer(Q.GET_PROTOCOL_FEATURES, U64(self.protocol))
        if F.MQ in has:
            self.answer(Q.GET_QUEUE_NUM, U64(self.taker.pick((2, 2, 2, 0, 1 << 40))))
        if F.CONFIGURE_MEM_SLOTS in has:
            self.answer(Q.GET_MAX_MEM_SLOTS, U64(self.taker.pick((8, 8, 509, 0, 1 << 40))))
        self.protocol = self.protocol if self.features >> 30 & 1 else 0
        for request in (Q.SET_OWNER, Q.SET_FEATURES, *([Q.SET_BACKEND_REQ_FD] if F.BACKEND_REQ in has else [])):
            self.ack(request)
        if F.SHMEM in has:
            sizes = REGIONS if not self.taker.rarely() else {self.taker.byte(): self.taker.number(8)}
            self.answer(Q.GET_SHMEM_CONFIG, ShmemConfig(sizes))

    def take_requests(self) -> None:
        """The back-end channel, which came with a request."""
        with contextlib.suppress(WouldBlock, VhostUserError):
            while not self.requests:
                data, fds = receive_some(self.main, 4096)
                for fd in fds:
                    self.requests = socket.socket(fileno=fd.detach())
                    self.requests.setblocking(False)
                if not data:
                    return

    def fds(self) -> list[HasFileno]:
        """Some of any kind, or none."""
        how = self.taker.byte()
        return [self.pool.get(self.taker.pick(tuple(KINDS))) for _ in range(how % 2 if how < 220 else how % 9)]

    def ask(self) -> None:
        """A request of the back-end: mostly one about mappings that may be right."""
        taker, sock = self.taker, self.requests
        if sock is None:
            return
        how = taker.byte()
        if how < 200:
            request = B.SHMEM_MAP if how % 3 else B.SHMEM_UNMAP
            fds = [self.pool.get("sealed" if how & 8 else "plain")] if request is B.SHMEM_MAP else []
            payload = self.mapping().pack()
        else:
            request = taker.pick(tuple(B))
            payload, fds = body(taker, BACKEND[request]), self.fds()
        flags = taker.pick((9, 9, 1, 5)) if how < 240 else taker.number(4)
        data = message(request, payload, flags=flags, size=taker.number(4) if taker.rarely() else None)
        if taker.rarely():
            send(sock, data[: taker.below(len(data)) + 1], self.fds())
        send(sock, data, fds)
        if taker.rarely():
            sock.shutdown(socket.SHUT_WR)

    def mapping(self) -> Mmap:
        """A place in a region, or near it."""
        taker = self.taker
        if taker.rarely():
            return Mmap(taker.byte(), *(taker.number(8) for _ in range(4)))
        shmid, place, first, count = taker.pick((0, 0, 0, 3, 4)), taker.below(MEMORY + 1), taker.below(8), taker.below(5)
        return Mmap(shmid, first * PAGE, place * PAGE, count * PAGE, taker.below(2))

    def close(self) -> None:
        """Let go of the back-end channel."""
        if self.requests:
            self.requests.close()


def against_front_end(taker: Taker) -> None:
    """Negotiate, and do what a front-end does, with a back-end that answers what it likes."""
    with (
        patch.object(Driving, "_check_quiet", lambda _: None),  # for one thread does both: all answers are early here
        Pool() as pool,
        contextlib.closing(Hostile(taker, pool)) as peer,
        contextlib.suppress(VhostUserError),
    ):
        options = taker.byte()
        peer.negotiate()
        if taker.rarely():
            peer.main.shutdown(socket.SHUT_WR)
        with Frontend(
            peer.theirs,
            max_maps=4,
            reply_timeout=WAIT,
            partial_timeout=WAIT,
            packed=bool(options & 1),
            inflight=bool(options & 2),
            inband=bool(options & 4),
        ) as frontend:
            peer.take_requests()
            for _ in range(STEPS):
                if taker.left:
                    _step(taker, peer, frontend)
            _settled(frontend)


def _step(taker: Taker, peer: Hostile, frontend: Frontend) -> None:
    """Some requests of the back-end, then something that the front-end does."""
    peer.ask()
    with contextlib.suppress(VhostUserError):
        DOINGS[taker.below(len(DOINGS))](taker, peer, frontend)


def _settled(frontend: Frontend) -> None:
    """The windows are what the tables say."""
    total = 0
    for region in frontend.shm.values():
        if region.size > 1 << 30:
            continue
        shown, mappings = modes(region.address, region.address + region.size), region.mappings
        expected = ["---p"] * (region.size // PAGE)
        for mapping in mappings:
            start, end = mapping.shm_offset // PAGE, mapping.end // PAGE
            expected[start:end] = ["rw-s" if mapping.writable else "r--s"] * (end - start)
        check(shown == expected, "a window is not what its table says", shown, mappings)
        total += len(mappings)
    check(total <= 4, "more mappings than may be", total)


def _serve(taker: Taker, peer: Hostile, frontend: Frontend) -> None:
    frontend.serve(0)


def _share(taker: Taker, peer: Hostile, frontend: Frontend) -> None:
    peer.ack(Q.SET_MEM_TABLE)
    frontend.share_memory(16 * PAGE)


def _add(taker: Taker, peer: Hostile, frontend: Frontend) -> None:
    peer.ack(Q.ADD_MEM_REG)
    block = frontend.add_memory(PAGE)
    peer.ack(Q.REM_MEM_REG)
    frontend.remove_memory(block)


def _start(taker: Taker, peer: Hostile, frontend: Frontend) -> None:
    requests = [Q.SET_VRING_NUM, Q.SET_VRING_BASE, Q.SET_VRING_ADDR, Q.SET_VRING_ERR, Q.SET_VRING_CALL, Q.SET_VRING_KICK]
    for request in (*requests, Q.SET_VRING_ENABLE):
        peer.ack(request)
    queue = frontend.start_queue(taker.below(3), size=8)
    queue.exchange(b"request", 8, timeout=0)


def _stop(taker: Taker, peer: Hostile, frontend: Frontend) -> None:
    index = taker.below(2)
    peer.answer(Q.GET_VRING_BASE, VringState(index, taker.pick((0, 1, 8, 0x80008000))))
    frontend.stop_queue(index)


def _reset(taker: Taker, peer: Hostile, frontend: Frontend) -> None:
    peer.ack(Q.RESET_DEVICE if peer.protocol >> F.RESET_DEVICE & 1 else Q.SET_STATUS)
    frontend.reset()


def _config(taker: Taker, peer: Hostile, frontend: Frontend) -> None:
    peer.answer(Q.GET_CONFIG, Config(0, 4, 0, b"ABCD"))
    check(len(frontend.config(0, 4)) == 4, "a configuration of another size")


def _track(taker: Taker, peer: Hostile, frontend: Frontend) -> None:
    peer.answer(Q.GET_INFLIGHT_FD, Inflight(taker.pick((0x400, 0, 1 << 60)), 0, 2, 8), peer.pool.get("plain"))
    peer.ack(Q.SET_INFLIGHT_FD)
    frontend.track_inflight(8)


def _look(taker: Taker, peer: Hostile, frontend: Frontend) -> None:
    for region in frontend.shm.values():
        with contextlib.suppress(MemoryFault):
            check(len(region.read(taker.below(8) * PAGE, 16)) == 16, "a read of another size")
        with contextlib.suppress(MemoryFault):
            region.write(taker.below(8) * PAGE, b"written")


Doing = Callable[[Taker, Hostile, Frontend], None]
DOINGS: Final[tuple[Doing, ...]] = (
    *(_serve, _serve, _serve, _look, _share, _start, _stop, _reset, _config, _track, _add, _serve),
)
