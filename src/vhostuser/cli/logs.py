"""Log lines of the daemons, in the form that virtiofsd's readers know."""

from __future__ import annotations

import argparse
import contextlib
import errno
import logging
import os
import socket
import time
from typing import Final

from ..limited_log import LONGEST, printable
from .arguments import checked
from .outcome import STDERR

_LEVELS: Final = {
    "off": logging.CRITICAL + 1,
    "error": logging.ERROR,
    "warn": logging.WARNING,
    "info": logging.INFO,
    "debug": logging.DEBUG,
    "trace": logging.DEBUG,
}
SYSLOG = "/dev/log"
_USER: Final = 1 << 3
_SEVERITIES: Final = ((logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6), (0, 7))
"""Of syslog, for levels from a number on."""


def level(text: str) -> int:
    """The logging level of a name; ValueError names the choices."""
    if text.lower() not in _LEVELS:
        raise ValueError(f"{text[:40]!a} is no log level (of --log-level or VHU_LOG); there are {', '.join(_LEVELS)}")
    return _LEVELS[text.lower()]


def add_log_level(parser: argparse.ArgumentParser, default: str = "info") -> None:
    """--log-level, which ends up as `log_level`."""
    parser.add_argument(
        "--log-level",
        type=checked(level),
        default=os.environ.get("VHU_LOG") or default,
        metavar="LEVEL",
        help=f"{', '.join(_LEVELS)} (default: the environment's VHU_LOG, else {default})",
    )


def log_to_stderr(program: str, least: int) -> None:
    """Send log lines from level `least` up to standard error."""
    handler = StderrHandler()
    handler.setFormatter(LineFormatter(program, tracebacks=least <= logging.DEBUG))
    logging.basicConfig(level=least, handlers=[handler], force=True)


def log_to_syslog(program: str, least: int) -> int | None:
    """Send log lines from level `least` up to syslog: by which fd. To standard error if there is none, and then None."""
    try:
        handler = SyslogHandler(SYSLOG)
    except OSError as error:
        log_to_stderr(program, least)
        logging.getLogger(__name__).warning("there is no syslog (%s): logging to standard error", error)
        return None
    handler.setFormatter(LineFormatter(program, tracebacks=least <= logging.DEBUG))
    logging.raiseExceptions = False
    logging.basicConfig(level=least, handlers=[handler], force=True)
    return handler.fileno()


class StderrHandler(logging.Handler):
    """Writes lines to fd 2. One that can't be written (closed pipe, full disk) is lost; the program goes on."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record."""
        with contextlib.suppress(OSError):
            os.write(STDERR, (self.format(record) + "\n").encode(errors="backslashreplace"))


class SyslogHandler(logging.Handler):
    """Sends lines by one socket, connected once. A line that it does not take is lost; the program goes on.

    The socket is neither closed nor opened anew then: a filter of system calls knows it by its number.
    """

    def __init__(self, path: str) -> None:
        super().__init__()
        self._socket = _connected(path)

    def fileno(self) -> int:
        """The socket."""
        return self._socket.fileno()

    def emit(self, record: logging.LogRecord) -> None:
        """Send one record."""
        severity = next(found for least, found in _SEVERITIES if record.levelno >= least)
        with contextlib.suppress(OSError):
            self._socket.send(f"<{_USER | severity}>{self.format(record)}\0".encode(errors="backslashreplace"))

    def close(self) -> None:
        """Close the socket: nothing is logged any more."""
        self._socket.close()
        super().close()


def _connected(path: str) -> socket.socket:
    """A socket to syslog, of the kind that it listens with."""
    for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
        made = socket.socket(socket.AF_UNIX, kind)
        try:
            made.connect(path)
        except OSError as error:
            made.close()
            if error.errno != errno.EPROTOTYPE:
                raise
        else:
            return made
    raise OSError(errno.EPROTOTYPE, os.strerror(errno.EPROTOTYPE), path)


class LineFormatter(logging.Formatter):
    """`[2026-11-22T09:37:34Z INFO  vhu-shm] text`: one line, short, and nothing in it that a terminal obeys."""

    def __init__(self, program: str, *, tracebacks: bool) -> None:
        super().__init__()
        self._program, self._tracebacks = program, tracebacks

    def format(self, record: logging.LogRecord) -> str:
        """The line of one record; a traceback only where it was asked for."""
        when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(record.created))
        name = "WARN" if record.levelno == logging.WARNING else record.levelname
        text = record.getMessage()
        if record.exc_info and record.exc_info[1]:
            text += f": {type(record.exc_info[1]).__name__}: {record.exc_info[1]}"
        line = f"[{when} {name:5} {self._program}] {printable(text)}"[:LONGEST]
        if record.exc_info and self._tracebacks:
            line += "\n" + self.formatException(record.exc_info)
        return line
