"""Faults on purpose: rules that hold, drop, refuse, change or cut messages on their way, or end the connection."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from .alterations import Change, change_of
from .conversation import Exchange
from .decoded import Decoded
from .event import Message
from .followed import Followed
from .rule_text import GRAMMAR, RuleError, cut
from .verdict import Verdict, both

__all__ = ["GRAMMAR", "Injector", "InjectionRule", "RuleError", "parse_rule"]


class InjectionRule:
    """What is done to which messages, and how many it was done to."""

    def __init__(self, text: str) -> None:
        parts = cut(text)
        self.text, self.on_reply = text, parts.on_reply
        self._filter, self._count = parts.filter, parts.which
        self._change: Change = change_of(parts)
        self.matched, self.done = 0, 0

    def judge(self, message: Decoded, exchange: Exchange) -> Verdict | None:
        """What becomes of a message that belongs to `exchange`."""
        if message.message.asks is self.on_reply or (self._filter and not self._filter.matches(exchange)):
            return None
        self.matched += 1
        verdict = self._change(message, exchange) if self._count.includes(self.matched) else None
        self.done += verdict is not None
        return verdict


def parse_rule(text: str) -> InjectionRule:
    """The rule that `text` describes; RuleError, with the place, if it describes none."""
    return InjectionRule(text)


class Injector:
    """Asks each rule in turn about each message; what they say adds up."""

    def __init__(self, rules: Iterable[InjectionRule]) -> None:
        self.rules = tuple(rules)
        self._followed = Followed()

    def __call__(self, message: Message, fds: Sequence[int]) -> Verdict | None:
        """What becomes of a message."""
        understood, exchange = self._followed.take(message)
        return self._followed.answered(message, self._judge(understood, exchange))

    def _judge(self, message: Decoded, exchange: Exchange) -> Verdict | None:
        found: Verdict | None = None
        for rule in self.rules:
            verdict = rule.judge(message, exchange)
            found = both(found, verdict)
            if verdict and (verdict.close or verdict.data == b""):
                break
            if verdict and verdict.data:
                message = replace(message, message=replace(message.message, data=verdict.data))
        return found
