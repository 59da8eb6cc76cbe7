"""A connection's state at its beginning, what it says of itself, and which answer each request is owed in it."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, replace
from itertools import product

import pytest

from tests.legal import ALL_RULES, READY, F, with_features
from vhostuser.protocol.rules import Reply, Rule
from vhostuser.protocol.state import Owed, Ring, State, reply_owed


def test_nothing_is_agreed_on_at_first() -> None:
    state = State()
    assert (state.offered, state.acknowledged, state.protocol_offered, state.protocol_acknowledged) == (0, 0, 0, 0)
    assert (state.rings, state.regions, state.max_slots, state.status) == ((), (), 509, 0)
    assert not any((state.backend_channel, state.asked_config, state.postcopy, state.running))


def test_a_ring_is_as_new_at_first() -> None:
    ring = Ring()
    assert (ring.size, ring.base, ring.addresses) == (0, None, None)
    assert not any((ring.started, ring.enabled, ring.quiesced, ring.eventfd, ring.active))


@pytest.mark.parametrize("value", [State(), Ring()], ids=["state", "ring"])
def test_a_state_is_a_value(value: State | Ring) -> None:
    assert hash(value) == hash(replace(value))
    with pytest.raises(FrozenInstanceError):
        value.__setattr__("status" if isinstance(value, State) else "size", 1)


def test_a_ring_is_active_if_it_is_started_and_enabled() -> None:
    for started, enabled, other in product((False, True), repeat=3):
        ring = Ring(started=started, enabled=enabled, quiesced=other, eventfd=other)
        assert ring.active is (started and enabled)


def test_a_driver_runs_while_a_ring_is_started_and_none_of_the_started_is_quiesced() -> None:
    kinds = [Ring(started=started, quiesced=quiesced) for started, quiesced in product((False, True), repeat=2)]
    for rings in ((), *product(kinds, repeat=1), *product(kinds, repeat=2)):
        started = [ring for ring in rings if ring.started]
        assert State(rings=rings).running is (len(started) > 0 and all(not ring.quiesced for ring in started))


@pytest.mark.parametrize("rule", ALL_RULES, ids=lambda rule: f"{rule.channel.value} {rule.name}")
def test_w27_w28_each_request_is_owed_one_answer_or_none(rule: Rule) -> None:
    for acks, log, postcopy, need in product((False, True), repeat=4):
        state = replace(with_features(READY, *[F.REPLY_ACK] * acks, *[F.LOG_SHMFD] * log), postcopy=postcopy)
        own = {
            Reply.OWN: True,
            Reply.ACK: False,
            Reply.OWN_IN_POSTCOPY: postcopy,
            Reply.OWN_WITH_LOG_SHMFD: log,
        }[rule.reply]
        owed = Owed.OWN if own else Owed.ACK if acks and need else Owed.NOTHING
        assert reply_owed(rule, state, need) is owed
