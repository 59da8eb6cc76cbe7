"""Run rules against a back-end: each on a connection of its own, each with a deadline, whatever the back-end does."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from ..errors import VhostUserError
from ..protocol.numbers import FrontendRequest, ProtocolFeature, VhostFeature
from ..protocol.payloads import U64
from ..protocol.rules import Channel
from ..protocol.state import Role
from ..trace.event import Event
from ..virtio.numbers import DeviceId
from .backend_bench import BackendBench, Offer
from .outcome import UNUSABLE, Deviation, NotApplicable, Outcome, Result
from .peer import Peer, WatchedPeer
from .probes import Probe
from .rule import Rule
from .wire import RecordedWire, bound

TIMEOUT = 5.0
"""Seconds that a back-end may take for an answer."""
TRIES = 5
"""Connections that are made for a rule, until one is served."""
_NOTHING = Offer(0, 0, 0)


def offer_of(peer: Peer, *, device: DeviceId | None = None, probe: Probe | None = None, timeout: float = TIMEOUT) -> Offer:
    """What a back-end offers. VhostUserError if it is not there, or does not answer."""
    with BackendBench(_met(peer, timeout), _NOTHING, [], deadline=timeout) as bench:
        try:
            features = bench.value(FrontendRequest.GET_FEATURES)
            protocol, queues = 0, 1
            if features >> VhostFeature.PROTOCOL_FEATURES & 1:
                protocol = bench.value(FrontendRequest.GET_PROTOCOL_FEATURES)
            if protocol >> ProtocolFeature.MQ & 1:
                bench.request(FrontendRequest.SET_PROTOCOL_FEATURES, U64(1 << ProtocolFeature.MQ))
                queues = bench.value(FrontendRequest.GET_QUEUE_NUM)
        except Deviation as deviation:
            raise VhostUserError(f"it can't be asked what it offers: {deviation}") from None
    return Offer(features, protocol, queues, device, probe)


def check_back_end(
    rules: Iterable[Rule[BackendBench]], peer: WatchedPeer, offer: Offer, *, timeout: float = TIMEOUT
) -> Iterator[Outcome]:
    """Run `rules` one after the other. VhostUserError if the back-end does not come back.

    What came of one is told once the back-end is met for the next: only then it is known that it has not died of it late.
    """
    last: Outcome | None = None
    skipped: list[Outcome] = []
    for rule in rules:
        if lacking := offer.lacks(rule.needs):
            skipped.append(_skipped(rule, lacking))
            continue
        try:
            sock = bound(_met(peer, timeout), timeout)
        except (Exception, KeyboardInterrupt):
            yield from _told(last, peer.take_death(), skipped)
            raise
        with sock:
            yield from _told(last, peer.take_death(), skipped)
            skipped.clear()
            last = _run(rule, peer, sock, offer, timeout)
    try:
        death = "" if last is None else peer.crashed()
    except KeyboardInterrupt:
        yield from _told(last, "", skipped)
        raise
    yield from _told(last, death, skipped)


def check_one(rule: Rule[BackendBench], peer: Peer, offer: Offer, *, timeout: float = TIMEOUT) -> Outcome:
    """Run one rule."""
    if lacking := offer.lacks(rule.needs):
        return _skipped(rule, lacking)
    with bound(_met(peer, timeout), timeout) as sock:
        return _run(rule, peer, sock, offer, timeout)


def _skipped(rule: Rule[BackendBench], lacking: str) -> Outcome:
    return Outcome(rule, Result.SKIPPED, got=f"it does not offer {lacking}")


def _told(last: Outcome | None, death: str, skipped: Sequence[Outcome]) -> Iterator[Outcome]:
    """What came of the last rule that was run, and the back-end may have died of since; then those that were skipped."""
    if last is not None:
        yield _dead(last, death) if death and last.result is not Result.CRASHED else last
    yield from skipped


def _dead(outcome: Outcome, death: str) -> Outcome:
    """A rule that the back-end died of."""
    got = f"{outcome.got}; {death}" if outcome.got else death
    return replace(outcome, result=Result.CRASHED, expected=outcome.expected or outcome.rule.text, got=got)


def _run(rule: Rule[BackendBench], peer: Peer, sock: socket.socket, offer: Offer, timeout: float) -> Outcome:
    """Run one rule on a connection that is served."""
    began = time.monotonic()
    events: list[Event] = []
    with BackendBench(sock, offer, events, deadline=timeout) as bench:
        result, expected, got = _tried(rule, bench)
    outcome = Outcome(rule, result, expected or rule.text if got else "", got, time.monotonic() - began, tuple(events))
    if death := peer.crashed():
        outcome = _dead(outcome, death)
    elif result is Result.HUNG:
        peer.renew()
    return outcome


def _met(peer: Peer, timeout: float) -> socket.socket:
    """A connection that the back-end serves: it has answered GET_FEATURES.

    One that is about to end still takes connections, and closes them unseen: what it does then says nothing about a rule.
    """
    for _ in range(TRIES):
        sock = peer.connect()
        wire = RecordedWire(sock, [], Channel.FRONTEND, Role.FRONTEND, deadline=timeout)
        wire.request(FrontendRequest.GET_FEATURES)
        try:
            if wire.receive_or_end() is not None:
                return sock
        except Deviation:
            peer.renew()
        wire.close()
    raise VhostUserError("it answers GET_FEATURES on none of its connections")


def _tried(rule: Rule[BackendBench], bench: BackendBench) -> tuple[Result, str, str]:
    """How a rule ended, what was expected, and what came."""
    try:
        rule.check(bench)
    except Deviation as deviation:
        return Result.HUNG if deviation.hung else Result.BROKEN, deviation.expected, deviation.got
    except NotApplicable as why:
        return Result.SKIPPED, "", str(why)
    except BlockingIOError:
        return Result.HUNG, "a back-end that reads", f"a full socket for {bench.deadline:g} s"
    except UNUSABLE as error:
        return Result.BROKEN, "what can be used", f"{type(error).__name__}: {error}"
    return Result.KEPT, "", ""
