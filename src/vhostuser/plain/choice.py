"""The plain way that is live: compiled, or Python's."""

from __future__ import annotations

import socket
import threading
from typing import TYPE_CHECKING, TypeAlias

from .. import _native
from ..memory.table import AnyCore, AnyQuota, AnyTable
from .caller import Caller, Line
from .server import Server

if TYPE_CHECKING:
    from .._native import caller as compiled_caller
    from .._native import line as compiled_line
    from .._native import server as compiled_server

AnyServer: TypeAlias = "Server | compiled_server.Server"
AnyLine: TypeAlias = "Line | compiled_line.Line"
AnyCaller: TypeAlias = "Caller | compiled_caller.Caller"


def new_server(sock: socket.socket, windows: dict[int, AnyCore], seconds: float) -> AnyServer:
    """The plain way of a front-end, which tries for so many seconds to send an acknowledgement."""
    return (_native.server.Server if _native.accelerated else Server)(sock, windows, seconds)  # type: ignore[arg-type]  # one kind


def new_line(lock: threading.Lock) -> AnyLine:
    """What the callers of a device share."""
    return _native.line.Line(lock) if _native.accelerated else Line(lock)


def new_caller(line: AnyLine, shmid: int, size: int, table: AnyTable, quota: AnyQuota) -> AnyCaller:
    """The plain way of a device's region."""
    kind = _native.caller.Caller if _native.accelerated else Caller
    return kind(line, shmid, size, table, quota)  # type: ignore[arg-type]  # one kind a process
