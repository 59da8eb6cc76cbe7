"""Rules on the form of messages, and on what answers what."""

from __future__ import annotations

from collections.abc import Iterator

from ...protocol.numbers import NEED_REPLY, ProtocolFeature
from ...protocol.state import Owed
from .look import Look


def no_message(look: Look) -> Iterator[str]:
    """Bytes that are no message: nothing behind them can be trusted."""
    if not look.exchange.message.whole:
        yield f"the {look.sender} sent {len(look.exchange.message.data)} bytes that are no message"


def unknown_request(look: Look) -> Iterator[str]:
    """A number that no table has."""
    exchange = look.exchange
    if exchange.message.whole and exchange.request.rule is None and not exchange.orphan:
        yield f"the {look.sender} sent {look.name}, which is unknown on the {exchange.message.channel.value} channel"


def request_form(look: Look) -> Iterator[str]:
    """The header or the payload is not as declared."""
    request = look.exchange.request
    if request.message.whole and request.rule and request.fault and not look.exchange.orphan:
        yield f"the {look.sender}'s {look.name}: {request.fault}"


def reply_form(look: Look) -> Iterator[str]:
    """The reply is not as declared."""
    reply = look.exchange.reply
    if reply and reply.fault:
        yield f"the {look.receiver}'s reply to {look.name}: {reply.fault}"


def no_reply(look: Look) -> Iterator[str]:
    """A reply was owed, and none came."""
    if look.exchange.unanswered:
        owed = look.exchange.owed.value
        yield f"the {look.receiver} never answered {look.name}, which is owed {owed}"


def orphan_reply(look: Look) -> Iterator[str]:
    """A reply that answers nothing, other than an acknowledgement that was not agreed on."""
    if look.exchange.orphan and look.exchange.message.whole and look.watched.begun and not _needless(look):
        yield f"the {look.sender} sent a reply to {look.name}, which nobody had asked"


def needless_acknowledgement(look: Look) -> Iterator[str]:
    """An acknowledgement that was not negotiated, or not asked for."""
    if _needless(look):
        agreed = look.before.has(ProtocolFeature.REPLY_ACK)
        why = "need_reply was not set" if agreed else "REPLY_ACK was not negotiated"
        yield f"the {look.sender} acknowledged {look.name}, but {why}"


def _needless(look: Look) -> bool:
    exchange = look.exchange
    rule = exchange.request.rule
    return exchange.orphan and rule is not None and not exchange.request.fault and look.watched.begun


def need_reply_without(look: Look) -> Iterator[str]:
    """Asking for what was not agreed on: nobody will answer."""
    exchange = look.exchange
    asks = exchange.message.flags & NEED_REPLY and exchange.owed is Owed.NOTHING and not exchange.orphan
    if asks and exchange.request.rule and look.watched.begun and not look.before.has(ProtocolFeature.REPLY_ACK):
        yield f"the {look.sender} set need_reply in {look.name}, but REPLY_ACK was not negotiated: nobody answers it"


def slow(look: Look) -> Iterator[str]:
    """Far slower than others of its kind."""
    latency, pace = look.exchange.latency, look.watched.paces.get(look.name)
    if latency is not None and pace and pace.is_slow(latency):
        yield f"{look.name} took {latency / 1e6:.1f} ms, where the median is below {pace.median / 1e6:.2f} ms"
