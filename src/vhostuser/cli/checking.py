"""What `vhu check` does for either side: the options, the choice of rules, and what it tells of them."""

from __future__ import annotations

import argparse
import json
import random
import re
from collections.abc import Callable, Collection, Generator, Iterable, Sequence
from contextlib import closing
from difflib import get_close_matches
from pathlib import Path
from typing import Final, TypeVar

from ..conformance.outcome import Outcome
from ..conformance.profiles import SPEC, STRICT
from ..conformance.report import TOLD, fails, fields_of, junit, lines_of, save_conversation, summary
from ..conformance.rule import Rule
from ..conformance.told import entry_of
from ..errors import VhostUserError
from ..trace.capture_error import CaptureError
from .arguments import Parser, checked, number, seconds
from .outcome import CommandError, Exit, put

B = TypeVar("B")
_CLOSE: Final = 0.6
Checking = Callable[[], Generator[Outcome, None, None]]


def add_options(parser: Parser, profiles: Collection[str], side: str, timeout: float) -> None:
    """What is asked of both sides in the same words."""
    parser.add_argument("--profile", choices=profiles, default=SPEC, help="a peer as it is (default spec)")
    section = "the rules of sections that contain TEXT; may be repeated, and chooses more then"
    parser.add_argument("--section", metavar="TEXT", action="append", default=[], help=section)
    rule = "the rules whose name matches the regular expression; may be repeated, too"
    parser.add_argument("--rule", metavar="PATTERN", action="append", default=[], help=rule)
    parser.add_argument("--list", action="store_true", help="list the rules, and check nothing; --json says all of each")
    parser.add_argument("--seed", type=checked(number), metavar="N", help="shuffle the rules")
    wait = f"seconds that the {side} may take for an answer (default {timeout:g})"
    parser.add_argument("--timeout", type=checked(seconds), default=timeout, metavar="S", help=wait)
    parser.add_argument("--json", action="store_true", help="one JSON object a line, for each rule")
    parser.add_argument("--junit", metavar="FILE", help="write a JUnit report")
    captures = "write the conversation of each finding, for vhu read and Wireshark"
    parser.add_argument("--captures", metavar="DIR", help=captures)
    parser.add_argument("-v", "--verbose", action="store_true", help="show the rules that are kept or skipped, too")


def chosen(options: argparse.Namespace, rules: Iterable[Rule[B]], program: str) -> list[Rule[B]]:
    """The rules that were asked for, those of a section together, or shuffled: of any of the sections, by any of the names.

    Each section and each name has to choose a rule by itself: one that is misspelt is told.
    """
    every = list(rules)
    patterns = [_pattern(text) for text in options.rule]
    found = [rule for rule in every if _in_any(rule, options.section) and _named(rule, patterns)]
    if complaint := _chose_none(options, every, program):
        raise CommandError(*complaint, Exit.USAGE)
    if not found:
        raise CommandError("no rule is in that section and has such a name", f"try: {program} --list", Exit.USAGE)
    if options.seed is not None:
        random.Random(options.seed).shuffle(found)
        return found
    order = list(dict.fromkeys(rule.section for rule in found))
    return sorted(found, key=lambda rule: order.index(rule.section))


def _pattern(text: str) -> re.Pattern[str]:
    try:
        return re.compile(text)
    except re.error as error:
        raise CommandError(f"--rule {text[:80]!a} is no pattern: {error}", "", Exit.USAGE) from None


def _in_any(rule: Rule[B], sections: Sequence[str]) -> bool:
    """The rule is of one of these sections; of any, if none is named."""
    return not sections or any(text.lower() in rule.section.lower() for text in sections)


def _named(rule: Rule[B], patterns: Sequence[re.Pattern[str]]) -> bool:
    """One of these matches the rule's name; or there is none."""
    return not patterns or any(pattern.search(rule.name) for pattern in patterns)


def _chose_none(options: argparse.Namespace, rules: Sequence[Rule[B]], program: str) -> tuple[str, str] | None:
    """Which option chooses nothing, and what may have been meant; None if each chooses something."""
    for text in options.section:
        if not any(_in_any(rule, [text]) for rule in rules):
            sections = list(dict.fromkeys(rule.section for rule in rules))
            return f"no section contains {text[:80]!a}", _meant(text, sections, program)
    for text in options.rule:
        if not any(re.search(text, rule.name) for rule in rules):
            return f"no rule's name matches {text[:80]!a}", _meant(text, [rule.name for rule in rules], program)
    return None


def _meant(text: str, names: Sequence[str], program: str) -> str:
    """The names that are much like it, whatever the case."""
    lower = {name.lower(): name for name in names}
    bare = re.sub(r"\W+", "_", text.strip().lower()).strip("_")
    near = get_close_matches(text.lower(), lower, 2, _CLOSE) or get_close_matches(bare, lower, 2, _CLOSE)
    return f"did you mean {' or '.join(lower[name] for name in near)}?" if near else f"try: {program} --list"


def listed(rules: Iterable[Rule[B]], *, as_json: bool) -> int:
    """Say which rules there are; as JSON all that is told of each."""
    for rule in rules:
        put(json.dumps(entry_of(rule)) if as_json else f"{rule.level.value:6} {rule.section}: {rule.name}")
    return Exit.DONE


def conclude(options: argparse.Namespace, program: str, check: Checking, advice: str) -> int:
    """Check, tell each outcome as it comes, and sum up, whatever ends it; the exit code."""
    _prepared(options)
    strict, outcomes = options.profile == STRICT, list[Outcome]()
    over = _over(options, check, outcomes, advice)
    if options.junit:
        _write_junit(Path(options.junit), junit(program, outcomes, strict=strict))
    if not options.json and (outcomes or not over):
        put(summary(outcomes))
    if over:
        after = f" (the last rule was {outcomes[-1].rule.name})" if outcomes else ""
        raise CommandError(f"{over}{after}", over.advice, over.code)
    return Exit.FAILED if any(fails(outcome, strict=strict) for outcome in outcomes) else Exit.DONE


def _over(options: argparse.Namespace, check: Checking, outcomes: list[Outcome], advice: str) -> CommandError | None:
    """Add the outcomes, one after the other, to `outcomes`; why there is no other, if the last rule was not reached."""
    try:
        with closing(check()) as each:
            tell = _teller(options)
            for outcome in each:
                outcomes.append(outcome)  # before it is told: what is seen counts, whatever comes then
                tell(outcome)
    except CaptureError as error:
        return CommandError(str(error), "try: another --captures DIR", Exit.USAGE)
    except VhostUserError as error:
        return CommandError(str(error), _hint(error) or advice, Exit.PEER)
    except KeyboardInterrupt:
        return CommandError("interrupted", "", Exit.INTERRUPTED)
    return None


def _hint(error: VhostUserError) -> str:
    """The advice of an error, in words that are of use here: the daemons' option is none of ours."""
    hint = str(getattr(error, "advice", ""))
    return "try: another path" if "--socket-path" in hint else hint


def _write_junit(path: Path, report: str) -> None:
    try:
        path.write_text(report)
    except OSError as error:
        why = f"{path} can't be written: {error.strerror}"
        raise CommandError(why, "try: a --junit FILE elsewhere", Exit.USAGE) from None


def _prepared(options: argparse.Namespace) -> None:
    """Where the report and the captures go can be written to: that is known before anything is checked."""
    try:
        if options.captures:
            Path(options.captures).mkdir(parents=True, exist_ok=True)
        if options.junit:
            Path(options.junit).open("a").close()
    except OSError as error:
        why = f"{error.filename} can't be written: {error.strerror}"
        raise CommandError(why, "try: a folder that is there", Exit.USAGE) from None


def _teller(options: argparse.Namespace) -> Callable[[Outcome], None]:
    """A function that tells an outcome, and keeps the conversation of a finding."""
    section = ""

    def tell(outcome: Outcome) -> None:
        nonlocal section
        if options.json:
            put(json.dumps(fields_of(outcome)))
        elif options.verbose or outcome.result in TOLD:
            if outcome.rule.section != section:
                section = outcome.rule.section
                put(section)
            put("\n".join(lines_of(outcome)))
        if options.captures and outcome.result in TOLD:
            _save(Path(options.captures), outcome)

    return tell


def _save(folder: Path, outcome: Outcome) -> None:
    try:
        save_conversation(folder, outcome)
    except OSError as error:
        raise CaptureError(f"no capture can be written in {folder}: {error.strerror}") from None
