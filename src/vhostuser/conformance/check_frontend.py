"""Run rules against a front-end: each on a connection of its own, each with a deadline, whatever the front-end does."""

from __future__ import annotations

import contextlib
import importlib
import pkgutil
import time
from collections.abc import Iterable, Iterator

from ..errors import VhostUserError
from ..protocol.numbers import FrontendRequest
from ..trace.event import Event
from . import front_end
from .frontend_bench import FRONT_END, REST, FrontendBench, Reach
from .frontend_peer import GRACE, FrontendPeer
from .outcome import UNUSABLE, Deviation, NotApplicable, Outcome, Result
from .rule import Rule, Rules

TIMEOUT = 5.0
"""Seconds that a front-end may take for its next message."""
REACHED = 2
"""Times of that after which what a front-end has come to is what it comes to, though it never is quiet."""
QUIET = 1.0
"""Seconds of silence after which a front-end has said all that it says."""


def front_end_rules() -> Rules[FrontendBench]:
    """Every rule for front-ends."""
    for module in sorted(pkgutil.iter_modules(front_end.__path__), key=lambda found: found.name):
        importlib.import_module(f"{front_end.__name__}.{module.name}")
    return FRONT_END


def reach_of(peer: FrontendPeer, *, timeout: float = TIMEOUT, quiet: float = QUIET) -> Reach:
    """How far a front-end goes with a right back-end. VhostUserError if it does not connect, or agrees on nothing."""
    with FrontendBench(peer.accept(), Reach(), [], deadline=timeout) as bench:
        try:
            bench.until(FrontendRequest.GET_FEATURES)
        except Deviation as deviation:
            raise VhostUserError(f"it does not ask for the features: {deviation}") from None
        count, end = -1, time.monotonic() + REACHED * timeout
        while count != len(bench.seen) and time.monotonic() < end:
            count = len(bench.seen)
            bench.soon(lambda count=count: len(bench.seen) != count, within=quiet)  # type: ignore[misc]
        seen = bench.seen
        reach = Reach(seen.features, bench.acknowledged, len(seen.running), bool(seen.of(FrontendRequest.GET_SHMEM_CONFIG)))
        _leave(bench, peer)
    if death := peer.crashed():
        raise VhostUserError(f"a right back-end was too much for it already: {death}")
    return reach


def check_front_end(
    rules: Iterable[Rule[FrontendBench]], peer: FrontendPeer, reach: Reach, *, timeout: float = TIMEOUT
) -> Iterator[Outcome]:
    """Run `rules` one after the other. VhostUserError if the front-end does not come back."""
    for rule in rules:
        yield check_one(rule, peer, reach, timeout=timeout)


def check_one(
    rule: Rule[FrontendBench], peer: FrontendPeer, reach: Reach, *, timeout: float = TIMEOUT, rest: float = REST
) -> Outcome:
    """Run one rule. `rest` are the seconds of silence after which the front-end may be left."""
    if lacking := reach.lacks(rule.needs):
        return Outcome(rule, Result.SKIPPED, got=f"it does not {lacking}")
    began = time.monotonic()
    events: list[Event] = []
    with FrontendBench(peer.accept(), reach, events, deadline=timeout) as bench:
        bench.rest = rest
        result, expected, got = _tried(rule, bench)
        _leave(bench, peer)
    if death := peer.crashed():
        result, got = Result.CRASHED, f"{got}; {death}" if got else death
    return Outcome(rule, result, expected or rule.text if got else "", got, time.monotonic() - began, tuple(events))


def _leave(bench: FrontendBench, peer: FrontendPeer) -> None:
    """Part from a front-end as gently as may be: what it dies of then is the rule's doing, not that the back-end is gone."""
    with contextlib.suppress(Deviation, NotApplicable, BlockingIOError):
        bench.come_to_rest()
        if not bench.over and peer.retire():
            bench.soon(lambda: False, within=GRACE)


def _tried(rule: Rule[FrontendBench], bench: FrontendBench) -> tuple[Result, str, str]:
    """How a rule ended, what was expected, and what came."""
    try:
        rule.check(bench)
    except Deviation as deviation:
        return Result.HUNG if deviation.hung else Result.BROKEN, deviation.expected, deviation.got
    except NotApplicable as why:
        return Result.SKIPPED, "", str(why)
    except BlockingIOError:
        return Result.HUNG, "a front-end that reads", f"a full socket for {bench.deadline:g} s"
    except UNUSABLE as error:
        return Result.BROKEN, "what can be used", f"{type(error).__name__}: {error}"
    return Result.KEPT, "", ""
