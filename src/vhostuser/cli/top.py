"""`vhu top`: a connection live in the terminal, or a capture: regions, rates, queues, messages."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import termios
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Final

from ..trace.board import Board
from ..trace.clock import now
from .arguments import Parser, add_dialect, dialect_of
from .filters import checked_filter
from .outcome import STDOUT, CommandError, Exit, colours, undone
from .top_feed import Feed, OfCapture, OfProxy
from .top_keys import HELP, Keys

PROGRAM: Final = "vhu top"
EXTRA: Final = "textual"
EPILOG: Final = f"""
With A and B it is a proxy: front-ends connect to A, one after the other, and B is the back-end; either may be fd:N. With
FILE it shows a capture. It remembers the last minutes, and its memory does not grow. To quit ends the session. Keys:

{chr(10).join(f"  {line}" for line in HELP.splitlines())}

It needs the package textual: pip install 'vhostuser[tui]'. Without it: vhu trace, vhu read, vhu map.

exit status: 0 done, 1 failed, 2 usage
"""
_LEAVE: Final = "\033[?1049l\033[?25h\033[?1000l\033[?1002l\033[?1003l\033[?1006l\033[?2004l\033[?1004l\033[0m"
"""What a terminal is told so that it is as before: the main screen, the cursor, no mouse, no marks around pasted text."""


def top(arguments: list[str]) -> int:
    """Run `vhu top`; its exit code."""
    options = _parser().parse_args(arguments)
    if not (os.isatty(0) and os.isatty(STDOUT)):
        raise CommandError("it needs a terminal", "try: vhu trace, vhu read or vhu map")
    show = _shown()
    live = options.back_end is not None
    board = Board(dialect_of(options), clock=now if live else None)
    keys = Keys(board, Path.cwd(), options.write)
    if options.filter:
        keys.chosen = checked_filter(options.filter)
    feed = _feed(options, board)
    with contextlib.closing(feed), _terminal_kept():
        feed.start()
        show(board, feed, keys, colour=colours())
    return Exit.DONE


def _parser() -> Parser:
    parser = Parser(PROGRAM, "Watch a connection, or a capture.", epilog=EPILOG)
    parser.add_argument("source", metavar="A|FILE", help="where the front-end connects, with B; or a capture")
    parser.add_argument("back_end", metavar="B", nargs="?", help="where the back-end listens")
    parser.add_argument("-e", "--filter", metavar="FILTER", help="show only messages that match, as the key / does")
    parser.add_argument("-w", "--write", metavar="FILE", help="what the key w writes: .pcapng or .jsonl")
    parser.add_argument("--queues", action="store_true", help="follow guest memory and rings, too")
    add_dialect(parser)
    return parser


def _feed(options: argparse.Namespace, board: Board) -> Feed:
    if options.back_end is not None:
        return OfProxy(board, options.source, options.back_end, queues=options.queues)
    if options.source != "-" and not Path(options.source).is_file():
        raise CommandError(f"there is no file {options.source}", "try: vhu top A B, or a capture of vhu trace -w")
    if options.source == "-":
        raise CommandError("standard input is the keyboard", "try: a file", Exit.USAGE)
    return OfCapture(board, options.source)


def _shown() -> Callable[..., None]:
    """What shows it. CommandError if a package is missing."""
    try:
        module = import_module(f"{__package__}.top_app")
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in (EXTRA, "rich"):
            raise
        raise CommandError(f"it needs the package {EXTRA}", "try: pip install 'vhostuser[tui]'") from None
    show: Callable[..., None] = module.run
    return show


@contextlib.contextmanager
def _terminal_kept() -> Iterator[None]:
    """The terminal is afterwards as it was, even if a second signal ends the process."""
    before = termios.tcgetattr(STDOUT)
    left = False

    def restore() -> None:
        with contextlib.suppress(termios.error, OSError):
            if not left:
                os.write(STDOUT, _LEAVE.encode())
            termios.tcsetattr(STDOUT, termios.TCSANOW, before)

    with undone(restore):
        yield
        left = True
        sys.stdout.flush()
