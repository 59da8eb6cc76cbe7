"""The socket of the back-end channel, which the proxy keeps while one of its own goes on; and who is at the ends."""

from __future__ import annotations

import socket
import struct

from ..protocol.state import Role
from ..transport.fds import OwnedFd
from .flow import Flow
from .splice import Splice


def taken_over(flow: Flow) -> tuple[socket.socket, socket.socket, OwnedFd]:
    """The front-end's socket, which came in SET_BACKEND_REQ_FD and is now the caller's, and a pair: to keep, and to send.

    OSError if what came is no such socket, or there can be no pair: then everything is as it was.
    """
    front = _connected(flow)
    try:
        mine, theirs = socket.socketpair()
    except OSError:
        front.detach()
        raise
    flow.fds[0].detach()
    return front, mine, OwnedFd(theirs.detach())


def _connected(flow: Flow) -> socket.socket:
    """The connected Unix stream socket that came as the one fd of what is held; OSError if it is none."""
    if len(flow.fds) != 1:
        raise OSError(f"{len(flow.fds)} fds came where there should be one")
    if not flow.pieces[0][1]:
        raise OSError("its fd had to go on before the rest of its message came")
    sock = socket.socket(fileno=flow.fds[0].fileno())
    try:
        sock.getpeername()
        if sock.family != socket.AF_UNIX or sock.type != socket.SOCK_STREAM:
            raise OSError("what came is no Unix stream socket")
    except OSError:
        sock.detach()
        raise
    return sock


def who(splice: Splice) -> str:
    """Who is at the ends: `front-end pid 12 (qemu), back-end pid 13 (vhu-fs)`."""
    ends = ((Role.FRONTEND, splice.front), (Role.BACKEND, splice.back))
    return ", ".join(f"{role.value} {_process(sock)}" for role, sock in ends)


def _process(sock: socket.socket) -> str:
    """The process that made the other end of a socket, as far as it can be known."""
    try:
        pid = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]
        with open(f"/proc/{pid}/comm", "rb") as file:
            return f"pid {pid} ({file.read().strip().decode(errors='replace')})"
    except OSError:
        return "unknown"


def broken(flow: Flow) -> str:
    """Why what is held is no message, and where that was."""
    where = f"{flow.sender.value} on the {flow.channel.value} channel"
    return f"{where}: {flow.fault}; what follows is passed on as it comes"
