"""The two tables of the protocol, one row a request: payload, fds, reply, and the feature that gates it.

A request number means one thing on the main channel and another on the back-end channel, so there is a table for each.
All that knows a message (codec, session, explanation, tracer, conformance) reads these rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Final

from .layout import Payload
from .numbers import BackendRequest as B
from .numbers import FrontendRequest as Q
from .numbers import ProtocolFeature as F
from .payloads import (
    U64,
    Config,
    CryptoSession,
    DeviceState,
    Inflight,
    Iotlb,
    Log,
    MemoryTable,
    Mmap,
    ShmemConfig,
    SingleRegion,
    Uuid,
    VringAddr,
    VringArea,
    VringState,
    XenMemoryTable,
    XenSingleRegion,
)


class Channel(Enum):
    """Which socket a request travels on, named after who sends requests there."""

    FRONTEND = "front-end"
    BACKEND = "back-end"


class Fds(Enum):
    """How many fds come with a request."""

    NONE = "none"
    ONE = "one"
    OPTIONAL = "none or one"
    PER_REGION = "one for each region"
    UNLESS_NO_FD = "one, or none if bit 8 of the payload is set"
    IF_LOG_SHMFD = "one if LOG_SHMFD was negotiated"
    TOLERATED = "none (one is tolerated and closed)"


class Reply(Enum):
    """When a request is answered."""

    OWN = "always, by a reply of its own"
    ACK = "by an acknowledgement, if REPLY_ACK was negotiated and need_reply is set"
    OWN_IN_POSTCOPY = "by a reply of its own after POSTCOPY_LISTEN, else as an acknowledgement"
    OWN_WITH_LOG_SHMFD = "by a reply of its own if LOG_SHMFD was negotiated, else as an acknowledgement"


class Gate(Enum):
    """What gates a request where that is no protocol feature."""

    PROTOCOL_FEATURES_OFFERED = "VHOST_USER_F_PROTOCOL_FEATURES offered"
    PROTOCOL_FEATURES = "VHOST_USER_F_PROTOCOL_FEATURES negotiated"
    IOMMU_PLATFORM = "VIRTIO_F_ACCESS_PLATFORM negotiated"


PayloadType = type[Payload] | None


@dataclass(frozen=True, slots=True)
class Rule:
    """One request: what it carries, what answers it, what must have been negotiated."""

    request: Q | B
    payload: PayloadType
    fds: Fds = Fds.NONE
    reply: Reply = Reply.ACK
    answer: PayloadType = U64
    answer_fds: range = range(1)
    """How many fds may come with the answer: a range to test with `in`."""
    gate: F | Gate | None = None
    if_offered: bool = False
    """The back-end has to offer the protocol feature that gates it, and no more: so the text has it for some."""
    other_answers: tuple[type[Payload], ...] = ()
    """Payloads that peers give the answer where the text has `answer`: they are told apart by their size."""
    variants: tuple[tuple[F, PayloadType], ...] = ()
    """Payloads that a negotiated protocol feature puts in place of `payload`."""

    @property
    def id(self) -> int:
        """The request's number on its channel."""
        return int(self.request)

    @property
    def name(self) -> str:
        """The request's name without its prefix, as in `SHMEM_MAP`."""
        return self.request.name

    @property
    def channel(self) -> Channel:
        """The socket that this request travels on."""
        return Channel.FRONTEND if isinstance(self.request, Q) else Channel.BACKEND

    @property
    def section(self) -> str:
        """Where the specification describes it."""
        prefix = "VHOST_USER_" if self.channel is Channel.FRONTEND else "VHOST_USER_BACKEND_"
        kind = "Front-end" if self.channel is Channel.FRONTEND else "Back-end"
        return f"{kind} message types: {prefix}{self.name}"

    def payload_under(self, protocol_features: int) -> PayloadType:
        """The payload of this request once `protocol_features` (a mask) are negotiated."""
        for feature, payload in self.variants:
            if protocol_features >> feature & 1:
                return payload
        return self.payload

    def answer_of(self, size: int) -> PayloadType:
        """The payload of an answer that has so many bytes: the one of the text, unless another has that size."""
        return next((payload for payload in self.other_answers if size in payload.SIZES), self.answer)


ONE_FD = range(1, 2)
AT_MOST_ONE_FD = range(2)

_FRONTEND = (
    Rule(Q.GET_FEATURES, None, reply=Reply.OWN),
    Rule(Q.SET_FEATURES, U64),
    Rule(Q.SET_OWNER, None),
    Rule(Q.RESET_OWNER, None),
    Rule(
        Q.SET_MEM_TABLE,
        MemoryTable,
        Fds.PER_REGION,
        Reply.OWN_IN_POSTCOPY,
        MemoryTable,
        variants=((F.XEN_MMAP, XenMemoryTable),),
    ),
    Rule(Q.SET_LOG_BASE, U64, Fds.IF_LOG_SHMFD, Reply.OWN_WITH_LOG_SHMFD, Log, variants=((F.LOG_SHMFD, Log),)),
    Rule(Q.SET_LOG_FD, None, Fds.ONE),
    Rule(Q.SET_VRING_NUM, VringState),
    Rule(Q.SET_VRING_ADDR, VringAddr),
    Rule(Q.SET_VRING_BASE, VringState),
    Rule(Q.GET_VRING_BASE, VringState, reply=Reply.OWN, answer=VringState),
    Rule(Q.SET_VRING_KICK, U64, Fds.UNLESS_NO_FD),
    Rule(Q.SET_VRING_CALL, U64, Fds.UNLESS_NO_FD),
    Rule(Q.SET_VRING_ERR, U64, Fds.UNLESS_NO_FD),
    Rule(Q.GET_PROTOCOL_FEATURES, None, reply=Reply.OWN, gate=Gate.PROTOCOL_FEATURES_OFFERED),
    Rule(Q.SET_PROTOCOL_FEATURES, U64, gate=Gate.PROTOCOL_FEATURES_OFFERED),
    Rule(Q.GET_QUEUE_NUM, None, reply=Reply.OWN, gate=F.MQ, if_offered=True),
    Rule(Q.SET_VRING_ENABLE, VringState, gate=Gate.PROTOCOL_FEATURES),
    Rule(Q.SEND_RARP, U64, gate=F.RARP, if_offered=True),
    Rule(Q.NET_SET_MTU, U64, gate=F.MTU, if_offered=True),
    Rule(Q.SET_BACKEND_REQ_FD, None, Fds.ONE, gate=F.BACKEND_REQ, if_offered=True),
    Rule(Q.IOTLB_MSG, Iotlb, reply=Reply.OWN, gate=Gate.IOMMU_PLATFORM),
    Rule(Q.SET_VRING_ENDIAN, VringState, gate=F.CROSS_ENDIAN),
    Rule(Q.GET_CONFIG, Config, reply=Reply.OWN, answer=Config, gate=F.CONFIG),
    Rule(Q.SET_CONFIG, Config, gate=F.CONFIG),
    Rule(Q.CREATE_CRYPTO_SESSION, CryptoSession, reply=Reply.OWN, answer=CryptoSession, gate=F.CRYPTO_SESSION),
    Rule(Q.CLOSE_CRYPTO_SESSION, U64, gate=F.CRYPTO_SESSION),
    Rule(Q.POSTCOPY_ADVISE, None, reply=Reply.OWN, answer=None, answer_fds=ONE_FD, gate=F.PAGEFAULT),
    Rule(Q.POSTCOPY_LISTEN, None, gate=F.PAGEFAULT),
    Rule(Q.POSTCOPY_END, None, reply=Reply.OWN, gate=F.PAGEFAULT),
    Rule(Q.GET_INFLIGHT_FD, Inflight, reply=Reply.OWN, answer=Inflight, answer_fds=AT_MOST_ONE_FD, gate=F.INFLIGHT_SHMFD),
    Rule(Q.SET_INFLIGHT_FD, Inflight, Fds.ONE, gate=F.INFLIGHT_SHMFD),
    Rule(Q.GPU_SET_SOCKET, None, Fds.ONE),
    Rule(Q.RESET_DEVICE, None, gate=F.RESET_DEVICE),
    Rule(Q.VRING_KICK, VringState, gate=F.INBAND_NOTIFICATIONS),
    Rule(Q.GET_MAX_MEM_SLOTS, None, reply=Reply.OWN, gate=F.CONFIGURE_MEM_SLOTS),
    Rule(
        Q.ADD_MEM_REG,
        SingleRegion,
        Fds.ONE,
        Reply.OWN_IN_POSTCOPY,
        SingleRegion,
        gate=F.CONFIGURE_MEM_SLOTS,
        variants=((F.XEN_MMAP, XenSingleRegion),),
    ),
    Rule(
        Q.REM_MEM_REG,
        SingleRegion,
        Fds.TOLERATED,
        gate=F.CONFIGURE_MEM_SLOTS,
        variants=((F.XEN_MMAP, XenSingleRegion),),
    ),
    Rule(Q.SET_STATUS, U64, gate=F.STATUS),
    Rule(Q.GET_STATUS, None, reply=Reply.OWN, gate=F.STATUS),
    Rule(
        Q.GET_SHARED_OBJECT,
        Uuid,
        reply=Reply.OWN,
        answer=None,
        answer_fds=AT_MOST_ONE_FD,
        other_answers=(U64, Uuid),  # libvhost-user repeats the request's payload
        gate=F.SHARED_OBJECT,
    ),
    Rule(Q.SET_DEVICE_STATE_FD, DeviceState, Fds.ONE, Reply.OWN, answer_fds=AT_MOST_ONE_FD, gate=F.DEVICE_STATE),
    Rule(Q.CHECK_DEVICE_STATE, None, reply=Reply.OWN, gate=F.DEVICE_STATE),
    Rule(Q.GET_SHMEM_CONFIG, None, reply=Reply.OWN, answer=ShmemConfig, gate=F.SHMEM),
)

_BACKEND = (
    Rule(B.IOTLB_MSG, Iotlb, gate=Gate.IOMMU_PLATFORM),
    Rule(B.CONFIG_CHANGE_MSG, None, gate=F.CONFIG),
    Rule(B.VRING_HOST_NOTIFIER_MSG, VringArea, Fds.OPTIONAL, gate=F.HOST_NOTIFIER),
    Rule(B.VRING_CALL, VringState, gate=F.INBAND_NOTIFICATIONS),
    Rule(B.VRING_ERR, VringState, gate=F.INBAND_NOTIFICATIONS),
    Rule(B.SHARED_OBJECT_ADD, Uuid, gate=F.SHARED_OBJECT),
    Rule(B.SHARED_OBJECT_REMOVE, Uuid, gate=F.SHARED_OBJECT),
    Rule(B.SHARED_OBJECT_LOOKUP, Uuid, reply=Reply.OWN, answer_fds=AT_MOST_ONE_FD, gate=F.SHARED_OBJECT),
    Rule(B.SHMEM_MAP, Mmap, Fds.ONE, gate=F.SHMEM),
    Rule(B.SHMEM_UNMAP, Mmap, gate=F.SHMEM),
)

FRONTEND: Final[dict[int, Rule]] = {rule.id: rule for rule in _FRONTEND}
BACKEND: Final[dict[int, Rule]] = {rule.id: rule for rule in _BACKEND}
RULES: Final[dict[Channel, dict[int, Rule]]] = {Channel.FRONTEND: FRONTEND, Channel.BACKEND: BACKEND}


def rule_named(channel: Channel, name: str) -> Rule:
    """The row of the request `name` on `channel`; KeyError if there is none."""
    for rule in RULES[channel].values():
        if rule.name == name:
            return rule
    raise KeyError(name)
