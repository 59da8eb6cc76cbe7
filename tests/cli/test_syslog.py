"""Lines for syslog: of whatever kind its socket is, by one that stays open."""

from __future__ import annotations

import logging
import socket
from pathlib import Path

import pytest

from vhostuser.cli.logs import SyslogHandler

from .programs import SECONDS


def record(level: int, text: str) -> logging.LogRecord:
    return logging.LogRecord("program", level, "", 0, text, (), None)


@pytest.mark.parametrize("kind", [socket.SOCK_DGRAM, socket.SOCK_STREAM], ids=lambda kind: kind.name)
def test_a_line_has_its_severity_and_an_end(sock: Path, kind: socket.SocketKind) -> None:
    with socket.socket(socket.AF_UNIX, kind) as syslog:
        syslog.bind(str(sock))
        if kind is socket.SOCK_STREAM:
            syslog.listen(1)
        handler = SyslogHandler(str(sock))
        syslog.settimeout(SECONDS)
        reader = syslog.accept()[0] if kind is socket.SOCK_STREAM else syslog.dup()
        with reader:
            for level, priority in ((logging.DEBUG, 15), (logging.INFO, 14), (logging.WARNING, 12), (logging.CRITICAL, 10)):
                handler.emit(record(level, "text \udcff"))
                assert reader.recv(64) == b"<%d>text \\udcff\0" % priority
        handler.close()


def test_a_line_that_is_not_taken_is_lost_and_the_socket_stays(sock: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as syslog:
        syslog.bind(str(sock))
        handler = SyslogHandler(str(sock))
    before = handler.fileno()
    handler.emit(record(logging.ERROR, "lost"))
    handler.emit(record(logging.ERROR, "lost"))
    assert handler.fileno() == before > 2
    handler.close()


@pytest.mark.parametrize("what", ["missing", "file"])
def test_where_no_syslog_is_there_is_an_error_and_nothing_left(sock: Path, what: str) -> None:
    if what == "file":
        sock.touch()
    with pytest.raises(OSError, match=r"No such file|refused"):
        SyslogHandler(str(sock))
