"""Front-ends that are known by name and version for what they die of, although the protocol allows it.

No message says who the peer is. QEMU shows itself: it acknowledges every protocol feature that it has a number for, so
INBAND_NOTIFICATIONS as well, of which it knows nothing, and gives eventfds for kicks all the same; a front-end that means
the feature has none to give. A later QEMU that does so, too, is taken for the one that is known, until something tells them
apart.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from .numbers import ProtocolFeature
from .state import State


class Peer(NamedTuple):
    """A front-end, and what is known of it."""

    name: str
    versions: str
    dies_of: str
    """What of many mappings that come and go it does not survive; empty if nothing."""


QEMU: Final = Peer("QEMU", "11.1", "a stop or a reset while files are mapped and unmapped (K2, K3)")


def recognise(state: State) -> Peer | None:
    """The front-end at the other end of a connection, if it is a known one."""
    inband = state.has(ProtocolFeature.INBAND_NOTIFICATIONS)
    return QEMU if inband and any(ring.eventfd for ring in state.rings) else None
