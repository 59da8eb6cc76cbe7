"""What all daemons share ("Backend program conventions"): where they listen, when they end, what they can."""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import resource
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Final

from ..backend import Backend
from ..device import Device
from ..protocol.dialects import RELEASED
from ..sandbox.closed import close_up
from ..sandbox.preload import preload
from ..sandbox.seccomp import Action
from ..transport.fds import OwnedFd
from ..transport.listen import listen, systemd_fd
from .arguments import Parser, between, dialect_of, one_of
from .logs import add_log_level, log_to_stderr
from .outcome import CommandError, Exit, on_end, program_arguments, put, run

log = logging.getLogger(__name__)
FILES: Final = 1 << 16
"""As many open files a daemon wants at most."""
ENDING: Final = """
exit status: 0 the front-end went or a signal came, 1 failed, 2 usage, 3 the front-end broke the protocol
SIGTERM, SIGINT and SIGHUP end it cleanly; the second one ends it at once. SIGPIPE is ignored. A system call that it never
needs is a SIGSYS, which ends it, too (--seccomp).
"""
"""The end of every daemon's help."""


def daemon(
    parser: Callable[[], Parser],
    device: Callable[[argparse.Namespace], AbstractContextManager[Device]],
    *,
    program: str,
    capabilities: Mapping[str, object],
    argv: list[str] | None,
    removed: Sequence[str] = ("socket_path",),
    terminal: bool = False,
) -> int:
    """Run a daemon: parse its command line, make its device, serve it; the exit code.

    `removed` are its options that have a path which is taken away in the end; `terminal` if it gives one back as it was.
    """
    arguments = program_arguments(argv)

    def command() -> int:
        if "--print-capabilities" in arguments:
            put(json.dumps(capabilities))
            return Exit.DONE
        options = parser().parse_args(arguments)
        log_to_stderr(program, options.log_level)
        _raise_file_limit()
        if options.seccomp is not Action.NONE:
            preload()
        with device(options) as made:
            backend = Backend(made, dialect=dialect_of(options))
            on_end(backend.stop)
            with _listener(options, program) as fd:
                _close(options, removed, terminal=terminal)
                backend.serve_fd(fd(), once=not options.reconnect)
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


def add_seccomp(parser: Parser) -> None:
    """--seccomp, with virtiofsd's values."""
    text = "what becomes of a system call that is never needed: the end (default), a line in the kernel's log, or a SIGSYS"
    action = one_of(Action)
    parser.add_argument("--seccomp", type=action, default=Action.KILL, metavar="kill|log|trap|none", help=text)


def add_rest(parser: Parser) -> None:
    """What comes last where no shared memory is: --seccomp, --once, --reconnect and --log-level."""
    parser.set_defaults(dialect=RELEASED)
    add_seccomp(parser)
    add_once(parser)
    add_log_level(parser)


@contextlib.contextmanager
def _listener(options: argparse.Namespace, program: str) -> Iterator[Callable[[], int]]:
    """What gives the fd to serve, which is the caller's from then on. The name of a socket is gone after the block."""
    if options.socket_path is None:
        fd = _given_fd(options, program)
        yield lambda: fd
        return
    with listen(options.socket_path) as listener:
        try:
            with OwnedFd(os.dup(listener.fileno())) as served:  # the listener itself is open until its name is gone
                yield served.detach
        finally:
            listener.remove_name()


def _given_fd(options: argparse.Namespace, program: str) -> int:
    """The fd of the command line's, or of systemd's."""
    fd: int | None = options.fd if options.fd is not None else systemd_fd()
    if fd is None:
        advice = f"try: --socket-path /tmp/{program.removeprefix('vhu-')}.sock"
        raise CommandError("neither --socket-path nor --fd is given", advice, Exit.USAGE)
    return fd


def _close(options: argparse.Namespace, removed: Sequence[str], *, terminal: bool) -> None:
    """Leave this process what serving takes, and say what is not as it was asked for."""
    names = [name for option in removed if (name := getattr(options, option)) is not None]
    for note in close_up(options.seccomp, removed=names, terminal=terminal):
        log.warning("%s", note)
