"""What is set again replaces what was there: no fd, mapping or memory is kept of the old one."""

from __future__ import annotations

import fcntl
import os
import resource
import socket
from collections.abc import Callable

import pytest

from vhostuser.protocol.numbers import BackendRequest, FrontendRequest
from vhostuser.protocol.payloads import U64, MemoryRegion, MemoryTable, Mmap, VringAddr, VringState
from vhostuser.testing import ServedRawFrontend, sparse_file, usage

from .conftest import Attacked

Q, B = FrontendRequest, BackendRequest
PAGE = 4096
TIMES = 1_000


def resident() -> int:
    """Bytes of memory that this process has in use."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def set_mem_table(raw: ServedRawFrontend) -> None:
    with sparse_file(1 << 20) as memory:
        raw.accepted(Q.SET_MEM_TABLE, MemoryTable([MemoryRegion(0, 1 << 20, 0, 0)]), fds=[memory])


def set_vring_num(raw: ServedRawFrontend) -> None:
    raw.accepted(Q.SET_VRING_NUM, VringState(0, 128))


def set_backend_req_fd(raw: ServedRawFrontend) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        raw.accepted(Q.SET_BACKEND_REQ_FD, fds=[theirs])


def set_file(request: FrontendRequest) -> Callable[[ServedRawFrontend], None]:
    def act(raw: ServedRawFrontend) -> None:
        fd = os.eventfd(0, os.EFD_CLOEXEC)
        raw.accepted(request, U64(0), fds=[fd])
        os.close(fd)

    return act


ACTS = {
    "SET_MEM_TABLE": set_mem_table,
    "SET_VRING_NUM": set_vring_num,
    "SET_BACKEND_REQ_FD": set_backend_req_fd,
    "SET_VRING_KICK": set_file(Q.SET_VRING_KICK),
    "SET_VRING_CALL": set_file(Q.SET_VRING_CALL),
    "SET_VRING_ERR": set_file(Q.SET_VRING_ERR),
}


@pytest.mark.parametrize("running", [False, True], ids=["stopped", "running"])
@pytest.mark.parametrize("name", ACTS)
def test_w35_a_thousand_times(raw: ServedRawFrontend, name: str, running: bool) -> None:
    if running:
        raw.open_requests()
        raw.share_memory()
        raw.set_up_queue(1)
    for _ in range(10):
        ACTS[name](raw)
    raw.alive()
    before, memory = usage(), resident()
    for _ in range(TIMES):
        ACTS[name](raw)
    raw.alive()  # its reply is sent once all of the message before is given back
    # one old table may still be in use by the queue thread, at either time
    assert all(now <= then + 1 for now, then in zip(usage(), before, strict=True))
    assert resident() - memory < 1 << 20


def test_w35_refused_messages_keep_no_fd(raw: ServedRawFrontend) -> None:
    with sparse_file(PAGE) as file:
        raw.refused(Q.SET_VRING_NUM, VringState(0, 16), fds=[file])
        raw.alive()
        before = usage()
        for _ in range(TIMES):
            raw.refused(Q.SET_VRING_NUM, VringState(0, 16), fds=[file] * 8)
        raw.alive()
        assert usage() == before


def test_w35_refused_mappings_keep_no_fd(attacked: Attacked) -> None:
    with sparse_file(PAGE) as file:
        attacked.raw.channel.accepted(B.SHMEM_MAP, Mmap(0, 0, 0, PAGE), fds=[file])
        before = usage()
        for _ in range(TIMES):
            attacked.raw.channel.refused(B.SHMEM_MAP, Mmap(0, 0, 0, PAGE), fds=[file])
            attacked.raw.channel.refused(B.SHMEM_UNMAP, Mmap(0, 0, 0, PAGE), fds=[file] * 3)
        assert usage() == before


def test_w19_received_fds_are_closed_on_exec(raw: ServedRawFrontend) -> None:
    ours = {int(name) for name in os.listdir("/proc/self/fd")}
    inheritable = []
    for request in (Q.SET_VRING_KICK, Q.SET_VRING_CALL, Q.SET_VRING_ERR):
        end, other = os.pipe2(0)
        raw.accepted(request, U64(0), fds=[end])
        os.close(end)
        os.close(other)
    set_backend_req_fd(raw)
    received = {int(name) for name in os.listdir("/proc/self/fd")} - ours
    for fd in received:
        try:
            flags = fcntl.fcntl(fd, fcntl.F_GETFD)
        except OSError:  # the listing's own
            continue
        inheritable += [] if flags & fcntl.FD_CLOEXEC else [fd]
    assert len(received) >= 4
    assert inheritable == []


def test_w34_a_ring_that_lies_nowhere_rests_and_holds_up_nothing_else(raw: ServedRawFrontend) -> None:
    raw.share_memory()
    raw.set_up_queue(0)
    nowhere = VringAddr(1, 0, 0x900000, 0x902000, 0x901000, 0)
    raw.accepted(Q.SET_VRING_NUM, VringState(1, 16))
    raw.accepted(Q.SET_VRING_KICK, U64(1), fds=[raw.eventfd()])
    raw.accepted(Q.SET_VRING_ENABLE, VringState(1, 1))
    raw.refused(Q.SET_VRING_ADDR, nowhere)
    raw.accepted(Q.SET_VRING_KICK, U64(0), fds=[raw.eventfd()])
    raw.accepted(Q.SET_VRING_ENABLE, VringState(0, 1))


def test_w34_addresses_before_memory_that_does_not_have_them(raw: ServedRawFrontend) -> None:
    """The table is right, so it is taken; the ring rests until its addresses are right as well."""
    raw.accepted(Q.SET_VRING_NUM, VringState(0, 16))
    raw.accepted(Q.SET_VRING_ADDR, VringAddr(0, 0, 0x900000, 0x902000, 0x901000, 0))
    raw.accepted(Q.SET_VRING_KICK, U64(0), fds=[raw.eventfd()])
    raw.accepted(Q.SET_VRING_ENABLE, VringState(0, 1))
    raw.share_memory()
    raw.accepted(Q.SET_VRING_ADDR, VringAddr(0, 0, 0, 0x2000, 0x1000, 0))
