"""How a front-end and its back-end agree on features, when they meet."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from .asking import Asking
from .errors import LocalProtocolError, RemoteProtocolError
from .protocol.dialects import diagnose_back_end
from .protocol.numbers import (
    FrontendRequest,
    ProtocolFeature,
    VhostFeature,
    mask,
    missing_requirements,
    protocol_feature_names,
)
from .protocol.payloads import U64
from .protocol.session import Session
from .protocol.state import State
from .virtio.numbers import Feature, feature_names

F, Q = ProtocolFeature, FrontendRequest

FEATURES: Final = mask((Feature.VERSION_1, Feature.RING_INDIRECT_DESC, VhostFeature.PROTOCOL_FEATURES))
DEVICE_FEATURES: Final = mask((*range(24), *range(50, 64)))
"""The bits that belong to device types ("Feature Bits")."""
PROTOCOL_FEATURES: Final = mask(
    (
        *(F.MQ, F.REPLY_ACK, F.BACKEND_REQ, F.CONFIG, F.BACKEND_SEND_FD, F.RESET_DEVICE, F.STATUS, F.SHMEM),
        F.CONFIGURE_MEM_SLOTS,
    )
)
"""What a front-end makes use of. GPA_ADDRESSES is not among it: its user addresses are guest addresses anyway, and a
back-end of rust-vmm's vhost 0.16 would take the bit for SHMEM."""
INFLIGHT: Final = mask((F.INFLIGHT_SHMFD, F.GET_VRING_BASE_INFLIGHT))
"""Who acknowledges the first has to set an area before a queue starts: libvhost-user ends a connection that did not."""


def wanted_features(*, packed: bool, in_order: bool, device: int) -> int:
    """All that is acknowledged if it is offered. LocalProtocolError if `device` has bits that are not of a device type."""
    if shared := device & ~DEVICE_FEATURES:
        text = f"SET_FEATURES features {device:#x} has bits that are not of a device type: {shared:#x}"
        raise LocalProtocolError(text, request="SET_FEATURES", field="features", value=device, limit=DEVICE_FEATURES)
    return FEATURES | packed << Feature.RING_PACKED | in_order << Feature.IN_ORDER | device


def wanted_protocol_features(*, inflight: bool, inband: bool, shared_objects: bool) -> int:
    """The same of protocol features, with those of three subjects on demand.

    "Inflight I/O tracking", "In-band notifications", "VHOST_USER_BACKEND_SHARED_OBJECT_ADD".
    """
    chosen = inband << F.INBAND_NOTIFICATIONS | shared_objects << F.SHARED_OBJECT
    return PROTOCOL_FEATURES | (INFLIGHT if inflight else 0) | chosen


def negotiate(asking: Asking, session: Session, features: int, protocol_features: int) -> str | None:
    """Acknowledge what is offered of both; why the back-end's shared memory is not to be had, if so."""
    asking.request(Q.GET_FEATURES)
    diagnosis = None
    if session.state.offered >> VhostFeature.PROTOCOL_FEATURES & 1:
        reply = asking.request(Q.GET_PROTOCOL_FEATURES)
        diagnosis = diagnose_back_end(session.dialect, reply.value) if isinstance(reply, U64) else None
        _acknowledge_protocol(asking, session, _acceptable(session.state.protocol_offered & protocol_features))
    asking.request(Q.SET_OWNER)
    asking.request(Q.SET_FEATURES, U64(session.state.offered & features))
    return diagnosis


def negotiate_again(asking: Asking, session: Session, before: State) -> None:
    """Acknowledge what was acknowledged before, no more and no less. RemoteProtocolError if it is not offered any more.

    So it is if there are fewer queues or memory slots than before: what is in use would find no place.
    """
    asking.request(Q.GET_FEATURES)
    _check_offered("GET_FEATURES", session.state.offered, before.acknowledged, feature_names)
    if before.acknowledged >> VhostFeature.PROTOCOL_FEATURES & 1:
        asking.request(Q.GET_PROTOCOL_FEATURES)
        offered, needed = session.state.protocol_offered, before.protocol_acknowledged
        _check_offered("GET_PROTOCOL_FEATURES", offered, needed, protocol_feature_names)
        _acknowledge_protocol(asking, session, needed)
        _check_count("GET_QUEUE_NUM", len(session.state.rings), len(before.rings))
        _check_count("GET_MAX_MEM_SLOTS", session.state.max_slots, before.max_slots)
    asking.request(Q.SET_OWNER)
    asking.request(Q.SET_FEATURES, U64(before.acknowledged))


def _check_offered(request: str, offered: int, needed: int, names: Callable[[int], frozenset[str]]) -> None:
    if missing := needed & ~offered:
        text = f"{request} features {offered:#x} lack {', '.join(sorted(names(missing)))}, in use since the last connection"
        raise RemoteProtocolError(text, request=request, field="features", value=offered, limit=needed)


def _check_count(request: str, count: int, needed: int) -> None:
    if count < needed:
        text = f"{request} num {count} is less than the {needed} of the last connection"
        raise RemoteProtocolError(text, request=request, field="num", value=count, limit=needed)


def _acknowledge_protocol(asking: Asking, session: Session, features: int) -> None:
    asking.request(Q.SET_PROTOCOL_FEATURES, U64(session.dialect.to_wire(features)))
    _learn_counts(asking, session)


def _learn_counts(asking: Asking, session: Session) -> None:
    if session.state.has(F.MQ):
        asking.request(Q.GET_QUEUE_NUM)
    if session.state.has(F.CONFIGURE_MEM_SLOTS):
        asking.request(Q.GET_MAX_MEM_SLOTS)


def _acceptable(value: int) -> int:
    """`value` without the features whose requirements it lacks, and without SHMEM where acknowledgements are lacking."""
    if not value >> F.REPLY_ACK & 1:
        value &= ~(1 << F.SHMEM)
    while missing := missing_requirements(value):
        value &= ~mask(feature for feature, _ in missing)
    return value
