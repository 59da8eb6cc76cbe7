"""`vhu check front-end`: hold a front-end to the specification, rule by rule."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Generator, Iterator, Sequence
from typing import Final

from ..conformance.check_frontend import TIMEOUT, check_front_end, front_end_rules, reach_of
from ..conformance.front_profiles import FRONT_END_PROFILES
from ..conformance.frontend_bench import FrontendBench, Reach
from ..conformance.frontend_peer import Awaited, Launched
from ..conformance.outcome import Outcome, under
from ..conformance.rule import Rule
from ..protocol.numbers import protocol_feature_names
from .arguments import Parser, checked
from .checking import add_options, chosen, conclude, listed
from .outcome import CommandError, Exit, interrupt, on_end, put, undone
from .running import advice, command_line

PROGRAM: Final = "vhu check front-end"
EPILOG: Final = """
Each rule has a connection of its own. Without --run the front-end has to connect to SOCKET again whenever a connection is
over; with it CMD is started for each, and {socket} in it is the path. CMD may bring a driver with it: what needs a ring that
runs is skipped where none is started.

exit status: 0 all that must be kept is; 1 not so, a crash, or not as the profile says; 2 usage; 3 nobody connected;
130 interrupted
"""
FrontendRule = Rule[FrontendBench]


def check_front(arguments: list[str]) -> int:
    """Run `vhu check front-end`; its exit code."""
    options = _parser().parse_args(arguments)
    rules = chosen(options, front_end_rules(), PROGRAM)
    if options.list:
        return listed(rules, as_json=options.json)
    if not options.listen and not options.run:
        raise CommandError("there is no front-end to check", "try: --listen SOCKET, or --run CMD", Exit.USAGE)
    on_end(interrupt)
    hint = advice(options.run, options.listen, "check that the front-end connects to this path")
    return conclude(options, PROGRAM, lambda: _outcomes(options, rules), hint)


def _parser() -> Parser:
    parser = Parser(PROGRAM, "Hold a vhost-user front-end to the specification, rule by rule.", EPILOG)
    parser.add_argument("--listen", metavar="SOCKET", help="the path that the front-end connects to")
    started = "the front-end's command line, started for each rule"
    parser.add_argument("--run", type=checked(command_line), metavar="CMD", help=started)
    add_options(parser, FRONT_END_PROFILES, "front-end", TIMEOUT)
    return parser


@contextlib.contextmanager
def _peer(options: argparse.Namespace) -> Iterator[Awaited | Launched]:
    """The front-end; one that we have started ends with us, whatever ends us."""
    if not options.run:
        with Awaited(options.listen) as awaited:
            yield awaited
        return
    peer = Launched(options.run, path=options.listen or "")
    with undone(peer.kill), peer:
        yield peer


def _outcomes(options: argparse.Namespace, rules: Sequence[FrontendRule]) -> Generator[Outcome, None, None]:
    """Each rule's end, as the profile sees it."""
    with _peer(options) as peer:
        reach = reach_of(peer, timeout=options.timeout)
        if not options.json:
            put(_introduction(reach))
        for outcome in check_front_end(rules, peer, reach, timeout=options.timeout):
            yield under(FRONT_END_PROFILES[options.profile], outcome)


def _introduction(reach: Reach) -> str:
    names = " ".join(sorted(protocol_feature_names(reach.protocol))) or "none"
    asks = "asks for regions" if reach.asks else "asks for no regions"
    return f"protocol features {names}; {reach.rings} rings started; {asks}"
