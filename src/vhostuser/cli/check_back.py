"""`vhu check back-end`: hold a back-end to the specification, rule by rule."""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import re
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Final

from ..conformance.back_end.all_rules import MODULES
from ..conformance.backend_bench import BACK_END, BackendBench
from ..conformance.check_backend import TIMEOUT, check_back_end, offer_of
from ..conformance.outcome import Outcome, under
from ..conformance.peer import Listening, Peer, Started
from ..conformance.probes import PROBES
from ..conformance.profiles import BACK_END_PROFILES, SPEC, STRICT
from ..conformance.report import TOLD, fails, fields_of, junit, lines_of, save_conversation, summary
from ..conformance.rule import Rule
from ..errors import VhostUserError
from .arguments import Parser, checked, number, seconds
from .outcome import CommandError, Exit, interrupt, on_end, put

PROGRAM: Final = "vhu check back-end"
EPILOG: Final = """
Each rule has a connection of its own. A back-end that ends with a connection is started again with --run: {socket} in CMD
is the path, and so is the environment's `socket`; else it is waited for.

exit status: 0 all that must be kept is; 1 something is not, or not as the profile says; 2 usage; 3 the back-end is not there
"""
BackendRule = Rule[BackendBench]


def check_back(arguments: list[str]) -> int:
    """Run `vhu check back-end`; its exit code."""
    options = _parser().parse_args(arguments)
    rules = _chosen(options)
    if options.list:
        put("\n".join(f"{rule.level.value:6} {rule.section}: {rule.name}" for rule in rules))
        return Exit.DONE
    if not options.socket and not options.run:
        raise CommandError("there is no back-end to check", f"try: {PROGRAM} SOCKET, or --run CMD", Exit.USAGE)
    on_end(interrupt)
    outcomes: list[Outcome] = []
    try:
        with _peer(options) as peer:
            outcomes += _tell(options, _outcomes(options, rules, peer))
    except VhostUserError as error:
        raise CommandError(str(error), "try: check that the back-end listens on this path", Exit.PEER) from None
    return _concluded(options, outcomes)


def _parser() -> Parser:
    parser = Parser(PROGRAM, "Hold a vhost-user back-end to the specification, rule by rule.", EPILOG)
    parser.add_argument("socket", nargs="?", metavar="SOCKET", help="the back-end's Unix socket")
    parser.add_argument("--run", metavar="CMD", help="the back-end's command line, started when it is not there")
    parser.add_argument("--device", choices=PROBES, help="what it is: rules about rings send it a request")
    parser.add_argument("--profile", choices=BACK_END_PROFILES, default=SPEC, help="a peer as it is (default spec)")
    parser.add_argument("--section", metavar="TEXT", help="the rules of sections that contain TEXT")
    parser.add_argument("--rule", metavar="PATTERN", help="the rules whose name matches the regular expression")
    parser.add_argument("--list", action="store_true", help="list the rules, and check nothing")
    parser.add_argument("--seed", type=checked(number), metavar="N", help="shuffle the rules")
    wait = f"seconds that the back-end may take for an answer (default {TIMEOUT:g})"
    parser.add_argument("--timeout", type=checked(seconds), default=TIMEOUT, metavar="S", help=wait)
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.add_argument("--junit", metavar="FILE", help="write a JUnit report")
    captures = "write the conversation of each finding, for vhu read and Wireshark"
    parser.add_argument("--captures", metavar="DIR", help=captures)
    parser.add_argument("-v", "--verbose", action="store_true", help="show the rules that are kept or skipped, too")
    return parser


def _chosen(options: argparse.Namespace) -> list[BackendRule]:
    """The rules that were asked for, those of a section together."""
    try:
        pattern = re.compile(options.rule or "")
    except re.error as error:
        raise CommandError(f"--rule {options.rule[:80]!a} is no pattern: {error}", "", Exit.USAGE) from None
    wanted = (options.section or "").lower()
    rules = [rule for rule in BACK_END if wanted in rule.section.lower() and pattern.search(rule.name)]
    if not rules:
        raise CommandError(f"none of the rules in {len(MODULES)} modules is chosen", f"try: {PROGRAM} --list", Exit.USAGE)
    if options.seed is not None:
        random.Random(options.seed).shuffle(rules)
        return rules
    order = list(dict.fromkeys(rule.section for rule in rules))
    return sorted(rules, key=lambda rule: order.index(rule.section))


def _peer(options: argparse.Namespace) -> AbstractContextManager[Peer]:
    if options.run:
        return Started(options.run, path=options.socket or "")
    return contextlib.nullcontext(Listening(options.socket, patience=options.timeout))


def _outcomes(options: argparse.Namespace, rules: Sequence[BackendRule], peer: Peer) -> Iterator[Outcome]:
    """Each rule's end, as the profile sees it."""
    offer = offer_of(peer, probe=PROBES[options.device] if options.device else None, timeout=options.timeout)
    for outcome in check_back_end(rules, peer, offer, timeout=options.timeout):
        yield under(BACK_END_PROFILES[options.profile], outcome)


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
