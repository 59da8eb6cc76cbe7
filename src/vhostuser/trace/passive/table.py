"""The passive rules, one row each."""

from __future__ import annotations

from typing import Final

from . import form, order, shmem
from .rule import SHMEM, ClosingRule, Rule, Severity

_ERROR, _WARNING, _ADVICE = Severity
_TALK: Final = "Communication"
_ACK: Final = "Communication: VHOST_USER_PROTOCOL_F_REPLY_ACK"
_FEATURES: Final = "Protocol features"
_STATES: Final = "Ring states"

RULES: Final = (
    Rule("no-message", _ERROR, form.no_message, "Header"),
    Rule("unknown-request", _WARNING, form.unknown_request, _TALK),
    Rule("request-form", _ERROR, form.request_form),
    Rule("reply-form", _ERROR, form.reply_form),
    Rule("no-reply", _ERROR, form.no_reply, _TALK),
    Rule("orphan-reply", _ERROR, form.orphan_reply, _TALK),
    Rule("needless-ack", _ERROR, form.needless_acknowledgement, _ACK),
    Rule("need-reply", _WARNING, form.need_reply_without, _ACK),
    Rule("slow", _ADVICE, form.slow, _TALK),
    Rule("late-capture", _ADVICE, order.late, _TALK),
    Rule("not-negotiated", _ERROR, order.not_negotiated),
    Rule("fd-count", _ERROR, order.fd_count),
    Rule("field", _ERROR, order.field),
    Rule("advised-feature", _ADVICE, order.advised_feature, _FEATURES),
    Rule("refused", _WARNING, order.refused),
    Rule("dialect", _WARNING, order.dialect, _FEATURES),
    Rule("region-sizes", _WARNING, order.region_sizes),
    Rule("map-unasked", _ERROR, shmem.not_asked, SHMEM),
    Rule("map-region", _ERROR, shmem.region, SHMEM),
    Rule("map-outside", _ERROR, shmem.outside, SHMEM),
    Rule("map-unaligned", _ERROR, shmem.unaligned, SHMEM),
    Rule("map-flags", _ERROR, shmem.flags, SHMEM),
    Rule("map-overlap", _ERROR, shmem.overlap, SHMEM),
    Rule("map-dropped", _WARNING, shmem.dropped, SHMEM),
    Rule("unmap", _ERROR, shmem.unmap),
    Rule("map-refused", _WARNING, shmem.refused),
    Rule("map-stopped", _WARNING, shmem.not_running, _STATES),
    Rule("map-crossing", _WARNING, shmem.crossed_a_stop, _STATES),
    Rule("map-reset", _ADVICE, shmem.across_a_reset, _STATES),
    Rule("map-count", _WARNING, shmem.too_many, SHMEM),
    Rule("map-kind", _ERROR, shmem.file_kind, SHMEM),
    Rule("map-access", _ERROR, shmem.file_access, SHMEM),
    Rule("map-read-only", _WARNING, shmem.read_only_for_qemu, SHMEM),
    Rule("map-past-end", _WARNING, shmem.past_the_end, SHMEM),
    Rule("map-shrink", _ADVICE, shmem.may_shrink, SHMEM),
)
"""Rules on each exchange."""

AT_CLOSE: Final = (
    ClosingRule("map-left", _ADVICE, shmem.left_mapped, SHMEM),
    ClosingRule("regions-unasked", _WARNING, order.unasked_regions, _FEATURES),
)
"""Rules on what is left at the end."""
