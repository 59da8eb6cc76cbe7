"""`python -m tests.conformance.conversations` writes what is said in each rule, and what is expected, for `vhu explain`.

What is said is taken from a conversation with ours, which keeps the rule; what is expected from one with a peer that is
wrong on purpose. So it is what a rule does, not what somebody thinks that it does.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Final, TypeVar
from unittest.mock import patch

import vhostuser.conformance
from vhostuser import virtqueue
from vhostuser.conformance import check_backend, check_frontend
from vhostuser.conformance.backend_bench import BACK_END, BackendBench
from vhostuser.conformance.check_frontend import front_end_rules
from vhostuser.conformance.frontend_bench import FrontendBench
from vhostuser.conformance.outcome import Outcome
from vhostuser.conformance.rule import Rule
from vhostuser.conformance.sent import sent_to
from vhostuser.trace.event import Message

from . import test_back_end as back
from . import test_front_end as front
from .fronts import Driven, steady
from .wrong import Behind, Scripted
from .wrong_back_end import WRONG

PLACE: Final = Path(vhostuser.conformance.__file__).parent / "conversations.json"
SIGNS_OF_LIFE: Final = ("a message", "a message, or the end", "a whole message, or the end")
B = TypeVar("B", bound=BackendBench | FrontendBench)
Told = dict[str, dict[str, object]]


def stored() -> Told:
    """What is in the package."""
    told: Told = json.loads(PLACE.read_text())
    return told


def back_end_said(rule: Rule[BackendBench]) -> list[str]:
    """What the rule says to our back-end."""
    device = back.device_for(rule)
    with back.offered_for(rule), Behind(device) as peer:
        return _said(rule, lambda rule: check_backend.check_one(rule, peer, back.offer_by(device.__name__), timeout=10.0))


def back_end_expects(rule: Rule[BackendBench]) -> str:
    """What a back-end that breaks the rule misses."""
    wrong, device = WRONG[rule.name], back.device_for(rule)
    queues = patch.object(virtqueue, "new_device_queue", wrong.queue or virtqueue.new_device_queue)
    with queues, Scripted(wrong.serve) if wrong.serve else Behind(wrong.device or device, wrong.alter) as peer:
        return _missed(check_backend.check_one(rule, peer, back.offer_by(device.__name__), timeout=wrong.timeout))


def front_end_said(rule: Rule[FrontendBench]) -> list[str]:
    """What the rule says to our front-end."""
    with Driven(front.DRIVES.get(rule.name, steady)) as peer:
        return _said(rule, lambda rule: check_frontend.check_one(rule, peer, front.REACH, rest=0.01))


def front_end_expects(rule: Rule[FrontendBench]) -> str:
    """What a front-end that breaks the rule misses."""
    with front.WRONG[rule.name]() as peer:
        timeout = front.SOON if rule.name in front.SILENT else front.LATE
        return _missed(check_frontend.check_one(rule, peer, front.REACH, timeout=timeout, rest=0.01))


def _said(rule: Rule[B], run: Callable[[Rule[B]], Outcome]) -> list[str]:
    """What we say until the rule is done; what comes after is leave-taking."""
    done: list[int] = []

    def check(bench: B) -> None:
        try:
            rule.check(bench)
        finally:
            done.append(len(bench.events))

    events = run(replace(rule, check=check)).events
    cut_off = [event for event in events[done[0] :] if isinstance(event, Message) and not event.whole]
    return sent_to(rule.side, [*events[: done[0]], *cut_off])


def _missed(outcome: Outcome) -> str:
    """What was expected; the rule itself, where that was no more than a sign of life."""
    return outcome.rule.text if outcome.expected in SIGNS_OF_LIFE else outcome.expected


def written() -> Told:
    """All of them."""
    told: Told = {}
    for rule in BACK_END:
        told[rule.name] = {"sends": back_end_said(rule), "expects": back_end_expects(rule)}
    for each in front_end_rules():
        told[each.name] = {"sends": front_end_said(each), "expects": front_end_expects(each)}
    return told


if __name__ == "__main__":
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else PLACE
    lines = [f" {json.dumps(name)}: {json.dumps(each, ensure_ascii=False)}" for name, each in sorted(written().items())]
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n")
