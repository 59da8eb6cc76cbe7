"""Every rule for back-ends: ours keeps it, and one that breaks exactly this does not."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Final
from unittest.mock import patch

import pytest

from vhostuser import _native, serving, virtqueue
from vhostuser.conformance.back_end import all_rules, shmem_maps
from vhostuser.conformance.back_end.gates import GATED, rule_name
from vhostuser.conformance.backend_bench import BACK_END, BackendBench, Offer
from vhostuser.conformance.check_backend import check_one, offer_of
from vhostuser.conformance.outcome import Result
from vhostuser.conformance.probes import PROBES
from vhostuser.conformance.rule import Rule
from vhostuser.conformance.sent import sent_to
from vhostuser.conformance.told import entry_of
from vhostuser.device import Device
from vhostuser.protocol.numbers import ProtocolFeature
from vhostuser.protocol.rules import FRONTEND

from .devices import Everything, Mapping, Plain
from .wrong import Behind, Scripted
from .wrong_back_end import WRONG

RULES = list(BACK_END)
RENEW = "what is told of this rule is old: python -m tests.conformance.conversations"
DEVICES: Final[dict[str, type[Device]]] = {device.__name__: device for device in (Everything, Mapping, Plain)}
NOT_OFFERED: Final = {rule_name(request, feature): feature for request, feature, _ in GATED if FRONTEND[request].if_offered}
SLOTS = {ProtocolFeature.CONFIGURE_MEM_SLOTS, ProtocolFeature.GET_VRING_BASE_INFLIGHT}


def device_for(rule: Rule[BackendBench]) -> type[Device]:
    """The device of ours that has what a rule is about."""
    if rule.check.__module__ == shmem_maps.__name__ or rule.section == shmem_maps.MAP or "channel" in rule.name:
        return Mapping
    return Plain if rule.needs.protocol & SLOTS else Everything


def offered_for(rule: Rule[BackendBench]) -> AbstractContextManager[object]:
    """Within the block our back-end does not offer what the rule wants not to be offered."""
    less = NOT_OFFERED.get(rule.name)
    return (
        nullcontext()
        if less is None
        else patch.object(serving, "PROTOCOL_FEATURES", serving.PROTOCOL_FEATURES & ~(1 << less))
    )


@cache
def offer_by(name: str) -> Offer:
    with Behind(DEVICES[name]) as peer:
        return offer_of(peer, probe=PROBES["echo"])


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_our_back_end_keeps_it(rule: Rule[BackendBench]) -> None:
    device = device_for(rule)
    with offered_for(rule), Behind(device) as peer:
        outcome = check_one(rule, peer, offer_by(device.__name__), timeout=10.0)
    always_notifies = not _native.accelerated and rule.name == "the_driver_is_not_notified_if_it_does_not_want_to_be"
    assert outcome.result is (Result.BROKEN if always_notifies else Result.KEPT), outcome.got
    assert sent_to(rule.side, outcome.events) == entry_of(rule)["sends"], RENEW


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_one_that_breaks_it_is_caught(rule: Rule[BackendBench], monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = WRONG[rule.name]
    device = device_for(rule)
    if wrong.queue:
        monkeypatch.setattr(virtqueue, "new_device_queue", wrong.queue)
    with Scripted(wrong.serve) if wrong.serve else Behind(wrong.device or device, wrong.alter) as peer:
        outcome = check_one(rule, peer, offer_by(device.__name__), timeout=wrong.timeout)
    assert outcome.result in (Result.BROKEN, Result.HUNG)
    assert outcome.events
    assert outcome.expected
    assert outcome.got


def test_every_rule_has_one_that_breaks_it() -> None:
    assert {rule.name for rule in RULES} == set(WRONG)


def test_there_are_enough_of_them() -> None:
    assert len(RULES) >= 120
    assert len({module.__name__ for module in all_rules.MODULES}) == len(all_rules.MODULES)
