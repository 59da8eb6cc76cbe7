"""`vhu check back-end`: hold a back-end to the specification, rule by rule."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Generator, Iterator, Sequence
from typing import Final

from ..conformance.back_end.all_rules import MODULES
from ..conformance.backend_bench import BACK_END, BackendBench
from ..conformance.check_backend import TIMEOUT, check_back_end, offer_of
from ..conformance.outcome import Outcome, under
from ..conformance.peer import Listening, Started, WatchedPeer
from ..conformance.probes import OWN, PROBES, probe_named
from ..conformance.profiles import BACK_END_PROFILES
from ..conformance.rule import Rule
from .arguments import Parser, checked
from .checking import add_options, chosen, conclude, listed
from .outcome import CommandError, Exit, interrupt, on_end, undone
from .running import advice, command_line

PROGRAM: Final = "vhu check back-end"
EPILOG: Final = """
Each rule has a connection of its own. A back-end that ends with a connection is started again with --run: {socket} in CMD
is the path, and so is the environment's `socket`; else it is waited for.

exit status: 0 all that must be kept is; 1 not so, a crash, or not as the profile says; 2 usage; 3 the back-end is not there;
130 interrupted
"""
BackendRule = Rule[BackendBench]


def check_back(arguments: list[str]) -> int:
    """Run `vhu check back-end`; its exit code."""
    options = _parser().parse_args(arguments)
    rules = chosen(options, BACK_END, PROGRAM)
    if options.list:
        return listed(rules, as_json=options.json)
    if not options.socket and not options.run:
        raise CommandError("there is no back-end to check", f"try: {PROGRAM} SOCKET, or --run CMD", Exit.USAGE)
    on_end(interrupt)
    hint = advice(options.run, options.socket, "check that the back-end listens on this path")
    return conclude(options, PROGRAM, lambda: _outcomes(options, rules), hint)


def _parser() -> Parser:
    parser = Parser(
        PROGRAM, f"Hold a vhost-user back-end to the specification, rule by rule: {len(MODULES)} subjects.", EPILOG
    )
    parser.add_argument("socket", nargs="?", metavar="SOCKET", help="the back-end's Unix socket")
    parser.add_argument(
        "--run", type=checked(command_line), metavar="CMD", help="the back-end's command line, started when it is not there"
    )
    what = f"what it is: {', '.join(PROBES)}; or a request that it answers, as {OWN}: rules about rings send it"
    parser.add_argument("--device", type=checked(probe_named), metavar="DEVICE", help=what)
    add_options(parser, BACK_END_PROFILES, "back-end", TIMEOUT)
    return parser


@contextlib.contextmanager
def _peer(options: argparse.Namespace) -> Iterator[WatchedPeer]:
    """The back-end; one that we have started ends with us, whatever ends us."""
    if not options.run:
        yield Listening(options.socket, patience=options.timeout)
        return
    peer = Started(options.run, path=options.socket or "")
    with undone(peer.kill), peer:
        yield peer


def _outcomes(options: argparse.Namespace, rules: Sequence[BackendRule]) -> Generator[Outcome, None, None]:
    """Each rule's end, as the profile sees it."""
    with _peer(options) as peer:
        offer = offer_of(peer, probe=options.device, timeout=options.timeout)
        for outcome in check_back_end(rules, peer, offer, timeout=options.timeout):
            yield under(BACK_END_PROFILES[options.profile], outcome)
