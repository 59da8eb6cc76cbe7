"""Rules as they are told: each has an address, a reason, and the conversation that it is in truth."""

from __future__ import annotations

import re
from typing import Any, Final

import pytest

from vhostuser.conformance.back_end import all_rules  # noqa: F401  # the rules
from vhostuser.conformance.backend_bench import BACK_END
from vhostuser.conformance.check_frontend import front_end_rules
from vhostuser.conformance.reasons import REASONS, why
from vhostuser.conformance.rule import Rule
from vhostuser.conformance.sent import USUAL, sent_to
from vhostuser.conformance.told import entry_of, page_of
from vhostuser.protocol.numbers import FrontendRequest
from vhostuser.protocol.rules import Channel
from vhostuser.protocol.state import Role
from vhostuser.testing.files import message
from vhostuser.trace.event import FdNote, Message

from .conversations import front_end_said, stored

RULES: Final = [*BACK_END, *front_end_rules()]
Q: Final = FrontendRequest


EVERY: Final = 12
"""One rule for front-ends of so many is had here; those for back-ends are all looked at in test_back_end.py."""


def test_what_is_stored_is_of_the_rules_that_there_are() -> None:
    assert stored().keys() == {rule.name for rule in RULES}


@pytest.mark.parametrize("rule", list(front_end_rules())[::EVERY], ids=lambda rule: rule.name)
def test_what_is_sent_to_a_front_end_is_what_is_told(rule: Rule[Any]) -> None:
    told = entry_of(rule)["sends"]
    assert isinstance(told, list)
    assert [word for word in told if word != USUAL] == [word for word in front_end_said(rule) if word != USUAL]


def test_a_page_says_all_of_a_rule() -> None:
    rows = ["rule", "section", "needs", "sends", "expects", "why"]
    for rule in RULES:
        entry, page = entry_of(rule), page_of(rule)
        assert all(entry[key] for key in entry.keys() - {"needs", "not_kept_by"}), rule.name
        assert page[0].startswith(rule.name)
        assert [line.split()[0] for line in page if re.match(r"  \w", line)][:6] == rows, rule.name
        assert all(line.isprintable() for line in page), rule.name


@pytest.mark.parametrize("reason", REASONS, ids=lambda reason: reason.text[:40])
def test_no_reason_is_behind_another(reason: Any) -> None:
    assert any(why(rule) == reason.text for rule in RULES)


def test_what_is_sent_is_told_in_words() -> None:
    def says(sender: Role, data: bytes, fds: int = 0, *, whole: bool = True) -> Message:
        notes = tuple(FdNote(number, "eventfd") for number in range(fds))
        return Message(0, 0, Channel.FRONTEND, sender, data, notes, whole)

    asked = says(Role.FRONTEND, message(Q.GET_FEATURES, b""))
    number = bytes(8)
    answers = [
        (says(Role.BACKEND, message(Q.GET_FEATURES, number, flags=5)), USUAL),
        (says(Role.BACKEND, message(Q.GET_FEATURES, bytes(4), flags=5)), "GET_FEATURES (reply, 4 bytes)"),
        (says(Role.BACKEND, message(Q.GET_QUEUE_NUM, number, flags=5)), "GET_QUEUE_NUM (reply)"),
        (says(Role.BACKEND, message(Q.GET_FEATURES, number, flags=6)), "GET_FEATURES (reply, flags 0x6)"),
        (says(Role.BACKEND, bytes(3), whole=False), "3 bytes of a header"),
        (says(Role.BACKEND, message(Q.GET_FEATURES, bytes(2), flags=5), whole=False), "GET_FEATURES (in part, reply)"),
    ]
    assert [sent_to(Role.FRONTEND, [asked, answer]) for answer, _ in answers] == [[words] for _, words in answers]
    kick = says(Role.FRONTEND, message(Q.SET_VRING_KICK, number, flags=9), fds=2)
    strange = says(Role.FRONTEND, message(99, b"xy"))
    assert sent_to(Role.BACKEND, [kick, kick, strange]) == [
        "SET_VRING_KICK (need_reply, 2 fds), 2 times",
        "request 99",
    ]
    assert sent_to(Role.BACKEND, []) == ["nothing"]
