"""Kicks that are no eventfds: the queue breaks, its thread and the other queues live."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from tests.wire.devices import Scripted
from vhostuser.protocol.numbers import FrontendRequest as Q
from vhostuser.protocol.payloads import U64, VringState
from vhostuser.testing import raw_frontend, wait_until
from vhostuser.transport.fds import OwnedFd


def _ended_pipe() -> int:
    reader, writer = os.pipe()
    os.close(writer)
    return reader


@pytest.mark.parametrize(
    "make",
    [lambda: os.open("/dev/null", os.O_WRONLY), lambda: os.open("/", os.O_RDONLY), _ended_pipe],
    ids=["write-only", "directory", "ended pipe"],
)
def test_q35_a_kick_that_cannot_be_read_breaks_its_queue_alone(make: Callable[[], int]) -> None:
    device = Scripted()
    with raw_frontend(device) as raw, OwnedFd(make()) as file:
        raw.start()
        assert device.ready.wait(10)
        backend = raw.served.backend
        raw.accepted(Q.SET_VRING_KICK, U64(0), fds=[file])
        wait_until(lambda: backend.counters.broken == 1, "the queue is broken")
        raw.reply(Q.GET_VRING_BASE, VringState(0, 0))
        device.ready.clear()
        raw.accepted(Q.RESET_DEVICE)
        raw.set_up_queue(1)
        assert device.ready.wait(10), "the queue thread lives"
        assert backend.counters.broken == 1
