"""`vhu check front-end`: hold a front-end to the specification, rule by rule."""

from __future__ import annotations

import argparse
import json
import random
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Final

from ..conformance.check_frontend import TIMEOUT, check_front_end, front_end_rules, reach_of
from ..conformance.front_profiles import FRONT_END_PROFILES, SPEC, STRICT
from ..conformance.frontend_bench import FrontendBench, Reach
from ..conformance.frontend_peer import Awaited, Launched
from ..conformance.outcome import Outcome, under
from ..conformance.report import TOLD, fails, fields_of, junit, lines_of, save_conversation, summary
from ..conformance.rule import Rule
from ..errors import VhostUserError
from ..protocol.numbers import protocol_feature_names
from .arguments import Parser, checked, number, seconds
from .outcome import CommandError, Exit, interrupt, on_end, program_arguments, put, run

PROGRAM: Final = "vhu check front-end"
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
    outcomes: list[Outcome] = []
    try:
        with _peer(options) as peer:
            outcomes += _tell(options, _outcomes(options, rules, peer))
    except VhostUserError as error:
        raise CommandError(str(error), "try: check that the front-end connects to this path", Exit.PEER) from None
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
    order = list(dict.fromkeys(rule.section for rule in rules))
    return sorted(rules, key=lambda rule: order.index(rule.section))


def _peer(options: argparse.Namespace) -> AbstractContextManager[Awaited | Launched]:
    if options.run:
        return Launched(options.run, path=options.listen or "")
    return Awaited(options.listen)


def _outcomes(options: argparse.Namespace, rules: Sequence[FrontendRule], peer: Awaited | Launched) -> Iterator[Outcome]:
    """Each rule's end, as the profile sees it."""
    reach = reach_of(peer, timeout=options.timeout)
    if not options.json:
        put(_introduction(reach))
    for outcome in check_front_end(rules, peer, reach, timeout=options.timeout):
        yield under(FRONT_END_PROFILES[options.profile], outcome)


def _introduction(reach: Reach) -> str:
    names = " ".join(sorted(protocol_feature_names(reach.protocol))) or "none"
    asks = "asks for regions" if reach.asks else "asks for no regions"
    return f"protocol features {names}; {reach.rings} rings started; {asks}"


def _tell(options: argparse.Namespace, outcomes: Iterator[Outcome]) -> Iterator[Outcome]:
    """Tell each, and keep the conversations of findings."""
    section = ""
    for outcome in outcomes:
        if options.json:
            put(json.dumps(fields_of(outcome)))
        elif options.verbose or outcome.result in TOLD:
            if outcome.rule.section != section:
                section = outcome.rule.section
                put(section)
            put("\n".join(lines_of(outcome)))
        if options.captures and outcome.result in TOLD:
            save_conversation(Path(options.captures), outcome)
        yield outcome


def _concluded(options: argparse.Namespace, outcomes: Sequence[Outcome]) -> int:
    """Sum up; the exit code."""
    strict = options.profile == STRICT
    if options.junit:
        Path(options.junit).write_text(junit(PROGRAM, outcomes, strict=strict))
    if not options.json:
        put(summary(outcomes))
    return Exit.FAILED if any(fails(outcome, strict=strict) for outcome in outcomes) else Exit.DONE


if __name__ == "__main__":
    sys.exit(run(PROGRAM, lambda: check_front(program_arguments(None))))
