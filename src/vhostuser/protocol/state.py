"""The state of one connection, as a value, and what reply a request is owed in it.

Rings ("Ring states"). A ring is started or stopped, and enabled or disabled: two bits that know nothing of each other.
SET_VRING_KICK starts it, or VRING_KICK, the in-band one; GET_VRING_BASE stops it. SET_FEATURES without PROTOCOL_FEATURES
(bit 30) enables every ring, for then there is no SET_VRING_ENABLE; with it rings begin disabled. A ring that is both started
and enabled is active: the back-end processes it. A reset (RESET_DEVICE, status 0) stops and disables all of them; what was
negotiated stays.

Shared memory ("SHMEM_MAP"). A mapping has a meaning only while a driver runs the device: from the first started ring until
the last one stops. Mapping ends earlier, when the first started ring is disabled on purpose: a front-end that stops disables
its rings one by one and stops them next, and QEMU 11.1 dies of a SHMEM_MAP that it has not read before.

Replies ("Communication", "REPLY_ACK"). Some requests are always answered by a reply of their own; the others by an
acknowledgement, if REPLY_ACK was negotiated and the request has need_reply set. `reply_owed` is all that knows this.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from .numbers import MAX_MEM_SLOTS, ProtocolFeature
from .payloads import MemoryRegion, VringAddr, XenMemoryRegion
from .rules import Reply, Rule


class Role(Enum):
    """Which end of the connection this process is."""

    FRONTEND = "front-end"
    BACKEND = "back-end"


class Owed(Enum):
    """What answers a request."""

    NOTHING = "nothing"
    ACK = "an acknowledgement"
    OWN = "a reply of its own"


@dataclass(frozen=True, slots=True)
class Ring:
    """One ring as the protocol sees it."""

    size: int = 0
    base: int | None = None
    """Where it goes on; None if it begins."""
    addresses: VringAddr | None = None
    started: bool = False
    enabled: bool = False
    quiesced: bool = False
    """It was disabled on purpose since it started."""
    eventfd: bool = False
    """Its kicks come by an eventfd."""

    @property
    def active(self) -> bool:
        """Requests are taken from it."""
        return self.started and self.enabled


@dataclass(frozen=True, slots=True)
class State:
    """All that one connection has agreed on. Masks are in the released numbering."""

    offered: int = 0
    acknowledged: int = 0
    protocol_offered: int = 0
    protocol_acknowledged: int = 0
    rings: tuple[Ring, ...] = ()
    regions: tuple[MemoryRegion | XenMemoryRegion, ...] = ()
    max_slots: int = MAX_MEM_SLOTS
    """The most regions that the back-end takes."""
    backend_channel: bool = False
    asked_config: bool = False
    postcopy: bool = False
    status: int = 0

    def has(self, feature: ProtocolFeature) -> bool:
        """A protocol feature was negotiated."""
        return bool(self.protocol_acknowledged >> feature & 1)

    @property
    def running(self) -> bool:
        """A driver runs the device: shared memory may be mapped and unmapped now."""
        started = [ring for ring in self.rings if ring.started]
        return bool(started) and not any(ring.quiesced for ring in started)


def reply_owed(rule: Rule, state: State, need_reply: bool) -> Owed:
    """What answers the request of `rule` in `state` ("Communication", "REPLY_ACK")."""
    own = rule.reply is Reply.OWN
    own |= rule.reply is Reply.OWN_IN_POSTCOPY and state.postcopy
    own |= rule.reply is Reply.OWN_WITH_LOG_SHMFD and state.has(ProtocolFeature.LOG_SHMFD)
    if own:
        return Owed.OWN
    return Owed.ACK if need_reply and state.has(ProtocolFeature.REPLY_ACK) else Owed.NOTHING
