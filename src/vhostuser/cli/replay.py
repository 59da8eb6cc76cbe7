"""`vhu replay`: one side of a capture against a live peer."""

from __future__ import annotations

import contextlib
import json
import os
import socket
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import asdict
from typing import Final

from ..protocol.state import Role
from ..trace.capture import open_capture
from ..trace.replay import TIMEOUT, Replay
from ..transport.listen import accept, connect, listen
from .arguments import Parser, between, checked, seconds
from .logs import add_log_level, log_to_stderr
from .outcome import CommandError, Exit, interrupt, on_end, put, reach, undone

PROGRAM: Final = "vhu replay"
_EPILOG: Final = """\
What is sent is what was recorded, with fds in place of those of then: an eventfd for an eventfd, and a memfd of the same
size for memory and files, empty (--files opens the files that still are where they were). No driver puts requests into
the rings: what the device asked for because of one does not come. What the peer sends is compared, field by field:

  message 17: SHMEM_MAP shm_offset recorded 0x2000, now 0x3000

Addresses of the front-end's are others each time: --ignore user_addr --ignore descriptor --ignore available --ignore used
--ignore mmap_offset leaves them out. Exit status: 0 the same, 1 it differs, 3 the peer is gone, or broke the protocol."""


def replay(arguments: list[str]) -> int:
    """Run `vhu replay`; its exit code."""
    options = _parser().parse_args(arguments)
    log_to_stderr(PROGRAM, options.log_level)
    on_end(interrupt)
    if not os.path.exists(options.file):
        raise CommandError(f"there is no capture {options.file}", "try: vhu trace -w FILE to record one")
    with _connected(options) as sock:
        play = Replay(
            open_capture(options.file),
            options.role,
            sock,
            connection=options.connection,
            timeout=options.timeout,
            ignored=options.ignore,
            files=options.files,
            recorded_speed=options.speed == "recorded",
        )
        with play:
            found = _shown(play, as_json=options.json)
            return _verdict(play.played, found, options)


def _parser() -> Parser:
    parser = Parser(PROGRAM, "Play one side of a capture against a live peer, and show where that differs.", _EPILOG)
    parser.add_argument("file", metavar="FILE", help="a capture, as vhu trace writes it (pcapng or JSON Lines)")
    parser.add_argument("socket", metavar="SOCKET", help="where the back-end listens; as the back-end: where to listen")
    parser.add_argument(
        "--as", dest="role", type=_role, required=True, metavar="SIDE", help="the side to be: front-end or back-end"
    )
    parser.add_argument(
        "--timeout", type=checked(seconds), default=TIMEOUT, metavar="S", help="seconds that each wait may take (default 5)"
    )
    parser.add_argument(
        "--speed",
        choices=("asap", "recorded"),
        default="asap",
        help="as soon as it may (default), or not sooner than then",
    )
    parser.add_argument(
        "--ignore", action="append", default=[], metavar="FIELD", help="a field that may differ; may be given again"
    )
    parser.add_argument("--files", action="store_true", help="open the files of then, read-only, where they still are")
    parser.add_argument(
        "--connection", type=between(0, 1 << 32), metavar="N", help="which connection of the capture (default: its first)"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object a difference, and one for the sum")
    add_log_level(parser, "warn")
    return parser


@checked
def _role(text: str) -> Role:
    sides = {"front": Role.FRONTEND, "front-end": Role.FRONTEND, "back": Role.BACKEND, "back-end": Role.BACKEND}
    if text not in sides:
        raise ValueError(f"{text[:40]!a} is no side (front-end or back-end)")
    return sides[text]


@contextlib.contextmanager
def _connected(options: Namespace) -> Iterator[socket.socket]:
    """A connection to the peer, which is the Replay's."""
    if options.role is Role.FRONTEND:
        yield reach(options.socket, lambda: connect(options.socket))
        return
    listener = reach(options.socket, lambda: listen(options.socket), listening=True)
    with listener, undone(listener.remove_name):
        yield accept(listener, options.timeout)


def _shown(play: Replay, *, as_json: bool) -> int:
    """Print each difference when it shows; how many there were."""
    count = 0
    for found in play.differences():
        put(json.dumps(asdict(found)) if as_json else str(found))
        count += 1
    return count


def _verdict(played: int, found: int, options: Namespace) -> int:
    if not played:
        raise CommandError(f"{options.file} has no messages to play", "try: vhu read FILE to see what is in it")
    if options.json:
        put(json.dumps({"messages": played, "differences": found}))
    else:
        put(f"{played} messages, {found or 'no'} difference{'s' * (found != 1)}")
    return Exit.FAILED if found else Exit.DONE
