"""The only recvmsg and sendmsg of the package (their compiled twins are in `_native.server` and `_native.line`)."""

from __future__ import annotations

import array
import errno
import select
import socket
import time
from collections.abc import Sequence
from typing import Final

from ..errors import DeadlineExpired, Disconnected, RemoteProtocolError
from ..protocol.numbers import MAX_FDS
from .fds import HasFileno, OwnedFd, close_all

_CONTROL_SIZE: Final = socket.CMSG_SPACE(MAX_FDS * array.array("i").itemsize)
_CLOEXEC, _TRUNCATED, _NO_SIGNAL = int(socket.MSG_CMSG_CLOEXEC), int(socket.MSG_CTRUNC), int(socket.MSG_NOSIGNAL)
NO_WAIT: Final = int(socket.MSG_DONTWAIT)
"""Plain numbers: the enum's `|` and `&` would take as long as the system call."""
FD_KINDS: Final = frozenset({int(socket.SCM_RIGHTS), 4})
"""Control messages that carry fds: SCM_PIDFD (4) comes, too, where whoever shares the socket has set SO_PASSPIDFD."""
LONGEST_POLL: Final = 1e9
"""Milliseconds, twelve days: poll() counts them in an int."""
_GONE: Final = frozenset({errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN, errno.EBADF, errno.ESHUTDOWN})
SCARCE: Final = frozenset({errno.ENOMEM, errno.ENOBUFS, errno.ETOOMANYREFS})
"""What sendmsg says where memory is short, or too many fds are on their way: later it may work."""
SCARCE_TIMEOUT: Final = 1.0
"""Seconds for which a message is tried again that may just as well not be sent."""
SHORTEST_NAP: Final = 0.001
LONGEST_NAP: Final = 0.032


class WouldBlock(Exception):
    """Nothing to read, or no room to write, for now."""


class NothingSent(OSError):
    """A message was not sent, not a byte of it, for a reason that is not the connection's: it is as it was."""


class NotTaken(Disconnected):
    """The kernel takes none of a message, now (`scarce`) or ever, for a reason that is not the connection's."""

    def __init__(self, error: OSError) -> None:
        super().__init__(f"the connection failed: {error.strerror or error}")
        self.error = error
        self.scarce = error.errno in SCARCE


def receive_some(sock: socket.socket, want: int, flags: int = 0) -> tuple[bytes, list[OwnedFd]]:
    """At most `want` bytes and the fds that came with them; b"" at the end of the stream.

    Raises WouldBlock, Disconnected, or a fatal RemoteProtocolError if the kernel had to drop fds (MSG_CTRUNC).
    """
    try:
        data, control, result, _ = sock.recvmsg(want, _CONTROL_SIZE, flags | _CLOEXEC)
    except BlockingIOError:
        raise WouldBlock from None
    except OSError as error:
        raise _connection_error(error) from error
    fds = _owned(control) if control else []
    if result & _TRUNCATED:
        close_all(fds)
        raise RemoteProtocolError(
            "fds of a message were lost: more than this process may open, or more than a message may carry",
            field="fds",
            limit=MAX_FDS,
            fatal=True,
        )
    return data, fds


def send_some(sock: socket.socket, data: bytes | memoryview, fds: Sequence[int] = (), flags: int = 0) -> int:
    """Send as much of `data` as fits, with `fds` at its first byte; the number of bytes.

    Raises WouldBlock, Disconnected, which is NotTaken where the connection is as it was, or OSError if an fd is none.
    """
    control = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    try:
        return sock.sendmsg([data], control, flags | _NO_SIGNAL)
    except BlockingIOError:
        raise WouldBlock from None
    except OSError as error:
        if error.errno == errno.EBADF and fds:
            raise
        raise (_connection_error(error) if error.errno in _GONE else NotTaken(error)) from error


def wait(readers: Sequence[HasFileno | int], deadline: float | None, writers: Sequence[HasFileno | int] = ()) -> list[int]:
    """The fds that are ready, ended or broken; waits for one until `deadline` (time.monotonic), then returns none."""
    poll = select.poll()
    for reader in readers:
        poll.register(reader, select.POLLIN)
    for writer in writers:
        poll.register(writer, select.POLLOUT)
    return [fd for fd, _ in poll.poll(None if deadline is None else milliseconds(deadline))]


def milliseconds(deadline: float) -> float:
    """What is left until `deadline` (time.monotonic), for poll(), which takes no more than fits into an int."""
    return min(max(0.0, deadline - time.monotonic()) * 1000, LONGEST_POLL)


def send_all(sock: socket.socket, data: bytes, fds: Sequence[int], timeout: float, what: str, *, owed: bool = True) -> None:
    """Send all of `data`, with `fds` at its first byte; DeadlineExpired if that takes more than `timeout` seconds.

    What is not `owed` the peer does not wait for: if the kernel takes none of it, which is tried again for a while where
    memory is short, it is NothingSent, and the connection is as it was.
    """
    began, sent, nap = time.monotonic(), 0, SHORTEST_NAP
    deadline = began + timeout
    while sent < len(data):
        optional = not owed and not sent
        try:
            sent += send_some(sock, data if not sent else memoryview(data)[sent:], fds if not sent else (), NO_WAIT)
        except WouldBlock:
            if not wait((), deadline, (sock,)):
                raise DeadlineExpired(f"the peer did not take {what} within {timeout:g} s") from None
        except NotTaken as why:
            end = min(deadline, began + SCARCE_TIMEOUT) if optional else deadline
            if not why.scarce or time.monotonic() >= end:
                raise (_nothing_sent(why.error) if optional else why) from why.error
            time.sleep(nap)
            nap = min(2 * nap, LONGEST_NAP)
        except OSError as error:
            raise _nothing_sent(error) from error


def _nothing_sent(error: OSError) -> NothingSent:
    return NothingSent(error.errno, error.strerror)


def _owned(control: list[tuple[int, int, bytes]]) -> list[OwnedFd]:
    """The fds in control messages, each with an owner."""
    fds: list[OwnedFd] = []
    for level, kind, payload in control:
        if level == socket.SOL_SOCKET and kind in FD_KINDS:
            numbers = array.array("i")
            numbers.frombytes(payload[: len(payload) - len(payload) % numbers.itemsize])
            fds.extend(OwnedFd(number) for number in numbers)
    return fds


def _connection_error(error: OSError) -> Exception:
    """What an OSError of a socket means here."""
    if error.errno in _GONE:
        return Disconnected("the peer closed the connection")
    return Disconnected(f"the connection failed: {error.strerror or error}")
