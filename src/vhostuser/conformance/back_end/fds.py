"""Rules about fds that come with requests that take none, or fewer, and that are missing where one is needed."""

from __future__ import annotations

from typing import Final

from ...protocol.numbers import FrontendRequest, ProtocolFeature
from ...protocol.payloads import U64, Inflight, MemoryRegion, MemoryTable, SingleRegion, VringAddr, VringState
from ...testing.raw_frontend import MEMORY
from ..backend_bench import BACK_END, BackendBench, Body
from ..family import declare
from ..rule import Check, Level

F, Q = ProtocolFeature, FrontendRequest
ANCILLARY: Final = "Communication"
WITHOUT: Final[tuple[tuple[FrontendRequest, Body, ProtocolFeature | None], ...]] = (
    (Q.SET_FEATURES, None, None),
    (Q.SET_OWNER, None, None),
    (Q.SET_PROTOCOL_FEATURES, None, None),
    (Q.SET_VRING_NUM, VringState(0, 16), None),
    (Q.SET_VRING_BASE, VringState(0, 0), None),
    (Q.SET_VRING_ADDR, VringAddr(0, 0, 0, 0x3000, 0x2000, 0), None),
    (Q.SET_VRING_ENABLE, VringState(0, 0), None),
    (Q.SET_STATUS, U64(1), F.STATUS),
    (Q.RESET_DEVICE, None, F.RESET_DEVICE),
)
"""Requests that take no fd, a right payload, and what they need."""
_REGION: Final = SingleRegion(0, MEMORY, 0, 0)
WITH_ONE: Final[tuple[tuple[FrontendRequest, Body, ProtocolFeature | None], ...]] = (
    (Q.SET_VRING_KICK, U64(0), None),
    (Q.SET_VRING_CALL, U64(0), None),
    (Q.SET_VRING_ERR, U64(0), None),
    (Q.SET_LOG_FD, None, F.LOG_SHMFD),
    (Q.SET_BACKEND_REQ_FD, None, F.BACKEND_REQ),
    (Q.SET_INFLIGHT_FD, Inflight(4096, 0, 1, 16), F.INFLIGHT_SHMFD),
    (Q.ADD_MEM_REG, _REGION, F.CONFIGURE_MEM_SLOTS),
    (Q.SET_MEM_TABLE, MemoryTable([MemoryRegion(0, MEMORY, 0, 0)]), None),
)
"""The same of requests that come with one."""


def _extra(request: FrontendRequest, body: Body, feature: ProtocolFeature | None) -> None:
    def check(bench: BackendBench) -> None:
        bench.agree(own=request is not Q.SET_OWNER)
        values = {Q.SET_FEATURES: bench.acknowledged, Q.SET_PROTOCOL_FEATURES: bench.protocol_acknowledged}
        right = U64(values[request]) if request in values else body
        bench.refused(request, right, fds=[bench.eventfd()])

    name, text = (
        f"{request.name.lower()}_is_refused_with_an_fd",
        f"{request.name} carries no fd: one that does is not obeyed.",
    )
    _declare(name, text, check, Level.ADVICE, feature)


def _count(request: FrontendRequest, body: Body, feature: ProtocolFeature | None, count: int) -> None:
    def check(bench: BackendBench) -> None:
        bench.agree()
        bench.refused(request, body, fds=[bench.memory_file() for _ in range(count)])

    words = "without_an_fd" if not count else f"with_{count}_fds"
    text = f"{request.name} comes with one fd: with {count} it is not obeyed."
    _declare(f"{request.name.lower()}_is_refused_{words}", text, check, Level.SHOULD, feature)


def _declare(name: str, text: str, check: Check[BackendBench], level: Level, feature: ProtocolFeature | None) -> None:
    features = [F.REPLY_ACK, *([feature] if feature else [])]
    declare(BACK_END, ANCILLARY, name, text, check, level=level, protocol=features)


for _row in WITHOUT:
    _extra(*_row)
for _row in WITH_ONE:
    _count(*_row, count=0)
    _count(*_row, count=2)


@BACK_END.rule("VHOST_USER_SET_VRING_CALL", protocol=[F.REPLY_ACK])
def set_vring_call_may_come_without_an_fd(bench: BackendBench) -> None:
    """With bit 8 set there is no fd in SET_VRING_CALL: the driver polls, and the back-end has nothing to signal."""
    bench.agree()
    bench.accepted(Q.SET_VRING_CALL, U64(0x100))


@BACK_END.rule("VHOST_USER_SET_VRING_ERR", protocol=[F.REPLY_ACK])
def set_vring_err_may_come_without_an_fd(bench: BackendBench) -> None:
    """With bit 8 set there is no fd in SET_VRING_ERR."""
    bench.agree()
    bench.accepted(Q.SET_VRING_ERR, U64(0x100))


@BACK_END.rule("VHOST_USER_SET_VRING_CALL", level=Level.SHOULD, protocol=[F.REPLY_ACK])
def set_vring_call_may_come_many_times(bench: BackendBench) -> None:
    """The eventfd of a ring may be replaced at any time; three hundred times are no more than one."""
    bench.agree()
    eventfd = bench.eventfd()
    for _ in range(300):
        bench.request(Q.SET_VRING_CALL, U64(0), fds=[eventfd])
    bench.accepted(Q.SET_VRING_CALL, U64(0), fds=[eventfd])
