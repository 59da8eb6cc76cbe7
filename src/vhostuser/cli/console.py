"""`vhu-console`: a console for a guest, by QEMU's conventions for back-end programs."""

from __future__ import annotations

import argparse
import contextlib
import logging
import sys
from collections.abc import Iterator
from typing import Final

from ..device import Device
from ..devices.console import ConsoleDevice
from ..limited_log import printable
from .arguments import Parser
from .daemon import ENDING, add_rest, add_socket, daemon
from .outcome import STDOUT, CommandError, Exit, interrupt, on_end, undone
from .terminal import pseudo_terminal, raw

log = logging.getLogger(__name__)
PROGRAM: Final = "vhu-console"
CAPABILITIES: Final = {"type": "console"}
STDIN: Final = 0
EPILOG: Final = f"""
Standard input and output are the guest's /dev/hvc0, unless --pty is given. Log lines go to standard error. A terminal is
raw while this runs, so that all keys are the guest's but Ctrl-], which ends it. The end of the input ends nothing; output
that nobody reads any more is dropped.
{ENDING}"""


def main(argv: list[str] | None = None) -> int:
    """Run `vhu-console`; its exit code."""
    names = ("socket_path", "pty_link")
    return daemon(_parser, _device, program=PROGRAM, capabilities=CAPABILITIES, argv=argv, removed=names, terminal=True)


def _parser() -> Parser:
    parser = Parser(PROGRAM, "A vhost-user back-end that is a console: one port, a terminal or a pipe.", epilog=EPILOG)
    add_socket(parser)
    parser.add_argument("--pty", action="store_true", help="make a pseudo terminal, and say its path")
    link = "make a symbolic link to the pseudo terminal, and remove it in the end; nothing may be there"
    parser.add_argument("--pty-link", metavar="PATH", help=link)
    add_rest(parser)
    return parser


@contextlib.contextmanager
def _device(options: argparse.Namespace) -> Iterator[Device]:
    if options.pty_link is not None and not options.pty:
        raise CommandError("--pty-link is for --pty", "try: --pty as well", Exit.USAGE)
    on_end(interrupt)  # until the back-end is there to be stopped, so that whatever ends this undoes it
    with _on_pty(options.pty_link) if options.pty else _on_standard_fds() as device, undone(device.restore):
        yield device


@contextlib.contextmanager
def _on_pty(link: str | None) -> Iterator[ConsoleDevice]:
    with pseudo_terminal(link) as (fd, path), ConsoleDevice(fd, fd, rejoins=True) as device:
        log.info("the console is %s", printable(path))
        yield device


@contextlib.contextmanager
def _on_standard_fds() -> Iterator[ConsoleDevice]:
    with raw(STDIN) as is_terminal, ConsoleDevice(STDIN, STDOUT) as device:
        if is_terminal:
            log.info("Ctrl-] ends it")
        yield device


if __name__ == "__main__":
    sys.exit(main())
