"""The passive rules, one row each, grouped by what they look at: most messages are plain, and few rules look at those."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from ...protocol.rules import Channel
from . import form, order, running, shmem, source
from .look import Look
from .rule import SHMEM, ClosingRule, Rule, Severity

_ERROR, _WARNING, _ADVICE = Severity
_TALK: Final = "Communication"
_ACK: Final = "Communication: VHOST_USER_PROTOCOL_F_REPLY_ACK"
_FEATURES: Final = "Protocol features"
_STATES: Final = "Ring states"

OF_ODD: Final = (
    Rule("no-message", _ERROR, form.no_message, "Header"),
    Rule("unknown-request", _WARNING, form.unknown_request, _TALK),
    Rule("request-form", _ERROR, form.request_form),
    Rule("reply-form", _ERROR, form.reply_form),
    Rule("no-reply", _ERROR, form.no_reply, _TALK),
    Rule("orphan-reply", _ERROR, form.orphan_reply, _TALK),
    Rule("needless-ack", _ERROR, form.needless_acknowledgement, _ACK),
    Rule("late-capture", _ADVICE, order.late, _TALK),
    Rule("not-negotiated", _ERROR, order.not_negotiated),
    Rule("fd-count", _ERROR, order.fd_count),
    Rule("field", _ERROR, order.field),
    Rule("refused", _WARNING, order.refused),
)
"""Of exchanges that are not plain: malformed, refused, unanswered, not asked for, or not admitted by the tables."""

OF_ALL: Final = (
    Rule("need-reply", _WARNING, form.need_reply_without, _ACK),
    Rule("slow", _ADVICE, form.slow, _TALK),
    Rule("map-crossing", _WARNING, running.crossing, _STATES),
)

OF_MAIN: Final = (
    Rule("advised-feature", _ADVICE, order.advised_feature, _FEATURES),
    Rule("dialect", _WARNING, order.dialect, _FEATURES),
    Rule("region-sizes", _WARNING, order.region_sizes),
    Rule("map-reset", _ADVICE, running.across_a_reset, _STATES),
)
"""Of requests of the front-end."""

OF_MISPLACED: Final = (
    Rule("map-region", _ERROR, shmem.region),
    Rule("map-outside", _ERROR, shmem.outside),
    Rule("map-unaligned", _ERROR, shmem.unaligned),
    Rule("map-flags", _ERROR, shmem.flags),
    Rule("map-overlap", _ERROR, shmem.overlap),
    Rule("map-dropped", _WARNING, shmem.dropped),
    Rule("map-refused", _WARNING, shmem.refused),
    Rule("map-read-only", _WARNING, source.read_only),
    Rule("unmap-inexact", _ERROR, shmem.inexact),
)
"""Of SHMEM_MAP and SHMEM_UNMAP that do not fit, or were refused."""

OF_SHMEM: Final = (
    Rule("map-unasked", _ERROR, shmem.not_asked, SHMEM),
    Rule("map-stopped", _WARNING, running.stopped, _STATES),
    Rule("map-count", _WARNING, shmem.too_many),
    Rule("map-kind", _ERROR, source.kind),
    Rule("map-access", _ERROR, source.access),
    Rule("map-past-end", _WARNING, source.past_the_end),
    Rule("map-shrink", _ADVICE, source.may_shrink),
)
"""Of all of them."""

AT_CLOSE: Final = (
    ClosingRule("map-left", _ADVICE, shmem.left_mapped, SHMEM),
    ClosingRule("regions-unasked", _WARNING, order.unasked_regions, _FEATURES),
)
"""Of what is left at the end."""

RULES: Final = (*OF_ODD, *OF_ALL, *OF_MAIN, *OF_MISPLACED, *OF_SHMEM)


def rules_for(look: Look) -> Iterator[Rule]:
    """The rules that could have something to say."""
    if look.odd:
        yield from OF_ODD
    yield from OF_ALL
    if look.exchange.message.channel is Channel.FRONTEND:
        yield from OF_MAIN
    if look.shmem:
        if look.misplaced or look.odd:
            yield from OF_MISPLACED
        yield from OF_SHMEM
