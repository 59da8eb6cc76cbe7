"""Every rule for back-ends: ours keeps it, and one that breaks exactly this does not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import pytest

from vhostuser.conformance.back_end import header  # noqa: F401  # its rules
from vhostuser.conformance.backend_bench import BACK_END, BackendBench
from vhostuser.conformance.check_backend import check_one, offer_of
from vhostuser.conformance.outcome import Result
from vhostuser.conformance.rule import Rule
from vhostuser.protocol.numbers import NEED_REPLY, REPLY, VERSION, FrontendRequest
from vhostuser.testing.files import message
from vhostuser.trace.verdict import Alter

from . import wrong
from .devices import Everything
from .wrong import Behind

Q = FrontendRequest
RULES = list(BACK_END)
NAMES = [rule.name for rule in RULES]
FEATURES_REPLY = message(Q.GET_FEATURES, bytes(8), flags=VERSION | REPLY)

WRONG: Final[dict[str, Callable[[], Alter]]] = {
    "replies_have_the_version_and_the_reply_flag_and_nothing_else": wrong.reply_flags(REPLY),
    "need_reply_is_not_copied_into_a_reply": wrong.reply_flags_if_asked(VERSION | REPLY | NEED_REPLY, VERSION | NEED_REPLY),
    "an_unknown_request_is_refused": wrong.acknowledged(99),
}
"""For each rule, what makes a back-end break it."""


@pytest.mark.parametrize("rule", RULES, ids=NAMES)
def test_our_back_end_keeps_it(rule: Rule[BackendBench]) -> None:
    with Behind(Everything) as peer:
        outcome = check_one(rule, peer, offer_of(peer))
    assert (outcome.result, outcome.got) == (Result.KEPT, "")


@pytest.mark.parametrize("rule", [rule for rule in RULES if rule.name in WRONG], ids=lambda rule: rule.name)
def test_one_that_breaks_it_is_caught(rule: Rule[BackendBench]) -> None:
    with Behind(Everything) as good:
        offer = offer_of(good)
    with Behind(Everything, WRONG[rule.name]) as peer:
        outcome = check_one(rule, peer, offer, timeout=1.0)
    assert outcome.result in (Result.BROKEN, Result.HUNG)
    assert outcome.events
