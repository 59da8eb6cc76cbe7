"""Rules about payloads that are longer or shorter than they have to be."""

from __future__ import annotations

from typing import Final

from ...protocol.layout import Payload
from ...protocol.numbers import FrontendRequest, ProtocolFeature
from ...protocol.payloads import U64, Inflight, SingleRegion, VringAddr, VringState
from ..backend_bench import BACK_END, BackendBench
from ..family import declare
from ..rule import Level

F, Q = ProtocolFeature, FrontendRequest
PAYLOADS: Final[tuple[tuple[FrontendRequest, Payload, ProtocolFeature | None], ...]] = (
    (Q.SET_PROTOCOL_FEATURES, U64(8), None),
    (Q.SET_VRING_NUM, VringState(0, 16), None),
    (Q.SET_VRING_ADDR, VringAddr(0, 0, 0, 0x3000, 0x2000, 0), None),
    (Q.SET_VRING_BASE, VringState(0, 0), None),
    (Q.SET_VRING_ENABLE, VringState(0, 0), None),
    (Q.SET_STATUS, U64(1), F.STATUS),
    (Q.SET_INFLIGHT_FD, Inflight(0, 0, 1, 128), F.INFLIGHT_SHMFD),
    (Q.ADD_MEM_REG, SingleRegion(0, 1 << 20, 0, 0), F.CONFIGURE_MEM_SLOTS),
)
"""A right payload of requests that are acknowledged, and the feature that they need."""
DELTAS: Final = (-8, -1, 1, 8)
WITH_FD: Final = (Q.SET_INFLIGHT_FD, Q.ADD_MEM_REG)


def rule_name(request: FrontendRequest, delta: int) -> str:
    """The name of the rule about a payload that is `delta` bytes too long."""
    size = f"{abs(delta)}_byte{'s' if abs(delta) > 1 else ''}_too_{'long' if delta > 0 else 'short'}"
    return f"{request.name.lower()}_is_refused_when_{size}"


def _size(request: FrontendRequest, payload: Payload, feature: ProtocolFeature | None, delta: int) -> None:
    def check(bench: BackendBench) -> None:
        bench.agree()
        data = payload.pack()
        bench.refused(request, data[:delta] if delta < 0 else data + bytes(delta), fds=fds_for(bench, request))

    size = len(payload.pack())
    text = f"{request.name} has a payload of {size} bytes: one of {size + delta} bytes is not obeyed."
    features = [F.REPLY_ACK, *([feature] if feature else [])]
    declare(BACK_END, "Header", rule_name(request, delta), text, check, level=Level.SHOULD, protocol=features)


def fds_for(bench: BackendBench, request: FrontendRequest) -> list[int]:
    """The fd of memory that goes with some requests."""
    return [bench.memory_file()] if request in WITH_FD else []


for _request, _payload, _feature in PAYLOADS:
    for _delta in DELTAS:
        _size(_request, _payload, _feature, _delta)
