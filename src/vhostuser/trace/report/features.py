"""Which features were offered, acknowledged and used: one row a bit."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final

from ...protocol.numbers import NEED_REPLY, FrontendRequest, ProtocolFeature, bits, protocol_feature_names
from ...protocol.payloads import U64
from ...protocol.state import Owed
from ...virtio.numbers import feature_names
from ..conversation import Exchange

F, Q = ProtocolFeature, FrontendRequest
Row = dict[str, str | int | bool]
_ASKED: Final = {Q.GET_FEATURES: "offered", Q.GET_PROTOCOL_FEATURES: "protocol_offered"}
_SET: Final = {Q.SET_FEATURES: "acknowledged", Q.SET_PROTOCOL_FEATURES: "protocol_acknowledged"}


@dataclass(slots=True)
class Features:
    """What one connection agreed on; masks as they were on the wire, all that were ever sent."""

    offered: int = 0
    acknowledged: int = 0
    protocol_offered: int = 0
    protocol_acknowledged: int = 0
    used: set[int] = field(default_factory=set)
    """Protocol features that a message made use of."""

    def take(self, exchange: Exchange) -> None:
        """Follow one exchange."""
        request = exchange.message.request
        if exchange.message.asks and exchange.request.rule and exchange.request.rule.channel.value == "front-end":
            if request in _SET and isinstance(exchange.request.body, U64):
                self._learn(_SET[Q(request)], exchange.request.body.value)
            if request in _ASKED and exchange.reply and isinstance(exchange.reply.body, U64):
                self._learn(_ASKED[Q(request)], exchange.reply.body.value)
        self.used |= _used(exchange)

    def _learn(self, name: str, value: int) -> None:
        setattr(self, name, getattr(self, name) | value)

    def rows(self) -> dict[str, list[Row]]:
        """Both tables. Whether a virtio feature is used no message says, but PROTOCOL_FEATURES by what follows."""
        virtio = {30} if self.protocol_offered else set()
        return {
            "virtio": _rows(self.offered, self.acknowledged, virtio, feature_names),
            "protocol": _rows(self.protocol_offered, self.protocol_acknowledged, self.used, protocol_feature_names),
        }


def _rows(offered: int, acknowledged: int, used: set[int], names: Callable[[int], Iterable[str]]) -> list[Row]:
    return [
        {
            "bit": bit,
            "name": next(iter(names(1 << bit))),
            "offered": bool(offered >> bit & 1),
            "acknowledged": bool(acknowledged >> bit & 1),
            "used": bit in used,
        }
        for bit in sorted({*bits(offered), *bits(acknowledged), *used})
    ]


def _used(exchange: Exchange) -> set[int]:
    """The protocol features that this exchange makes use of."""
    rule, found = exchange.request.rule, set()
    if rule and isinstance(rule.gate, ProtocolFeature):
        found.add(int(rule.gate))
    if exchange.owed is Owed.ACK and exchange.message.flags & NEED_REPLY:
        found.add(int(F.REPLY_ACK))
    if rule and rule.channel.value == "back-end":
        found |= {int(F.BACKEND_REQ)} | ({int(F.BACKEND_SEND_FD)} if exchange.message.fds else set())
    return found
