"""Rules about requests whose feature was not negotiated."""

from __future__ import annotations

from typing import Final

from ...protocol.numbers import REQUIRES, FrontendRequest, ProtocolFeature, VhostFeature, mask
from ...protocol.payloads import Config, DeviceState, Inflight, SingleRegion, VringState
from ...protocol.rules import FRONTEND, Reply
from ..backend_bench import BACK_END, FEATURES, PROTOCOL, BackendBench, Body
from ..family import declare
from ..outcome import NotApplicable
from ..rule import Level

F, Q = ProtocolFeature, FrontendRequest
_REGION: Final = SingleRegion(0, 1 << 20, 0, 0)
GATED: Final[tuple[tuple[FrontendRequest, ProtocolFeature, Body], ...]] = (
    (Q.GET_QUEUE_NUM, F.MQ, None),
    (Q.SEND_RARP, F.RARP, bytes(8)),
    (Q.NET_SET_MTU, F.MTU, bytes(8)),
    (Q.SET_BACKEND_REQ_FD, F.BACKEND_REQ, None),
    (Q.SET_VRING_ENDIAN, F.CROSS_ENDIAN, VringState(0, 0)),
    (Q.GET_CONFIG, F.CONFIG, Config(0, 1, 0, bytes(1))),
    (Q.SET_CONFIG, F.CONFIG, Config(0, 1, 0, bytes(1))),
    (Q.POSTCOPY_LISTEN, F.PAGEFAULT, None),
    (Q.POSTCOPY_END, F.PAGEFAULT, None),
    (Q.GET_INFLIGHT_FD, F.INFLIGHT_SHMFD, Inflight(0, 0, 1, 128)),
    (Q.SET_INFLIGHT_FD, F.INFLIGHT_SHMFD, Inflight(4096, 0, 1, 128)),
    (Q.RESET_DEVICE, F.RESET_DEVICE, None),
    (Q.VRING_KICK, F.INBAND_NOTIFICATIONS, VringState(0, 0)),
    (Q.GET_MAX_MEM_SLOTS, F.CONFIGURE_MEM_SLOTS, None),
    (Q.ADD_MEM_REG, F.CONFIGURE_MEM_SLOTS, _REGION),
    (Q.REM_MEM_REG, F.CONFIGURE_MEM_SLOTS, _REGION),
    (Q.SET_STATUS, F.STATUS, bytes(8)),
    (Q.GET_STATUS, F.STATUS, None),
    (Q.SET_DEVICE_STATE_FD, F.DEVICE_STATE, DeviceState(0, 0)),
    (Q.CHECK_DEVICE_STATE, F.DEVICE_STATE, None),
    (Q.GET_SHMEM_CONFIG, F.SHMEM, None),
)
"""Requests, what gates them, and a payload that would do."""
WITH_FD: Final = (Q.SET_INFLIGHT_FD, Q.ADD_MEM_REG, Q.SET_BACKEND_REQ_FD, Q.SET_DEVICE_STATE_FD)


def rule_name(request: FrontendRequest, feature: ProtocolFeature) -> str:
    """The name of the rule about that request."""
    return f"{request.name.lower()}_is_not_obeyed_without_{feature.name.lower()}"


def _gate(request: FrontendRequest, feature: ProtocolFeature, body: Body) -> None:
    rule = FRONTEND[request]
    own = rule.reply is Reply.OWN

    def check(bench: BackendBench) -> None:
        if rule.if_offered and bench.value(Q.GET_PROTOCOL_FEATURES) >> feature & 1:
            raise NotApplicable(f"it offers {feature.name}, and that is all this request needs")
        bench.agree(protocol=PROTOCOL & ~mask(_with_dependents(feature)))
        fds = [bench.memory_file()] if request in WITH_FD else []
        (bench.declined if own else bench.refused)(request, body, fds=fds)

    word = "offered" if rule.if_offered else "negotiated"
    text = f"{request.name} has a meaning once {feature.name} was {word}: without it, it is not obeyed."
    declare(
        BACK_END, "Protocol features", rule_name(request, feature), text, check, level=Level.ADVICE, protocol=[F.REPLY_ACK]
    )


def _with_dependents(feature: ProtocolFeature) -> set[ProtocolFeature]:
    """The feature and what is not agreed on without it."""
    found = {feature}
    while more := {other for other, needs in REQUIRES.items() if found & {*needs}} - found:
        found |= more
    return found


for _request, _feature, _body in GATED:
    _gate(_request, _feature, _body)


@BACK_END.rule("VHOST_USER_SET_VRING_ENABLE", level=Level.ADVICE, protocol=[F.REPLY_ACK])
def set_vring_enable_is_not_obeyed_without_protocol_features(bench: BackendBench) -> None:
    """SET_VRING_ENABLE is sent only if bit 30, PROTOCOL_FEATURES, was negotiated: without it, it is not obeyed."""
    bench.agree(features=FEATURES & ~(1 << VhostFeature.PROTOCOL_FEATURES))
    bench.refused(Q.SET_VRING_ENABLE, VringState(0, 1))
