"""Rules on what was agreed on: the protocol's own tables, run by an observer, and what peers look like."""

from __future__ import annotations

from collections.abc import Iterator

from ...protocol.dialects import diagnose_back_end, diagnose_front_end
from ...protocol.numbers import ADVISED, ProtocolFeature
from ...protocol.numbers import FrontendRequest as Q
from ...protocol.payloads import U64, ShmemConfig
from ...protocol.rules import Channel
from .look import Look, Watched


def late(look: Look) -> Iterator[str]:
    """The capture began in the midst of the connection: nothing is known of what was agreed on."""
    if not look.watched.begun and not look.exchange.orphan and look.exchange.message.request != Q.SET_OWNER:
        yield from look.watched.once("the capture begins after the negotiation: only the form of messages is judged")


def not_negotiated(look: Look) -> Iterator[str]:
    """A request without the feature that it belongs to."""
    if look.refusal and look.refusal.field == "request":
        yield f"the {look.sender} broke the order: {look.refusal}{look.verdict}"


def fd_count(look: Look) -> Iterator[str]:
    """Fds that are missing, or too many."""
    if look.refusal and look.refusal.field == "fds":
        yield f"{look.refusal}{look.verdict}"


def field(look: Look) -> Iterator[str]:
    """A field that makes no sense in this state; or a reply that does not."""
    refusal = look.refusal
    if refusal and refusal.field not in ("request", "fds"):
        yield f"{refusal}{look.verdict}"


def advised_feature(look: Look) -> Iterator[str]:
    """A feature without the one that the specification strongly advises with it."""
    if not _is(look, Q.SET_PROTOCOL_FEATURES):
        return
    for feature, advised in ADVISED.items():
        for other in advised:
            if look.after.has(feature) and not look.after.has(other):
                yield f"{feature.name} was acknowledged without {other.name}: whether a mapping is there nobody can tell"


def refused(look: Look) -> Iterator[str]:
    """A request that is right by all that can be seen, and was refused all the same."""
    exchange = look.exchange
    if exchange.refused and look.refusal is None and not exchange.faults and look.shmem is None and look.watched.begun:
        answer = "an empty payload" if exchange.status is None else f"{exchange.status:#x}"
        yield f"the {look.receiver} refused {look.name} with {answer}, and the message shows nothing that is wrong"


def dialect(look: Look) -> Iterator[str]:
    """A back-end that may speak another numbering of shared memory."""
    reply = look.exchange.reply
    if _is(look, Q.GET_PROTOCOL_FEATURES) and reply and isinstance(reply.body, U64):
        told = diagnose_back_end(look.watched.dialect, reply.body.value)
        yield from look.watched.once(told) if told else ()


def region_sizes(look: Look) -> Iterator[str]:
    """QEMU makes one PCI BAR of all regions, and its size must be a power of two: else QEMU 11.1 aborts."""
    reply = look.exchange.reply
    if not (reply and isinstance(reply.body, ShmemConfig)):
        return
    total = sum(reply.body.sizes.values())
    if total & (total - 1):
        yield f"the regions have {total:#x} bytes together, which is no power of two: QEMU 11.1 aborts"


def _is(look: Look, request: Q) -> bool:
    message = look.exchange.message
    return message.channel is Channel.FRONTEND and message.request == request and not look.exchange.orphan


def unasked_regions(watched: Watched, closed: bool) -> Iterator[str]:
    """Shared memory was agreed on, but nobody asked for the regions; or a dialect's bit means something else today."""
    state = watched.state
    offered = state.protocol_offered >> ProtocolFeature.SHMEM & 1
    if not closed or not watched.begun or not state.protocol_acknowledged or not offered:
        return
    acknowledged = watched.dialect.to_wire(state.protocol_acknowledged)
    told = diagnose_front_end(watched.dialect, acknowledged, state.asked_config)
    if told:
        yield told
