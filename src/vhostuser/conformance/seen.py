"""What a front-end has sent: its requests as they came, and questions about them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeVar

from ..errors import RemoteProtocolError
from ..protocol.framing import decode_payload
from ..protocol.layout import Payload
from ..protocol.numbers import NEED_REPLY, VRING_INDEX_MASK, FrontendRequest, VhostFeature
from ..protocol.payloads import U64, VringState
from ..protocol.rules import FRONTEND
from ..trace.event import FdNote

Q = FrontendRequest
P = TypeVar("P", bound=Payload)


@dataclass(frozen=True, slots=True)
class Seen:
    """One message on the main channel."""

    request: int
    flags: int
    payload: bytes
    fds: tuple[FdNote, ...]
    protocol: int
    """The protocol features that were acknowledged when it came."""

    @property
    def name(self) -> str:
        """The request's name."""
        rule = FRONTEND.get(self.request)
        return rule.name if rule else f"request {self.request}"

    @property
    def asks(self) -> bool:
        """It wants an acknowledgement."""
        return bool(self.flags & NEED_REPLY)

    @property
    def number(self) -> int:
        """Its payload as a number: of what has U64 for its payload."""
        return int.from_bytes(self.payload[:8], "little")

    def body(self) -> Payload | None:
        """Its payload. RemoteProtocolError if it is none of its request."""
        rule = FRONTEND.get(self.request)
        return decode_payload(rule.name, rule.payload_under(self.protocol), self.payload) if rule else None


class Conversation(list[Seen]):
    """All that came on the main channel, in order."""

    def of(self, *requests: int) -> list[Seen]:
        """Those that are one of these requests."""
        return [seen for seen in self if seen.request in requests]

    def last(self, request: int) -> int:
        """The number in the last such request; 0 if there was none."""
        found = self.of(request)
        return found[-1].number if found else 0

    def bodies(self, kind: type[P], *requests: int) -> Iterator[tuple[Seen, P]]:
        """Those that are one of these requests and whose payload is one of this kind, with it."""
        for seen in self.of(*requests):
            try:
                body = seen.body()
            except RemoteProtocolError:
                continue
            if isinstance(body, kind):
                yield seen, body

    @property
    def features(self) -> int:
        """The features that were acknowledged."""
        return self.last(Q.SET_FEATURES)

    @property
    def running(self) -> set[int]:
        """The rings that run: started by a kick's fd, and enabled where that has to be said."""
        running: set[int] = set()
        enabled: set[int] = set()
        for seen in self:
            if seen.request == Q.SET_VRING_KICK:
                running.add(seen.number & VRING_INDEX_MASK)
            elif seen.request == Q.VRING_KICK:
                running.add(seen.number & 0xFFFFFFFF)
            elif seen.request in (Q.GET_VRING_BASE, Q.SET_VRING_ENABLE) and len(seen.payload) == VringState.STRUCT.size:
                state = VringState.unpack(seen.payload)
                if seen.request == Q.GET_VRING_BASE:
                    running.discard(state.index)
                elif state.num:
                    enabled.add(state.index)
                else:
                    enabled.discard(state.index)
            elif seen.request == Q.RESET_DEVICE or (seen.request == Q.SET_STATUS and not seen.number):
                running, enabled = set(), set()
        return running & enabled if self.features >> VhostFeature.PROTOCOL_FEATURES & 1 else running

    @property
    def stops(self) -> int:
        """How often a ring was stopped, or the device reset."""
        resets = [seen for seen in self.of(Q.SET_STATUS) if not seen.number]
        return len(self.of(Q.GET_VRING_BASE, Q.RESET_DEVICE)) + len(resets)


def u64(seen: Seen) -> int | None:
    """The number in a payload of 8 bytes; None of any other."""
    return seen.number if len(seen.payload) == U64.STRUCT.size else None
