"""How a front-end and its back-end agree on features, when they meet."""

from __future__ import annotations

from typing import Final

from .asking import Asking
from .errors import LocalProtocolError
from .protocol.dialects import diagnose_back_end
from .protocol.numbers import FrontendRequest, ProtocolFeature, VhostFeature, mask, missing_requirements
from .protocol.payloads import U64
from .protocol.session import Session
from .virtio.numbers import Feature

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


def wanted_features(*, packed: bool, device: int) -> int:
    """All that is acknowledged if it is offered. LocalProtocolError if `device` has bits that are not of a device type."""
    if shared := device & ~DEVICE_FEATURES:
        text = f"SET_FEATURES features {device:#x} has bits that are not of a device type: {shared:#x}"
        raise LocalProtocolError(text, request="SET_FEATURES", field="features", value=device, limit=DEVICE_FEATURES)
    return FEATURES | packed << Feature.RING_PACKED | device


def negotiate(asking: Asking, session: Session, features: int) -> str | None:
    """Acknowledge what is offered of `features`; why the back-end's shared memory is not to be had, if so."""
    asking.request(Q.GET_FEATURES)
    diagnosis = None
    if session.state.offered >> VhostFeature.PROTOCOL_FEATURES & 1:
        diagnosis = _negotiate_protocol(asking, session)
    asking.request(Q.SET_OWNER)
    asking.request(Q.SET_FEATURES, U64(session.state.offered & features))
    return diagnosis


def _negotiate_protocol(asking: Asking, session: Session) -> str | None:
    reply = asking.request(Q.GET_PROTOCOL_FEATURES)
    offered = session.state.protocol_offered
    asking.request(Q.SET_PROTOCOL_FEATURES, U64(session.dialect.to_wire(_acceptable(offered & PROTOCOL_FEATURES))))
    _learn_counts(asking, session)
    return diagnose_back_end(session.dialect, reply.value) if isinstance(reply, U64) else None


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
