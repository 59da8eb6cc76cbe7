"""Defects that faults of system calls have shown, a test each."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

import pytest

from vhostuser import Device
from vhostuser.testing import Served
from vhostuser.transport.fds import OwnedFd


def refusing(number: int, *, after: int = 0, real: Callable[..., object] | None = None) -> Callable[..., object]:
    """A system call that fails, but for the first ones."""
    calls = 0

    def call(*arguments: object, **words: object) -> object:
        nonlocal calls
        calls += 1
        if calls <= after and real:
            return real(*arguments, **words)
        raise OSError(number, os.strerror(number))

    return call


def test_a_file_that_fails_at_its_close_is_closed_and_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """A peer's file may be of a file system of its own, which says anything to a close."""
    close = os.close

    def failing(fd: int) -> None:
        close(fd)
        raise OSError(errno.EIO, "at the close")

    fd, gone = OwnedFd(os.memfd_create("file")), OwnedFd(os.memfd_create("gone"))
    number = fd.fileno()
    with monkeypatch.context() as patch:
        patch.setattr(os, "close", failing)
        fd.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(number)
    close(gone.fileno())
    with pytest.raises(OSError, match="Bad file descriptor"):  # that one is a mistake of ours
        gone.close()


class Threaded(Device):
    """Has a thread a queue."""

    queue_sizes = (16, 16, 16, 16)
    queue_threads = True


def test_a_connection_for_which_fds_are_lacking_leaves_none(monkeypatch: pytest.MonkeyPatch) -> None:
    eventfd = os.eventfd
    served = Served(Threaded())
    monkeypatch.setattr(os, "eventfd", refusing(errno.EMFILE, after=3, real=eventfd))
    before = set(os.listdir("/proc/self/fd"))
    served.connected().close()
    served.join()
    assert isinstance(served.error, OSError)
    assert set(os.listdir("/proc/self/fd")) <= before
