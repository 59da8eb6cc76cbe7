"""What came of rules, told: readable by section, as JSON, as JUnit's XML, and as a capture of each finding."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final
from xml.sax.saxutils import quoteattr

from ..limited_log import printable
from ..trace.capture import create_capture
from ..trace.conversation import Conversation
from ..trace.event import Event
from ..trace.lines import Lines
from .outcome import NO_DEVICE, Outcome, Result
from .rule import Level

BAD: Final = (Result.BROKEN, Result.CRASHED, Result.HUNG)
TOLD: Final = (*BAD, Result.KNOWN, Result.FIXED)
"""What is told even of those who do not want to hear of every rule."""
LAST: Final = 12
"""Lines of a conversation that are shown."""


def lines_of(outcome: Outcome) -> Iterator[str]:
    """The outcome for people, under its section's heading."""
    rule = outcome.rule
    yield printable(f"  {outcome.result.value:8}{rule.level.value:7}{rule.name}{_aside(outcome)}")
    if outcome.result not in TOLD:
        return
    yield printable(f"    rule      {rule.text}")
    if outcome.expected:
        yield printable(f"    expected  {outcome.expected}")
    yield printable(f"    got       {outcome.got}")
    for number, line in enumerate(conversation_of(outcome.events)):
        yield f"    {'' if number else 'sent':10}{line}"


def conversation_of(events: Sequence[Event]) -> list[str]:
    """The end of what was said, a line a message."""
    lines, conversation = Lines(colour=False), Conversation()
    items = [item for event in events for item in conversation.take(event)] + conversation.end()
    said = [line for item in items if (line := lines.line(item))]
    return said if len(said) <= LAST else [f"... {len(said) - LAST} more", *said[-LAST:]]


def fields_of(outcome: Outcome) -> dict[str, object]:
    """The outcome as a flat object."""
    rule = outcome.rule
    return {
        "rule": rule.name,
        "section": rule.section,
        "level": rule.level.value,
        "result": outcome.result.value,
        "text": rule.text,
        "expected": outcome.expected,
        "got": outcome.got,
        "sent": conversation_of(outcome.events) if outcome.result in TOLD else [],
        "seconds": round(outcome.seconds, 3),
    }


def summary(outcomes: Sequence[Outcome]) -> str:
    """All in one line."""
    counts = Counter(outcome.result for outcome in outcomes)
    words = ", ".join(f"{counts[result]} {result.value}" for result in Result if counts[result])
    if untold := sum(outcome.got == NO_DEVICE for outcome in outcomes):
        skipped = f"{counts[Result.SKIPPED]} {Result.SKIPPED.value}"
        words = words.replace(skipped, f"{skipped} ({untold} of them for want of --device)")
    levels = Counter(outcome.rule.level for outcome in outcomes if outcome.result in BAD)
    bad = ", ".join(f"{levels[level]} {level.value}" for level in Level if levels[level])
    plural = "" if len(outcomes) == 1 else "s"
    return f"{len(outcomes)} rule{plural}: {words or 'none'}" + (f"; not kept: {bad}" if bad else "")


def fails(outcome: Outcome, *, strict: bool) -> bool:
    """The outcome makes the whole fail: what must be kept is not, or is not as a profile has it."""
    return outcome.fails or outcome.result is Result.FIXED or (strict and outcome.warns and _should(outcome))


def junit(name: str, outcomes: Iterable[Outcome], *, strict: bool = False) -> str:
    """All outcomes as a JUnit report. What does not make the whole fail is output of its case."""
    cases = [_case(outcome, strict=strict) for outcome in outcomes]
    failures, skipped = (sum(word in case for case in cases) for word in ("<failure", "<skipped"))
    head = f'<testsuite name={quoteattr(name)} tests="{len(cases)}" failures="{failures}" skipped="{skipped}">'
    return "\n".join(["<?xml version='1.0' encoding='utf-8'?>", head, *cases, "</testsuite>", ""])


def save_conversation(folder: Path, outcome: Outcome) -> Path:
    """Write the conversation of a finding, as a capture named after its rule."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{outcome.rule.name}.pcapng"
    capture = create_capture(path)
    try:
        for event in outcome.events:
            capture.write(event)
    finally:
        capture.close()
    return path


def _aside(outcome: Outcome) -> str:
    return f" ({outcome.got})" if outcome.result is Result.SKIPPED else ""


def _should(outcome: Outcome) -> bool:
    return outcome.rule.level is Level.SHOULD


def _case(outcome: Outcome, *, strict: bool) -> str:
    rule, words = outcome.rule, quoteattr(printable(f"{outcome.rule.text} Expected {outcome.expected}; got {outcome.got}"))
    start = f'  <testcase classname={quoteattr(rule.section)} name="{rule.name}" time="{outcome.seconds:.3f}"'
    if fails(outcome, strict=strict):
        return f'{start}><failure type="{outcome.result.value}" message={words}/></testcase>'
    if outcome.result is Result.SKIPPED:
        return f"{start}><skipped message={quoteattr(printable(outcome.got))}/></testcase>"
    if outcome.result in TOLD:
        return f"{start}><system-out>{words[1:-1]}</system-out></testcase>"
    return f"{start}/>"
