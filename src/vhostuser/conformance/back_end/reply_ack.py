"""Rules about which requests are answered, how, and how often."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from ...protocol.numbers import NEED_REPLY, VERSION, FrontendRequest, ProtocolFeature, VhostFeature
from ...protocol.payloads import U64, Config, VringAddr, VringState
from ...testing.files import message
from ...transport.fds import HasFileno
from ..backend_bench import BACK_END, BackendBench, Body
from ..family import declare
from ..outcome import Deviation
from ..rule import Level

F, Q = ProtocolFeature, FrontendRequest
REPLY_ACK: Final = "VHOST_USER_PROTOCOL_F_REPLY_ACK"
SIZE: Final = 16
_OF_BIT_30: Final = (Q.SET_PROTOCOL_FEATURES, Q.SET_VRING_ENABLE)
"""The requests of a back-end that has protocol features at all."""
ADDRESSES: Final = VringAddr(0, 0, 0, 0x3000, 0x2000, 0)


def _nothing(bench: BackendBench) -> list[int | HasFileno]:
    return []


def _eventfd(bench: BackendBench) -> list[int | HasFileno]:
    return [bench.eventfd()]


@dataclass(frozen=True, slots=True)
class Plain:
    """A request that any back-end takes once features and memory are agreed on."""

    request: FrontendRequest
    body: Callable[[BackendBench], Body] = lambda bench: None
    fds: Callable[[BackendBench], list[int | HasFileno]] = _nothing
    feature: ProtocolFeature | None = None
    """What it needs besides REPLY_ACK."""

    @property
    def name(self) -> str:
        """As it stands in the name of a rule."""
        return self.request.name.lower()


ACKNOWLEDGED: Final = (
    Plain(Q.SET_OWNER),
    Plain(Q.SET_FEATURES, lambda bench: U64(bench.acknowledged)),
    Plain(Q.SET_PROTOCOL_FEATURES, lambda bench: U64(bench.protocol_acknowledged)),
    Plain(Q.SET_VRING_NUM, lambda bench: VringState(0, SIZE)),
    Plain(Q.SET_VRING_BASE, lambda bench: VringState(0, 0)),
    Plain(Q.SET_VRING_ADDR, lambda bench: ADDRESSES),
    Plain(Q.SET_VRING_CALL, lambda bench: U64(0), _eventfd),
    Plain(Q.SET_VRING_ERR, lambda bench: U64(0), _eventfd),
    Plain(Q.SET_VRING_ENABLE, lambda bench: VringState(0, 0)),
    Plain(Q.SET_STATUS, lambda bench: U64(1), feature=F.STATUS),
    Plain(Q.RESET_DEVICE, feature=F.RESET_DEVICE),
)
"""Requests that are answered by an acknowledgement alone."""
ANSWERED: Final = (
    Plain(Q.GET_FEATURES),
    Plain(Q.GET_PROTOCOL_FEATURES),
    Plain(Q.GET_QUEUE_NUM, feature=F.MQ),
    Plain(Q.GET_VRING_BASE, lambda bench: VringState(0, 0)),
    Plain(Q.GET_STATUS, feature=F.STATUS),
    Plain(Q.GET_CONFIG, lambda bench: Config(0, 8, 0, bytes(8)), feature=F.CONFIG),
    Plain(Q.GET_MAX_MEM_SLOTS, feature=F.CONFIGURE_MEM_SLOTS),
    Plain(Q.GET_SHMEM_CONFIG, feature=F.SHMEM),
)
"""Requests that have a reply of their own."""


def prepare(bench: BackendBench, plain: Plain) -> None:
    """Bring the back-end to where the request is in order."""
    bench.agree(own=plain.request is not Q.SET_OWNER)
    if plain.request in (Q.SET_VRING_ADDR, Q.GET_VRING_BASE):
        bench.share_memory()
        bench.accepted(Q.SET_VRING_NUM, VringState(0, SIZE))
    if plain.request is Q.GET_VRING_BASE:
        bench.accepted(Q.SET_VRING_BASE, VringState(0, 0))
        bench.accepted(Q.SET_VRING_ADDR, ADDRESSES)


def _acknowledged(plain: Plain) -> None:
    def check(bench: BackendBench) -> None:
        prepare(bench, plain)
        bench.accepted(plain.request, plain.body(bench), fds=plain.fds(bench))
        bench.alive()

    text = f"{plain.request.name} with need_reply is acknowledged by its number and a status of 8 bytes, 0 for success."
    features = [F.REPLY_ACK, *([plain.feature] if plain.feature else [])]
    declare(BACK_END, REPLY_ACK, f"{plain.name}_is_acknowledged", text, check, protocol=features)


def _silent(plain: Plain) -> None:
    def check(bench: BackendBench) -> None:
        prepare(bench, plain)
        bench.ignored(plain.request, plain.body(bench), fds=plain.fds(bench))

    text = f"{plain.request.name} without need_reply is not answered."
    features = [plain.feature] if plain.feature else []
    bits = [VhostFeature.PROTOCOL_FEATURES] if plain.request in _OF_BIT_30 else []
    declare(BACK_END, REPLY_ACK, f"{plain.name}_is_not_answered_unasked", text, check, protocol=features, features=bits)


def _once(plain: Plain) -> None:
    def check(bench: BackendBench) -> None:
        prepare(bench, plain)
        bench.answered(plain.request, plain.body(bench), flags=VERSION | NEED_REPLY)
        bench.alive()

    text = f"{plain.request.name} has a reply of its own: with need_reply it has that one, and no other."
    features = [F.REPLY_ACK, *([plain.feature] if plain.feature else [])]
    declare(BACK_END, REPLY_ACK, f"{plain.name}_with_need_reply_is_answered_once", text, check, protocol=features)


for _plain in ACKNOWLEDGED:
    _acknowledged(_plain)
    _silent(_plain)
for _plain in ANSWERED:
    _once(_plain)


@BACK_END.rule(REPLY_ACK, level=Level.SHOULD)
def need_reply_means_nothing_without_reply_ack(bench: BackendBench) -> None:
    """Need_reply has a meaning once REPLY_ACK is negotiated: before, nobody waits for an answer to it."""
    bench.agree(protocol=0)
    bench.ignored(Q.SET_VRING_NUM, VringState(0, SIZE), flags=VERSION | NEED_REPLY)


@BACK_END.rule(REPLY_ACK, protocol=[F.REPLY_ACK])
def acknowledgements_come_in_the_order_of_the_requests(bench: BackendBench) -> None:
    """Requests are handled in order: so are their acknowledgements and replies."""
    bench.agree()
    asked = [Q.SET_VRING_NUM, Q.GET_FEATURES, Q.SET_VRING_BASE, Q.GET_PROTOCOL_FEATURES, Q.SET_FEATURES]
    bodies = {
        Q.SET_VRING_NUM: VringState(0, SIZE),
        Q.SET_VRING_BASE: VringState(0, 0),
        Q.SET_FEATURES: U64(bench.acknowledged),
    }
    flags = VERSION | NEED_REPLY
    bench.send(
        b"".join(message(each, bodies.get(each), flags=flags if each.name[:3] == "SET" else VERSION) for each in asked)
    )
    got = [bench.receive().request for _ in asked]
    if got != asked:
        raise Deviation(f"answers to {[int(each) for each in asked]}", f"answers to {got}")


@BACK_END.rule(REPLY_ACK, protocol=[F.REPLY_ACK], level=Level.SHOULD)
def an_unknown_request_leaves_the_connection_in_step(bench: BackendBench) -> None:
    """A request that is unknown is refused by a status; its payload is skipped, and the connection goes on."""
    bench.agree()
    bench.refused_in_step(99, bytes(24))


@BACK_END.rule("Communication", level=Level.SHOULD)
def an_unknown_request_that_asks_for_nothing_is_not_answered(bench: BackendBench) -> None:
    """A request that is unknown and wants no acknowledgement is skipped, its payload with it."""
    bench.agree()
    bench.ignored(99, bytes(24))
