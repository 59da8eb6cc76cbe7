"""Rules about the states of a ring: started or stopped, enabled or disabled."""

from __future__ import annotations

from typing import Final

from ...protocol.numbers import FrontendRequest, VhostFeature
from ...protocol.payloads import U64, VringState
from ..backend_bench import BACK_END, FEATURES, BackendBench
from ..outcome import Deviation, NotApplicable
from ..ring import Ring, begin, probe_of
from ..rule import Level

Q = FrontendRequest
STATES: Final = "Ring states"
ENABLING: Final = (VhostFeature.PROTOCOL_FEATURES,)
"""What a rule needs that enables and disables rings."""
_WAIT: Final = 0.05
"""Seconds in which nothing has to happen."""


@BACK_END.rule(STATES)
def requests_that_wait_are_found_when_the_ring_starts(bench: BackendBench) -> None:
    """A ring starts on SET_VRING_KICK and a kick: what was put into it before is found."""
    ring, head = _started_with_a_request(bench)
    ring.kick()
    ring.comes_back(head)


@BACK_END.rule(STATES)
def a_stopped_ring_is_left_alone(bench: BackendBench) -> None:
    """Once GET_VRING_BASE is answered the ring is stopped: nothing is taken from it any more."""
    begin(bench)
    ring = Ring(bench)
    ring.exchange()
    ring.stop()
    ring.drain()
    ring.offer(*ring.buffers())
    if ring.wait(ring.call.fileno(), _WAIT) or ring.used_index != 1:
        raise Deviation("nothing taken from a stopped ring", "a chain given back")


@BACK_END.rule(STATES)
def a_ring_goes_on_where_it_stopped(bench: BackendBench) -> None:
    """A ring that is stopped and set up again at its base goes on there."""
    begin(bench)
    ring = Ring(bench)
    ring.exchange()
    _start_again(ring, ring.stop())
    ring.exchange()
    ring.exchange()
    ring.stop()
    if ring.used_index != 3:
        raise Deviation("three chains given back of three", f"used index {ring.used_index}")


@BACK_END.rule(STATES, level=Level.SHOULD, queues=2)
def rings_are_independent(bench: BackendBench) -> None:
    """Each ring starts and stops alone."""
    begin(bench)
    ring = Ring(bench)
    other = 0 if ring.index else 1
    ring.exchange()
    bench.set_up_queue(other, at=ring.at + (1 << 19))
    ring.exchange()
    bench.replied(Q.GET_VRING_BASE, VringState(other, 0))
    ring.exchange()


@BACK_END.rule(STATES, level=Level.SHOULD)
def a_ring_needs_no_kick_to_start(bench: BackendBench) -> None:
    """A back-end does not rely on a kick after SET_VRING_KICK: what waits in the ring is found without one."""
    ring, head = _started_with_a_request(bench)
    ring.comes_back(head)


@BACK_END.rule(STATES)
def rings_are_enabled_where_protocol_features_are_not_agreed_on(bench: BackendBench) -> None:
    """SET_FEATURES without bit 30, PROTOCOL_FEATURES, enables all rings: an old front-end knows no SET_VRING_ENABLE."""
    probe_of(bench)
    bench.acknowledged = bench.offer.features & FEATURES & ~(1 << VhostFeature.PROTOCOL_FEATURES)
    bench.value(Q.GET_FEATURES)
    bench.request(Q.SET_OWNER)
    bench.request(Q.SET_FEATURES, U64(bench.acknowledged))
    bench.map_memory()
    ring = Ring(bench)
    ring.exchange()
    ring.exchange()


@BACK_END.rule(STATES, level=Level.SHOULD, features=ENABLING)
def a_ring_may_be_enabled_before_it_starts(bench: BackendBench) -> None:
    """That a ring is enabled is remembered while it is stopped, and counts once it is started."""
    begin(bench)
    bench.accepted(Q.SET_VRING_ENABLE, VringState(probe_of(bench).queue, 1))
    Ring(bench, enabled=False).exchange()


@BACK_END.rule(STATES, level=Level.SHOULD, features=ENABLING)
def a_ring_stays_enabled_while_it_is_stopped(bench: BackendBench) -> None:
    """GET_VRING_BASE stops a ring and does not disable it: set up again, it works as it is."""
    begin(bench)
    ring = Ring(bench)
    ring.exchange()
    _start_again(ring, ring.stop(), enable=False)
    ring.exchange()


@BACK_END.rule(STATES, level=Level.ADVICE, features=ENABLING)
def nothing_is_executed_in_a_disabled_ring(bench: BackendBench) -> None:
    """A ring that is started and disabled has no side effects: no answer is written to a request in it."""
    begin(bench)
    if not probe_of(bench).room:
        raise NotApplicable("its request has no answer")
    ring = Ring(bench, enabled=False)
    ring.offer(*ring.buffers())
    ring.wait(ring.call.fileno(), _WAIT)
    if (done := ring.collected()) and done[1]:
        raise Deviation("no answer to a request in a ring that is disabled", f"{done[1]} bytes of one")


@BACK_END.rule(STATES, features=ENABLING)
def a_ring_that_was_disabled_works_once_it_is_enabled(bench: BackendBench) -> None:
    """A ring that is disabled and enabled again while it runs is processed as before."""
    begin(bench)
    ring = Ring(bench)
    ring.exchange()
    bench.accepted(Q.SET_VRING_ENABLE, VringState(ring.index, 0))
    bench.enable(ring.index)
    ring.exchange()
    ring.exchange()


@BACK_END.rule(STATES, features=ENABLING)
def what_a_disabled_ring_was_given_comes_back_once_it_is_enabled(bench: BackendBench) -> None:
    """A request that was put into a ring while it was disabled is given back, then or once it is enabled."""
    begin(bench)
    ring = Ring(bench, enabled=False)
    head = ring.offer(*ring.buffers())
    ring.wait(ring.call.fileno(), _WAIT)
    bench.enable(ring.index)
    done, _ = ring.collect(f"chain {head} given back")
    if done != head:
        raise Deviation(f"chain {head} given back", f"chain {done}")
    ring.exchange()


@BACK_END.rule(STATES, features=ENABLING)
def a_disabled_ring_may_get_another_eventfd(bench: BackendBench) -> None:
    """While a ring is processed, enabled or not, its settings may change: a new eventfd for calls counts."""
    begin(bench)
    ring = Ring(bench, enabled=False)
    ring.call = bench.eventfd()
    bench.accepted(Q.SET_VRING_CALL, U64(ring.index), fds=[ring.call])
    ring.drain()
    bench.enable(ring.index)
    head = ring.offer(*ring.buffers())
    ring.call_comes("a notification at the eventfd that was set last")
    ring.comes_back(head)


def _started_with_a_request(bench: BackendBench) -> tuple[Ring, int]:
    """A ring that was started when a request waited in it, and the request's chain. There was no kick since."""
    begin(bench)
    ring = Ring(bench)
    ring.stop()
    head = ring.driver.add(*ring.buffers())
    _start_again(ring, 0)
    return ring, head


def _start_again(ring: Ring, base: int, *, enable: bool = True) -> None:
    """Set up a ring, which is stopped, at its old place."""
    bench, kick = ring.bench, ring.bench.eventfd()
    bench.accepted(Q.SET_VRING_BASE, VringState(ring.index, base))
    bench.accepted(Q.SET_VRING_ADDR, bench.addresses(ring.index, at=ring.at))
    bench.accepted(Q.SET_VRING_CALL, U64(ring.index), fds=[ring.call])
    bench.accepted(Q.SET_VRING_KICK, U64(ring.index), fds=[kick])
    if enable:
        bench.enable(ring.index)
    ring.kick_fd = kick
