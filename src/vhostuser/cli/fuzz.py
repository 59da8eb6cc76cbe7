"""`vhu fuzz`: a hostile peer, by a seed, for whoever implements the other side."""

from __future__ import annotations

import argparse
import contextlib
import json
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from ..conformance.frontend_peer import Awaited, Launched
from ..conformance.peer import Listening, Started
from ..errors import VhostUserError
from ..fuzzing.act import Conversation
from ..fuzzing.as_back_end import back_end_conversations
from ..fuzzing.as_front_end import front_end_conversations
from ..fuzzing.campaign import Campaign
from ..fuzzing.front_target import FrontendTarget
from ..fuzzing.summary import fields_of, lines_of
from ..fuzzing.target import BackendTarget, Target
from ..protocol.state import Role
from ..trace.capture_error import CaptureError
from .arguments import Parser, between, checked, number, seconds
from .outcome import CommandError, Exit, complain, interrupt, on_end, put, undone
from .running import advice, command_line

PROGRAM: Final = "vhu fuzz"
TIME: Final = 60.0
TIMEOUT: Final = 5.0
SEEDS: Final = 1 << 32
EPILOG: Final = """
Each conversation has a connection of its own: a valid one, in which a few things are wrong. With --run a back-end that has
died is started again; {socket} in CMD is the path, and so is the environment's `socket`. What a front-end says depends on
the seed and on what the back-end offers, and on nothing else.

exit status: 0 nothing was found; 1 something was; 2 usage; 3 the peer is not there, or does not come back
"""


def fuzz(arguments: list[str]) -> int:
    """Run `vhu fuzz`; its exit code."""
    options = _parser().parse_args(arguments)
    _settle(options)
    on_end(interrupt)
    try:
        with _target(options) as (target, make):
            return _conclude(options, target, Campaign(target, make, seconds=options.time, most=options.count))
    except VhostUserError as error:
        hint = getattr(error, "advice", "") or (advice(options.run, options.socket, "") if options.run else "")
        raise CommandError(str(error), hint, Exit.PEER) from None


def _settle(options: argparse.Namespace) -> None:
    """Who we are and where; CommandError if that can't be."""
    if options.listen and (options.socket or options.role == Role.FRONTEND.value):
        raise CommandError("--listen is for a hostile back-end, and names the socket", f"try: {PROGRAM} --help", Exit.USAGE)
    options.role = Role.BACKEND if options.listen else Role(options.role or Role.FRONTEND)
    options.socket = options.socket or options.listen or ""
    if not options.socket and not options.run:
        raise CommandError("there is no peer to talk to", f"try: {PROGRAM} SOCKET, or --run CMD", Exit.USAGE)
    if options.seed is None:
        options.seed = secrets.randbelow(SEEDS)


def _parser() -> Parser:
    parser = Parser(PROGRAM, "Be a hostile vhost-user peer, and find what makes the other side crash, hang or leak.", EPILOG)
    parser.add_argument(
        "socket", nargs="?", metavar="SOCKET", help="where the back-end listens; as the back-end: where to listen"
    )
    parser.add_argument("--listen", metavar="SOCKET", help="be the back-end, and listen there")
    parser.add_argument(
        "--as", dest="role", choices=[role.value for role in Role], help="the side to be: front-end (default) or back-end"
    )
    started = "the peer's command line, started when it is not there"
    parser.add_argument("--run", type=checked(command_line), metavar="CMD", help=started)
    parser.add_argument("--time", type=checked(seconds), default=TIME, metavar="S", help=f"seconds (default {TIME:g})")
    parser.add_argument("--count", type=between(1, SEEDS), metavar="N", help="at most so many conversations")
    parser.add_argument("--seed", type=checked(number), metavar="N", help="the same seed, the same conversations")
    wait = f"seconds that the peer may take for an answer (default {TIMEOUT:g})"
    parser.add_argument("--timeout", type=checked(seconds), default=TIMEOUT, metavar="S", help=wait)
    captures = "write the shortest conversation of each finding, for vhu replay, vhu read and Wireshark"
    parser.add_argument("--captures", metavar="DIR", help=captures)
    parser.add_argument("--json", action="store_true", help="one JSON object a finding, and one for the sum")
    return parser


@contextlib.contextmanager
def _target(options: argparse.Namespace) -> Iterator[tuple[Target, Callable[[int], Conversation]]]:
    """The peer, and what is said to it."""
    with contextlib.ExitStack() as stack:
        if options.role is Role.BACKEND:
            front = FrontendTarget(_front_end(options, stack), timeout=options.timeout)
            stack.callback(front.next.close)
            yield front, back_end_conversations(options.seed, front.asked)
        else:
            back = BackendTarget(_back_end(options, stack), timeout=options.timeout)
            stack.callback(back.next.close)
            yield back, front_end_conversations(options.seed, back.offer)


def _front_end(options: argparse.Namespace, stack: contextlib.ExitStack) -> Awaited | Launched:
    if not options.run:
        return stack.enter_context(Awaited(options.socket))
    peer = Launched(options.run, path=options.socket)
    stack.enter_context(undone(peer.kill))
    return stack.enter_context(peer)


def _back_end(options: argparse.Namespace, stack: contextlib.ExitStack) -> Listening | Started:
    if not options.run:
        return Listening(options.socket, patience=options.timeout)
    peer = Started(options.run, path=options.socket)
    stack.enter_context(undone(peer.kill))
    return stack.enter_context(peer)


def _conclude(options: argparse.Namespace, target: Target, campaign: Campaign) -> int:
    """Go through with it, tell each finding as it comes, and sum up, whatever ends it."""
    over: CommandError | None = None
    try:
        for finding in campaign.run():
            if options.captures:
                finding.save(Path(options.captures))
            if not options.json:
                put("\n".join(finding.lines()))
    except KeyboardInterrupt:
        complain(PROGRAM, "interrupted")
    except CaptureError as error:
        over = CommandError(str(error), "try: another --captures DIR", Exit.USAGE)
    except VhostUserError as error:
        over = CommandError(str(error), "try: --run CMD, which starts it again", Exit.PEER)
    if options.json:
        for finding in campaign.findings:
            put(json.dumps(finding.fields()))
        put(json.dumps(fields_of(campaign, seed=options.seed, restarts=target.restarts)))
    else:
        put("\n".join(lines_of(campaign, seed=options.seed, restarts=target.restarts)))
    if over:
        raise over
    return Exit.FAILED if campaign.findings else Exit.DONE
