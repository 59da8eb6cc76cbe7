"""What all daemons share ("Backend program conventions"): where they listen, when they end, what they can."""

from __future__ import annotations

import argparse
import json
import resource
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Final

from ..backend import Backend
from ..device import Device
from ..protocol.dialects import RELEASED
from ..transport.listen import systemd_fd
from .arguments import Parser, between, dialect_of
from .logs import add_log_level, log_to_stderr
from .outcome import CommandError, Exit, on_end, program_arguments, put, run

FILES: Final = 1 << 16
"""As many open files a daemon wants at most."""
ENDING: Final = """
exit status: 0 the front-end went or a signal came, 1 failed, 2 usage, 3 the front-end broke the protocol
SIGTERM, SIGINT and SIGHUP end it cleanly; the second one ends it at once. SIGPIPE is ignored.
"""
"""The end of every daemon's help."""


def daemon(
    parser: Callable[[], Parser],
    device: Callable[[argparse.Namespace], AbstractContextManager[Device]],
    *,
    program: str,
    capabilities: Mapping[str, object],
    argv: list[str] | None,
) -> int:
    """Run a daemon: parse its command line, make its device, serve it; the exit code."""
    arguments = program_arguments(argv)

    def command() -> int:
        if "--print-capabilities" in arguments:
            put(json.dumps(capabilities))
            return Exit.DONE
        options = parser().parse_args(arguments)
        log_to_stderr(program, options.log_level)
        _raise_file_limit()
        with device(options) as made:
            backend = Backend(made, dialect=dialect_of(options))
            on_end(backend.stop)
            _serve(backend, options, program)
        return Exit.DONE

    return run(program, command)


def _raise_file_limit() -> None:
    """Open as many files as the process may: a ring takes four, a guest's memory some more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = FILES if hard == resource.RLIM_INFINITY else min(hard, FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def add_socket(parser: Parser) -> None:
    """--socket-path, --fd and --print-capabilities."""
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--socket-path", metavar="PATH", help="listen on this Unix socket")
    where.add_argument(
        "--fd", type=between(0, 2**31 - 1), help="use this socket, listening or connected (default: systemd's)"
    )
    parser.add_argument("--print-capabilities", action="store_true", help="print capabilities as JSON, and do nothing else")


def add_once(parser: Parser) -> None:
    """--once and --reconnect."""
    often = parser.add_mutually_exclusive_group()
    often.add_argument("--once", action="store_true", help="end when the front-end goes (the default)")
    often.add_argument("--reconnect", action="store_true", help="serve one front-end after the other")


def add_rest(parser: Parser) -> None:
    """What comes last where no shared memory is: --once, --reconnect and --log-level."""
    parser.set_defaults(dialect=RELEASED)
    add_once(parser)
    add_log_level(parser)


def _serve(backend: Backend, options: argparse.Namespace, program: str) -> None:
    once = not options.reconnect
    if options.socket_path is not None:
        backend.serve(options.socket_path, once=once)
        return
    fd = options.fd if options.fd is not None else systemd_fd()
    if fd is None:
        advice = f"try: --socket-path /tmp/{program.removeprefix('vhu-')}.sock"
        raise CommandError("neither --socket-path nor --fd is given", advice, Exit.USAGE)
    backend.serve_fd(fd, once=once)
