"""Defects that faults of system calls have shown, a test each."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from vhostuser import Backend, Device, Disconnected, Frontend, LocalProtocolError, RequestFailed
from vhostuser.devices.fs.dax.copied_file import CopiedFile
from vhostuser.memory import mapping
from vhostuser.memory.core import WindowCore
from vhostuser.memory.table import new_quota
from vhostuser.memory.window import Window
from vhostuser.plain.frames import MAP, NOT_TAKEN
from vhostuser.plain.server import Server
from vhostuser.protocol.numbers import FrontendRequest as Q
from vhostuser.protocol.payloads import U64, VringAddr, VringState
from vhostuser.protocol.regions import Mapping, MappingTable, Quota
from vhostuser.testing import MockDriver, RawBackend, Served, joined, memory_file, message, raw_frontend
from vhostuser.testing.raw_frontend import MEMORY
from vhostuser.testing.wire import ACK
from vhostuser.transport import listen as listening
from vhostuser.transport.channel import Channel
from vhostuser.transport.fds import OwnedFd
from vhostuser.transport.listen import AddressError, adopt

from .worlds import PAGE, Mapper, Plain


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


def test_a_window_is_closed_without_a_system_call_that_may_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    quota = new_quota("device", 16)
    window = Window(0, 1 << 20, quota)
    quota.add(1)
    window.table.insert(Mapping(0, PAGE, 0, False))
    monkeypatch.setattr(mapping, "restore", refusing(errno.ENOMEM))
    window.close()
    assert quota.used == 0


def test_a_lost_connection_is_said_though_its_mappings_are_left(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Mapper()
    with joined(device) as (frontend, served):
        frontend.share_memory(1 << 20)
        assert frontend.start_queue(0, size=16).exchange(b"map", 64) == b"yes"
        served.stop()
        with monkeypatch.context() as patch:
            patch.setattr(mapping, "restore", refusing(errno.ENOMEM))
            with pytest.raises(Disconnected):
                frontend.serve(10)
        assert frontend.shm[0].mappings
        with pytest.raises(Disconnected):
            frontend.serve(10)
        assert not frontend.shm[0].mappings
    device.close()


def test_a_file_that_is_looked_at_in_vain_is_mapped_unsealed(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is mapped already when it is looked at the second time: the table must have it."""
    base, table, quota = mapping.reserve(1 << 20), MappingTable(), Quota("device", 16)
    core = WindowCore(base, 1 << 20, table, quota, populate=False)
    try:
        with memory_file(1) as file, monkeypatch.context() as patch:
            patch.setattr(os, "fstat", refusing(errno.EIO, after=1, real=os.fstat))
            assert core.map(file.fileno(), 0, PAGE, 0, 0)
        assert [each.len for each in table] == [PAGE]
        assert not table.is_sealed(next(iter(table)))
    finally:
        mapping.release(base, 1 << 20)


def test_an_acknowledgement_that_cannot_be_sent_ends_the_channel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the back-end waits for it until its deadline. (The sweep has it for compiled code.)"""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        server = Server(ours, {}, 0.01)
        server._send = refusing(errno.ENOBUFS)  # type: ignore[assignment]  # a system call that fails
        monkeypatch.setattr(socket.socket, "sendmsg", refusing(errno.ENOBUFS))
        assert server._acknowledge(MAP) == NOT_TAKEN


def test_a_ring_whose_kick_was_refused_may_be_laid_elsewhere() -> None:
    with raw_frontend(Plain()) as raw:
        raw.negotiate()
        memory = mapping.map_file(raw.share_memory().fileno(), MEMORY, 0)
        raw.accepted(Q.SET_VRING_NUM, VringState(0, 16))
        raw.accepted(Q.SET_VRING_ADDR, VringAddr(0, 0, 0, 0x2000, 0x100, 0))
        with OwnedFd(os.open("/", os.O_PATH | os.O_CLOEXEC)) as no_eventfd:
            raw.refused(Q.SET_VRING_KICK, U64(0), fds=[no_eventfd])
        driver = MockDriver(raw, memory[0x8000:], at=0x8000)
        memory[0x4000:0x4005] = b"hello"
        assert driver.exchange([(0x4000, 5)], [(0x5000, 5)]) == 5
        assert bytes(memory[0x5000:0x5005]) == b"hello"


def test_a_path_that_cannot_be_listened_on_is_left_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket.socket, "listen", refusing(errno.ENOMEM))
    with pytest.raises(AddressError, match="ENOMEM"):
        listening.listen(tmp_path / "socket")
    assert not (tmp_path / "socket").exists()


def test_a_queue_that_was_started_half_the_way_may_be_started_again() -> None:
    """Its memory is given back, so the back-end must not go on with it."""
    with RawBackend() as raw:
        raw.raw_answers[Q.SET_VRING_ENABLE] = message(Q.SET_VRING_ENABLE, U64(1), flags=ACK)
        with raw.frontend() as frontend:
            frontend.share_memory(1 << 20)
            with pytest.raises(RequestFailed):
                frontend.start_queue(0, size=16)
            assert raw.seen[-1] == Q.GET_VRING_BASE
            del raw.raw_answers[Q.SET_VRING_ENABLE]
            frontend.start_queue(0, size=16)


def test_an_fd_that_cannot_be_adopted_is_closed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs, monkeypatch.context() as patch:
        patch.setattr(os, "set_inheritable", refusing(errno.ENOMEM))
        with pytest.raises(AddressError):
            adopt(theirs.fileno())
        assert os.fstat(theirs.fileno())


def test_an_fd_that_cannot_be_served_is_closed() -> None:
    with memory_file(1) as file:
        fd = os.dup(file.fileno())
        with pytest.raises(AddressError):
            Backend(Plain()).serve_fd(fd)
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)


def test_a_socket_that_cannot_be_set_up_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = socket.socketpair()
    monkeypatch.setattr(socket.socket, "setsockopt", refusing(errno.ENOMEM))
    with theirs:
        with pytest.raises(OSError, match="Cannot allocate memory"):
            Frontend(ours)
        with pytest.raises(OSError, match="Cannot allocate memory"):
            Channel(theirs)
        assert ours.fileno() == theirs.fileno() == -1


class OfTheHost:
    """A file as a share knows it."""

    key = (1, 1)

    def __init__(self) -> None:
        self.opened: list[OwnedFd] = []

    def open(self, flags: int) -> OwnedFd:
        self.opened.append(OwnedFd(os.open("/dev/null", flags | os.O_CLOEXEC)))
        return self.opened[-1]


def test_a_file_that_cannot_be_looked_at_is_not_left_open(monkeypatch: pytest.MonkeyPatch) -> None:
    file = OfTheHost()
    with monkeypatch.context() as patch:
        patch.setattr(os, "fstat", refusing(errno.EIO))
        with pytest.raises(OSError, match="Input/output error"):
            CopiedFile(file)
    assert file.opened[0].closed


def test_a_queue_that_the_back_end_does_not_have_is_an_error_of_its_user() -> None:
    with RawBackend() as raw, raw.frontend() as frontend:
        frontend.share_memory(1 << 20)
        with pytest.raises(LocalProtocolError, match="index 0x8 is not below the number of queues"):
            frontend.start_queue(8, size=16)
