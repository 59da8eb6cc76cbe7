"""`vhu trace`: a proxy between a front-end and a back-end that shows, writes down, and if told so changes what passes."""

from __future__ import annotations

import argparse
import contextlib
import gc
import logging
import os
import resource
import socket
import subprocess
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from ..trace.addons import Addon
from ..trace.event import Message
from ..trace.inject import GRAMMAR as RULES
from ..trace.inject import InjectionRule, Injector, RuleError, parse_rule
from ..trace.jsonl import JsonlWriter
from ..trace.pcapng import PcapngWriter
from ..trace.proxy import Proxy
from ..trace.requests import KINDS
from ..trace.session import session
from ..trace.verdict import Alter, Verdict, both
from ..transport.listen import AddressError
from ..transport.loop import SignalWaker
from .arguments import Parser
from .children import Child
from .filters import add_filter, filter_of
from .logs import log_to_stderr
from .outcome import CommandError, Exit, colours, complain, on_end, undone
from .trace_ends import PATIENCE, BackEnd, FrontEnds, private_path, running
from .trace_outputs import STANDARD, Captured, Outputs, json_shown, lines_shown, summary_shown

PROGRAM: Final = "vhu trace"
_BY_SIGNAL: Final = 128
_LOOK: Final = 0.2
GUESSED: Final = "guess"
EPILOG: Final = f"""
The front-end (QEMU) connects to A, and B is the back-end; either may be fd:N, an open socket. Front-ends are served one
after the other until SIGINT; --once ends with the first. With --run one of the two may be left out: CMD is started as that
side, with the path of a private socket as $socket (or {{socket}}), and it all ends with CMD:

  vhu trace --listen /tmp/a --connect /tmp/b -w session.pcapng
  vhu trace --connect /tmp/b --run 'vhu info $socket'
  vhu trace --listen /tmp/a --run 'vhu-fs --socket-path $socket --shared-dir .' -e 'SHMEM_* or refused'

A line is a request, its reply and how long that took; what goes wrong with an output ends that output, not the session.

{RULES}
-s ADDON.py: `def shmem_map(message)` is called with each SHMEM_MAP, `def shmem_map_reply(message)` with each reply to one,
`def message(message)` with all; .name .values .message .fds say what it is. None leaves it as it is; message.changed(len=0),
.dropped(), .refused(12), .delayed(0.1), .closed() do not.

exit status: 0 done, 1 an output failed, 2 usage, 3 the back-end is not there; with --run, as CMD where that ends first
"""


def trace(arguments: list[str]) -> int:
    """Run `vhu trace`; its exit code."""
    parser = _parser()
    options = parser.parse_args(arguments)
    _check(options)
    log_to_stderr(PROGRAM, logging.WARNING)
    limit = _raise_limit()
    with contextlib.ExitStack() as opened:
        tracer = Tracer(options, opened, limit)
        on_end(tracer.stop)
        gc.freeze()  # what is there now stays: the collector need not look at it again and again
        code = tracer.run()
    return code if code or not tracer.outputs.failed else Exit.FAILED


def _parser() -> Parser:
    text = "Pass a vhost-user connection on, and show every message of both its channels."
    parser = Parser(PROGRAM, text, epilog=EPILOG)
    parser.add_argument("--listen", metavar="A", help="where the front-end connects: a path, or fd:N")
    parser.add_argument("--connect", metavar="B", help="where the back-end listens: a path, or fd:N")
    parser.add_argument("--run", metavar="CMD", help="start CMD with $socket, and end with it")
    parser.add_argument("--once", action="store_true", help="end with the first connection")
    add_filter(parser)
    parser.add_argument("-c", "--summary", action="store_true", help="no lines, but a table of them all in the end")
    parser.add_argument("-t", "--absolute", action="store_true", help="times of day instead of seconds since the beginning")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.add_argument("-q", "--quiet", action="store_true", help="do not say in the end how much it was")
    parser.add_argument("--color", choices=("auto", "always", "never"), default="auto", help="default: auto")
    parser.add_argument("-w", "--write", metavar="FILE", help="write a capture for Wireshark (pcapng); - is standard output")
    parser.add_argument("--jsonl", metavar="FILE", help="write a capture in JSON Lines; - is standard output")
    parser.add_argument(
        "--queues",
        nargs="?",
        const=GUESSED,
        choices=(GUESSED, *KINDS),
        metavar="KIND",
        help="follow guest memory and rings, and show requests in them: of blk or fs, raw ones, or guess (the default)",
    )
    parser.add_argument("--inject", metavar="RULE", action="append", default=[], help="do this to messages; may be repeated")
    parser.add_argument("-s", "--script", metavar="ADDON.py", action="append", default=[], help="let a program see to them")
    return parser


def _check(options: argparse.Namespace) -> None:
    """The ends are given, or can be. CommandError."""
    missing = [name for name in ("listen", "connect") if getattr(options, name) is None]
    if missing and not (options.run and len(missing) == 1):
        advice = f"try: {PROGRAM} --listen A --connect B, or --run CMD in place of one of them"
        raise CommandError(f"--{missing[0]} is missing", advice, Exit.USAGE)
    if options.run and not missing and options.listen.startswith("fd:"):
        raise CommandError("--run needs a path to connect to", "try: without --listen", Exit.USAGE)
    if STANDARD in (options.write, options.jsonl) and (options.json or options.summary or options.write == options.jsonl):
        raise CommandError("only one of them can be written to standard output", code=Exit.USAGE)
    if options.write and options.jsonl and os.path.realpath(options.write) == os.path.realpath(options.jsonl):
        raise CommandError("-w and --jsonl name the same file", "try: two names", Exit.USAGE)


def _raise_limit() -> int:
    """Room for as many fds as this process may have: what peers send each other is open here for a moment. The old limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return soft


class Tracer:
    """A run of the command: one session after the other."""

    def __init__(self, options: argparse.Namespace, opened: contextlib.ExitStack, limit: int) -> None:
        """`limit` is how many fds the command of --run may open."""
        self._options, self._opened, self._limit = options, opened, limit
        self._rules = [_rule(text) for text in options.inject]
        self._alter = _all_of([*(Addon(path, _report) for path in options.script), *_injectors(self._rules)])
        self.outputs = opened.enter_context(Outputs(PROGRAM))
        self._waker = opened.enter_context(SignalWaker())
        self._proxy: Proxy | None = None
        self._ended, self._sessions, self._began = False, 0, time.monotonic()

    def stop(self) -> None:
        """End it all; from a signal handler."""
        self._ended = True
        self._waker.set()
        self.outputs.hurry()
        if self._proxy is not None:
            self._proxy.stop()

    def run(self) -> int:
        """Serve front-ends until it is over; the exit code."""
        opened, options = self._opened, self._options
        private = opened.enter_context(private_path()) if options.run else ""
        back_end = opened.enter_context(contextlib.closing(BackEnd(options.connect or private, options.run or "")))
        front_ends = opened.enter_context(contextlib.closing(_front_ends(options.listen or private, self._waker)))
        opened.enter_context(undone(front_ends.close))
        _add_outputs(self.outputs, options)  # once the ends are there: a capture is emptied by it
        opened.callback(self.say_goodbye)
        opened.callback(self.outputs.end)
        process: Child | None = None
        if options.run:
            path = private if options.listen is None or options.connect is None else options.listen
            process = opened.enter_context(running(options.run, path, self._limit))
        code = self._serve(front_ends, back_end, process)
        if process is not None and options.connect is not None:
            self._await(process)
        status = process.poll() if process and not self._ended and code == Exit.DONE else None
        return code if status is None else status if status >= 0 else _BY_SIGNAL - status

    def _await(self, process: Child) -> None:
        """Let a front-end end by itself: it may have something to do yet after its session."""
        deadline = time.monotonic() + PATIENCE
        while not self._ended and process.poll() is None and time.monotonic() < deadline:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_LOOK)

    def _serve(self, front_ends: FrontEnds, back_end: BackEnd, process: Child | None) -> int:
        """Front-ends until there is no other; the exit code."""
        is_back_end = process if self._options.connect is None else None
        once = front_ends.only_one or back_end.only_one or (self._options.once and process is is_back_end)
        code = Exit.DONE
        while (front := front_ends.next(lambda: self._ended, process)) is not None:
            try:
                back = back_end.reach(is_back_end, PATIENCE if is_back_end else 0)
            except AddressError as error:
                front.close()
                complain(PROGRAM, str(error), error.advice)
                code = Exit.PEER
            else:
                code = Exit.DONE
                self._pass_on(front, back)
            if once:
                break
        return code

    def _pass_on(self, front: socket.socket, back: socket.socket) -> None:
        """One session."""
        number, queues = self._sessions, bool(self._options.queues)
        self._sessions += 1
        with session(front, back, self.outputs.take, connection=number, alter=self._alter, queues=queues) as self._proxy:
            if self._ended:
                self._proxy.stop()
            self._proxy.run()

    def say_goodbye(self) -> None:
        """How much it was, on standard error."""
        if self._options.quiet:
            return
        seconds = time.monotonic() - self._began
        plural = "" if self._sessions == 1 else "s"
        counted = f"{self.outputs.messages} messages on {self._sessions} connection{plural} in {seconds:.1f} s"
        done = [f"{rule.text}: done {rule.done} times" for rule in self._rules]
        complain(PROGRAM, "; ".join([counted, *self.outputs.written, *done]))


def _front_ends(where: str, waker: SignalWaker) -> FrontEnds:
    try:
        return FrontEnds(where, waker)
    except AddressError as error:
        advice = error.advice.replace("--socket-path", "--listen").replace("--fd with", "fd:N of")
        raise CommandError(str(error), advice) from None


def _add_outputs(outputs: Outputs, options: argparse.Namespace) -> None:
    """All that is written, as the options say."""
    chosen, kind = filter_of(options), None if options.queues == GUESSED else options.queues
    if options.summary:
        outputs.add(summary_shown(chosen, in_json=options.json, kind=kind))
    elif options.json:
        outputs.add(json_shown(chosen, absolute=options.absolute, kind=kind))
    elif STANDARD not in (options.write, options.jsonl):
        colour = colours() if options.color == "auto" else options.color == "always"
        outputs.add(lines_shown(chosen, colour=colour, absolute=options.absolute, kind=kind))
    for path, make in ((options.write, PcapngWriter), (options.jsonl, JsonlWriter)):
        if path is not None:
            outputs.add(Captured(path, make))


def _rule(text: str) -> InjectionRule:
    try:
        return parse_rule(text)
    except RuleError as error:
        raise CommandError(f"--inject: {error.reason}", code=Exit.USAGE, shown=error.underlined) from None


def _injectors(rules: Sequence[InjectionRule]) -> list[Alter]:
    return [Injector(rules)] if rules else []


def _all_of(alters: Sequence[Alter]) -> Alter | None:
    """One that asks each of them in turn, about what the one before made of a message."""

    def alter(message: Message, fds: Sequence[int]) -> Verdict | None:
        found: Verdict | None = None
        for each in alters:
            verdict = each(message, fds)
            found = both(found, verdict)
            if verdict and (verdict.close or verdict.data == b""):
                break
            if verdict and verdict.data:
                message = replace(message, data=verdict.data)
        return found

    return alter if alters else None


def _report(text: str) -> None:
    complain(PROGRAM, text)
