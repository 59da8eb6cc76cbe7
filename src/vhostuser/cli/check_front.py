"""`vhu check front-end`: hold a front-end to the specification, rule by rule."""

from __future__ import annotations

import argparse
import json
import random
import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Final
from xml.sax.saxutils import quoteattr

from ..conformance.check_frontend import TIMEOUT, check_one, front_end_rules, reach_of
from ..conformance.front_profiles import FRONT_END_PROFILES, SPEC, STRICT
from ..conformance.frontend_bench import FrontendBench, Reach
from ..conformance.frontend_peer import Awaited, Launched
from ..conformance.outcome import Outcome, Result, under
from ..conformance.rule import Level, Rule
from ..errors import VhostUserError
from ..limited_log import printable
from ..protocol.numbers import protocol_feature_names
from ..trace.capture import create_capture
from .arguments import Parser, checked, number, seconds
from .outcome import CommandError, Exit, interrupt, on_end, program_arguments, put, run

PROGRAM: Final = "vhu check front-end"
BAD: Final = (Result.BROKEN, Result.CRASHED, Result.HUNG)
EPILOG: Final = """
Each rule has a connection of its own. Without --run the front-end has to connect to SOCKET again whenever a connection is
over; with it CMD is started for each, and {socket} in it is the path. CMD may bring a driver with it: what needs a ring that
runs is skipped where none is started.

exit status: 0 all that must be kept is; 1 something is not, or not as the profile says; 2 usage; 3 nobody connected
"""
FrontendRule = Rule[FrontendBench]


def check_front(arguments: list[str]) -> int:
    """Run `vhu check front-end`; its exit code."""
    options = _parser().parse_args(arguments)
    rules = _chosen(options)
    if options.list:
        put("\n".join(f"{rule.level.value:6} {rule.section}: {rule.name}" for rule in rules))
        return Exit.DONE
    if not options.listen and not options.run:
        raise CommandError("there is no front-end to check", "try: --listen SOCKET, or --run CMD", Exit.USAGE)
    on_end(interrupt)
    try:
        with _peer(options) as peer:
            reach = reach_of(peer, timeout=options.timeout)
            if not options.json:
                put(_introduction(reach))
            outcomes = [_told(options, under(_profile(options), each)) for each in _run(rules, peer, reach, options)]
    except VhostUserError as error:
        raise CommandError(str(error), "try: check that the front-end connects to this path", Exit.PEER) from None
    except KeyboardInterrupt:
        return Exit.INTERRUPTED
    return _concluded(options, outcomes)


def _parser() -> Parser:
    parser = Parser(PROGRAM, "Hold a vhost-user front-end to the specification, rule by rule.", EPILOG)
    parser.add_argument("--listen", metavar="SOCKET", help="the path that the front-end connects to")
    parser.add_argument("--run", metavar="CMD", help="the front-end's command line, started for each rule")
    parser.add_argument("--profile", choices=FRONT_END_PROFILES, default=SPEC, help="a peer as it is (default spec)")
    parser.add_argument("--section", metavar="TEXT", help="the rules of sections that contain TEXT")
    parser.add_argument("--rule", metavar="PATTERN", help="the rules whose name matches the regular expression")
    parser.add_argument("--list", action="store_true", help="list the rules, and check nothing")
    parser.add_argument("--seed", type=checked(number), metavar="N", help="shuffle the rules")
    wait = f"seconds that the front-end may take for an answer (default {TIMEOUT:g})"
    parser.add_argument("--timeout", type=checked(seconds), default=TIMEOUT, metavar="S", help=wait)
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.add_argument("--junit", metavar="FILE", help="write a JUnit report")
    parser.add_argument(
        "--captures", metavar="DIR", help="write the conversation of each finding, for vhu read and Wireshark"
    )
    parser.add_argument("-v", "--verbose", action="store_true", help="show the rules that are kept or skipped, too")
    return parser


def _chosen(options: argparse.Namespace) -> list[FrontendRule]:
    """The rules that were asked for."""
    try:
        pattern = re.compile(options.rule or "")
    except re.error as error:
        raise CommandError(f"--rule {options.rule[:80]!a} is no pattern: {error}", "", Exit.USAGE) from None
    wanted = (options.section or "").lower()
    rules = [rule for rule in front_end_rules() if wanted in rule.section.lower() and pattern.search(rule.name)]
    if not rules:
        raise CommandError("no rule is chosen", f"try: {PROGRAM} --list", Exit.USAGE)
    if options.seed is not None:
        random.Random(options.seed).shuffle(rules)
    return rules


def _peer(options: argparse.Namespace) -> AbstractContextManager[Awaited | Launched]:
    if options.run:
        return Launched(options.run, path=options.listen or "")
    return Awaited(options.listen)


def _profile(options: argparse.Namespace) -> dict[str, str]:
    return dict(FRONT_END_PROFILES[options.profile])


def _run(
    rules: Sequence[FrontendRule], peer: Awaited | Launched, reach: Reach, options: argparse.Namespace
) -> Iterator[Outcome]:
    for rule in rules:
        yield check_one(rule, peer, reach, timeout=options.timeout)


def _introduction(reach: Reach) -> str:
    names = " ".join(sorted(protocol_feature_names(reach.protocol))) or "none"
    asks = "asks for regions" if reach.asks else "asks for no regions"
    return f"protocol features {names}; {reach.rings} rings started; {asks}"


# What is told


def _told(options: argparse.Namespace, outcome: Outcome) -> Outcome:
    """Tell one outcome, and keep its conversation; itself."""
    if options.json:
        put(json.dumps(_fields(outcome)))
    elif options.verbose or outcome.result not in (Result.KEPT, Result.SKIPPED):
        put(printable(_line(outcome)))
    if options.captures and outcome.result in (*BAD, Result.KNOWN):
        _capture(Path(options.captures), outcome)
    return outcome


def _fields(outcome: Outcome) -> dict[str, object]:
    rule = outcome.rule
    return {
        "rule": rule.name,
        "section": rule.section,
        "level": rule.level.value,
        "result": outcome.result.value,
        "text": rule.text,
        "expected": outcome.expected,
        "got": outcome.got,
        "seconds": round(outcome.seconds, 3),
    }


def _line(outcome: Outcome) -> str:
    rule = outcome.rule
    line = f"{outcome.result.value:8} {rule.level.value:6} {rule.section}: {rule.name}"
    if outcome.result in (Result.KEPT, Result.SKIPPED):
        return f"{line} ({outcome.got})" if outcome.got else line
    return f"{line}; {rule.text} Expected: {outcome.expected}. Got: {outcome.got}"


def _capture(place: Path, outcome: Outcome) -> None:
    place.mkdir(parents=True, exist_ok=True)
    capture = create_capture(place / f"{outcome.rule.name}.pcapng")
    try:
        for event in outcome.events:
            capture.write(event)
    finally:
        capture.close()


def _concluded(options: argparse.Namespace, outcomes: Sequence[Outcome]) -> int:
    """Sum up; the exit code."""
    if options.junit:
        Path(options.junit).write_text(_junit(outcomes))
    counts = Counter(outcome.result.value for outcome in outcomes)
    warnings = sum(outcome.warns for outcome in outcomes)
    if not options.json:
        words = ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))
        put(f"{len(outcomes)} rules: {words}" + (f"; {warnings} of these are no MUST" if warnings else ""))
    return Exit.FAILED if any(_fails(options, outcome) for outcome in outcomes) else Exit.DONE


def _fails(options: argparse.Namespace, outcome: Outcome) -> bool:
    strictly = options.profile == STRICT and outcome.rule.level is Level.SHOULD and outcome.warns
    return outcome.fails or strictly or outcome.result is Result.FIXED


def _junit(outcomes: Sequence[Outcome]) -> str:
    failures = sum(outcome.result in BAD for outcome in outcomes)
    lines = [f'<testsuite name="{PROGRAM}" tests="{len(outcomes)}" failures="{failures}">']
    for outcome in outcomes:
        rule = outcome.rule
        case = f'  <testcase classname={quoteattr(rule.section)} name={quoteattr(rule.name)} time="{outcome.seconds:.3f}"'
        if outcome.result in BAD:
            text = quoteattr(printable(f"expected {outcome.expected}, got {outcome.got}"))
            lines.append(f'{case}><failure type="{outcome.result.value}" message={text}/></testcase>')
        elif outcome.result is Result.SKIPPED:
            lines.append(f"{case}><skipped message={quoteattr(printable(outcome.got))}/></testcase>")
        else:
            lines.append(f"{case}/>")
    return "\n".join([*lines, "</testsuite>", ""])


if __name__ == "__main__":
    sys.exit(run(PROGRAM, lambda: check_front(program_arguments(None))))
