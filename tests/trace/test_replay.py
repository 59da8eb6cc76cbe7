"""One side of a recorded session against a live peer."""

from __future__ import annotations

from collections.abc import Callable

from tests.drivers.devices import Disk
from vhostuser import Device, Frontend
from vhostuser.drivers.blk import FEATURES, BlockDriver
from vhostuser.protocol.state import Role
from vhostuser.testing import Served
from vhostuser.trace.event import Event
from vhostuser.trace.replay import Replay

from .recording import messages, recorded


def session_with(device: Device, use: Callable[[Frontend], object]) -> list[Event]:
    """What passes between a front-end that does something and a back-end that serves the device."""
    served = Served(device)
    try:
        with recorded(served.connected()) as (ours, events), Frontend(ours, features=FEATURES) as frontend:
            use(frontend)
    finally:
        served.stop()
    return events


def disk_session(frontend: Frontend) -> None:
    frontend.share_memory(1 << 20)
    driver = BlockDriver(frontend, size=16)
    assert driver.read(3, 1)[:4] == (3).to_bytes(4, "little")


def told(events: list[Event], device: Device, **options: object) -> list[str]:
    """What a back-end of `device` does differently."""
    served = Served(device)
    try:
        with Replay(events, Role.FRONTEND, served.connected(), **options) as play:
            found = [str(each) for each in play.differences()]
            assert found or play.played == len(messages(events))
            return found
    finally:
        served.stop()


def test_the_same_back_end_does_the_same() -> None:
    events = session_with(Disk(), disk_session)
    assert len(messages(events)) > 20
    assert told(events, Disk()) == []
