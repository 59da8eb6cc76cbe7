"""Conversations that a right front-end might have with a back-end, from what that offers, and any request."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Final

from ..conformance.backend_bench import FEATURES, PROTOCOL, Offer
from ..protocol.layout import Payload
from ..protocol.numbers import (
    MAP_RW,
    NEED_REPLY,
    PAGE,
    VERSION,
    VRING_NO_FD,
    BackendRequest,
    FrontendRequest,
    ProtocolFeature,
)
from ..protocol.numbers import VhostFeature as V
from ..protocol.payloads import (
    U64,
    Config,
    DeviceState,
    Inflight,
    Iotlb,
    Log,
    MemoryRegion,
    MemoryTable,
    Mmap,
    SingleRegion,
    VringAddr,
    VringState,
)
from ..protocol.rules import FRONTEND, Channel, Fds, Reply, Rule
from ..virtio.split import ring_sizes
from .act import Act
from .fds import CHANNEL, MEMORY

F, Q, B = ProtocolFeature, FrontendRequest, BackendRequest
Offered = tuple[Random, Offer]
STEP: Final = 0x4000
"""Bytes from one ring to the next."""
RINGS: Final = 4
ASKS: Final = 0.7
"""How often an acknowledgement is asked for: it keeps both sides in step, so that it is known which message did it."""
_STATUS: Final = (0, 1, 3, 11, 15, 0x80)
_REGION: Final = (0, MEMORY, 0, 0)
_SECOND: Final = (MEMORY, MEMORY, MEMORY, 0)


def _index(random: Random, offer: Offer) -> int:
    return random.randrange(max(1, min(offer.queues, RINGS)))


def _address(random: Random, offer: Offer) -> VringAddr:
    index = _index(random, offer)
    return _ring(index, 16)


def _ring(index: int, size: int) -> VringAddr:
    at = index * STEP
    descriptors, available, _ = ring_sizes(size)
    return VringAddr(index, 0, at, at + descriptors + -(-available // 4) * 4, at + descriptors, 0)


_BODIES: Final[dict[int, Callable[[Random, Offer], Payload]]] = {
    Q.SET_FEATURES: lambda _, offer: U64(offer.features & FEATURES),
    Q.SET_PROTOCOL_FEATURES: lambda _, offer: U64(offer.protocol & PROTOCOL),
    Q.SET_MEM_TABLE: lambda random, _: MemoryTable([MemoryRegion(*_REGION), MemoryRegion(*_SECOND)][: random.randint(1, 2)]),
    Q.SET_LOG_BASE: lambda _, offer: Log(MEMORY, 0) if offer.protocol >> F.LOG_SHMFD & 1 else U64(0),
    Q.SET_VRING_NUM: lambda random, offer: VringState(_index(random, offer), 1 << random.randrange(10)),
    Q.SET_VRING_ADDR: _address,
    Q.SET_VRING_BASE: lambda random, offer: VringState(_index(random, offer), random.randrange(1 << 16)),
    Q.SET_VRING_ENABLE: lambda random, offer: VringState(_index(random, offer), random.randrange(2)),
    Q.SET_VRING_KICK: lambda random, offer: U64(_index(random, offer)),
    Q.SET_VRING_CALL: lambda random, offer: U64(_index(random, offer)),
    Q.SET_VRING_ERR: lambda random, offer: U64(_index(random, offer)),
    Q.IOTLB_MSG: lambda random, _: Iotlb(0, PAGE, 0, random.randint(1, 3), random.randint(1, 6)),
    Q.GET_CONFIG: lambda random, _: _config(random, write=False),
    Q.SET_CONFIG: lambda random, _: _config(random, write=True),
    Q.GET_INFLIGHT_FD: lambda _, offer: Inflight(0, 0, max(1, offer.queues), 16),
    Q.SET_INFLIGHT_FD: lambda _, offer: Inflight(MEMORY, 0, max(1, offer.queues), 16),
    Q.ADD_MEM_REG: lambda _, __: SingleRegion(*_SECOND),
    Q.REM_MEM_REG: lambda _, __: SingleRegion(*_SECOND),
    Q.SET_STATUS: lambda random, _: U64(random.choice(_STATUS)),
    Q.NET_SET_MTU: lambda _, __: U64(1500),
    Q.SET_DEVICE_STATE_FD: lambda random, _: DeviceState(random.randrange(2), 0),
}
_WANTED: Final[dict[int, str]] = {
    Q.SET_BACKEND_REQ_FD: CHANNEL,
    Q.SET_LOG_FD: "eventfd",
    Q.SET_VRING_KICK: "kick",
    Q.SET_VRING_CALL: "eventfd",
    Q.SET_VRING_ERR: "eventfd",
    Q.GPU_SET_SOCKET: "socket",
    Q.SET_DEVICE_STATE_FD: "pipe to write",
}
"""The kinds of fds that requests want, where that is not memory."""
_EARLY: Final[dict[ProtocolFeature, tuple[int, ...]]] = {
    F.MQ: (Q.GET_QUEUE_NUM,),
    F.BACKEND_REQ: (Q.SET_BACKEND_REQ_FD,),
    F.CONFIGURE_MEM_SLOTS: (Q.GET_MAX_MEM_SLOTS,),
    F.SHMEM: (Q.GET_SHMEM_CONFIG,),
    F.CONFIG: (Q.GET_CONFIG,),
    F.STATUS: (Q.SET_STATUS, Q.GET_STATUS),
    F.INFLIGHT_SHMFD: (Q.GET_INFLIGHT_FD, Q.SET_INFLIGHT_FD),
}
"""What comes before memory and rings, by the feature that it takes."""


def plausible(random: Random, offer: Offer, request: int, body: Payload | None = None) -> Act:
    """A request of a front-end as it should be, with fds, and need_reply where that may be."""
    rule = FRONTEND[request]
    flags = VERSION
    agreed = offer.protocol >> F.REPLY_ACK & 1 and request != Q.SET_PROTOCOL_FEATURES
    if agreed and rule.reply is not Reply.OWN and random.random() < ASKS:
        flags |= NEED_REPLY
    payload = body.pack() if body else _payload(random, offer, rule)
    return Act(request, payload, _fds(rule, offer, payload), flags)


def opening(random: Random, offer: Offer) -> list[Act]:
    """Negotiation, memory and rings, as far as the back-end offers them."""

    def has(feature: ProtocolFeature) -> bool:
        return bool(offer.protocol >> feature & 1)

    requests: list[int] = [Q.GET_FEATURES]
    if offer.features >> V.PROTOCOL_FEATURES & 1:
        requests += [Q.GET_PROTOCOL_FEATURES, Q.SET_PROTOCOL_FEATURES]
    requests += [Q.SET_OWNER, Q.SET_FEATURES]
    for feature, wanted in _EARLY.items():
        if has(feature) and random.random() < 0.8:
            requests += wanted
    acts = [plausible(random, offer, request) for request in (*requests, Q.SET_MEM_TABLE)]
    for index in range(random.randint(0, max(1, min(offer.queues, RINGS)))):
        acts += ring(random, offer, index)
    return acts


def ring(random: Random, offer: Offer, index: int) -> list[Act]:
    """Ring `index` is started."""
    bodies: list[tuple[int, Payload]] = [
        (Q.SET_VRING_NUM, VringState(index, 16)),
        (Q.SET_VRING_BASE, VringState(index, 0)),
        (Q.SET_VRING_ADDR, _ring(index, 16)),
        (Q.SET_VRING_CALL, U64(index)),
        (Q.SET_VRING_KICK, U64(index)),
    ]
    if offer.features >> V.PROTOCOL_FEATURES & 1:
        bodies.append((Q.SET_VRING_ENABLE, VringState(index, 1)))
    return [plausible(random, offer, request, body) for request, body in bodies]


def conversation(random: Random, offer: Offer) -> list[Act]:
    """All of it, then some requests that a running device gets, and a last one that tells that it lives."""
    acts = opening(random, offer)
    known = [rule for rule in FRONTEND.values() if not isinstance(rule.gate, F) or offer.protocol >> rule.gate & 1]
    acts += [plausible(random, offer, random.choice(known).id) for _ in range(random.randint(0, 6))]
    if random.random() < 0.3:
        acts.append(plausible(random, offer, Q.GET_VRING_BASE))
    return [*acts, Act(Q.GET_FEATURES)]


def asking(random: Random, request: int) -> Act:
    """A request of a back-end as it should be."""
    size = PAGE * random.choice((1, 2, 16))
    at = PAGE * random.randrange(64)
    bodies: dict[int, bytes] = {
        B.SHMEM_MAP: Mmap(0, 0, at, size, MAP_RW).pack(),
        B.SHMEM_UNMAP: Mmap(0, 0, at, size).pack(),
        B.VRING_CALL: VringState(0, 0).pack(),
        B.VRING_ERR: VringState(0, 0).pack(),
        B.IOTLB_MSG: Iotlb(0, PAGE, 0, 1, 1).pack(),
        B.CONFIG_CHANGE_MSG: b"",
        B.VRING_HOST_NOTIFIER_MSG: bytes(24),
    }
    fds = ("memory",) if request == B.SHMEM_MAP else ()
    flags = VERSION | (NEED_REPLY if random.random() < 0.8 else 0)
    return Act(request, bodies.get(request, bytes(16)), fds, flags, Channel.BACKEND)


def _payload(random: Random, offer: Offer, rule: Rule) -> bytes:
    if make := _BODIES.get(rule.id):
        return make(random, offer).pack()
    payload = rule.payload
    return bytes(min(payload.SIZES)) if payload else b""


def _fds(rule: Rule, offer: Offer, payload: bytes) -> tuple[str, ...]:
    kind = _WANTED.get(rule.id, "memory")
    if rule.fds is Fds.PER_REGION:
        return (kind,) * int.from_bytes(payload[:4], "little")
    if rule.fds is Fds.UNLESS_NO_FD:
        return () if int.from_bytes(payload[:8], "little") & VRING_NO_FD else (kind,)
    if rule.fds is Fds.IF_LOG_SHMFD:
        return (kind,) if offer.protocol >> F.LOG_SHMFD & 1 else ()
    return (kind,) if rule.fds is Fds.ONE else ()


def _config(random: Random, *, write: bool) -> Config:
    size = random.choice((1, 8, 60, 256))
    return Config(0, size, int(write and random.random() < 0.1), bytes(size))
