"""`vhu drive console`: a console at this terminal, or between pipes, without a VM."""

from __future__ import annotations

import contextlib
import logging
import os
from typing import Final

from ..drivers.console import ConsoleDriver
from ..errors import Disconnected
from ..frontend import Frontend
from ..transport.fds import HasFileno
from .arguments import Parser, checked, seconds
from .logs import add_log_level, log_to_stderr
from .outcome import STDERR, Exit, interrupt, on_end, put_bytes, reach
from .terminal import raw

log = logging.getLogger(__name__)
PROGRAM: Final = "vhu drive console"
SHARED: Final = 1 << 20
"""Bytes of memory for both queues and their buffers."""
PIECE: Final = 1 << 16
STDIN: Final = 0
EPILOG: Final = """
Standard input goes to the device, as if a guest printed it, and what the device gets as input goes to standard output. A
terminal is raw meanwhile; Ctrl-] ends it. The end of standard input ends nothing: it goes on until the back-end closes.

exit status: 0 a signal, Ctrl-], or the back-end closed; 1 failed; 2 usage; 3 the back-end broke the protocol or is not there
"""


def drive_console(arguments: list[str]) -> int:
    """Run `vhu drive console`; its exit code."""
    options = _parser().parse_args(arguments)
    log_to_stderr(PROGRAM, options.log_level)
    on_end(interrupt)
    with reach(options.socket, lambda: Frontend.connect(options.socket, reply_timeout=options.timeout)) as frontend:
        frontend.share_memory(SHARED)
        with contextlib.suppress(KeyboardInterrupt), raw(STDIN) as is_terminal:
            if is_terminal:
                os.write(STDERR, f"{PROGRAM}: Ctrl-] ends it\n".encode())
            _attend(frontend, ConsoleDriver(frontend, timeout=options.timeout))
    return Exit.DONE


def _parser() -> Parser:
    parser = Parser(PROGRAM, "Use a console without a VM: be its driver.", epilog=EPILOG)
    parser.add_argument("socket", metavar="SOCKET", help="the back-end's Unix socket")
    wait = "seconds for an answer (default 10)"
    parser.add_argument("--timeout", type=checked(seconds), default=10.0, metavar="S", help=wait)
    add_log_level(parser, "warn")
    return parser


class _Input:
    """Standard input, to wait on."""

    def fileno(self) -> int:
        """Its fd."""
        return STDIN


def _attend(frontend: Frontend, driver: ConsoleDriver) -> None:
    """Pass bytes on in both directions, until the back-end goes."""
    news: list[HasFileno] = [_Input(), driver.receiving.call]
    with contextlib.suppress(Disconnected):
        while True:
            if frontend.wait_for_any(news) != STDIN:
                _show(driver)
            elif typed := os.read(STDIN, PIECE):
                driver.write(typed)
                _show(driver)
            else:
                del news[0]


def _show(driver: ConsoleDriver) -> None:
    while data := driver.read(0):
        put_bytes(data)
