"""A ring that is disabled and enabled again, without a stop in between: the device keeps what it has."""

from __future__ import annotations

from vhostuser.protocol.numbers import FrontendRequest
from vhostuser.protocol.payloads import VringState
from vhostuser.testing import DEADLINE, raw_frontend, wait_until

from .test_kept import Keeper
from .test_undrained import Rig

Q = FrontendRequest


def test_what_is_kept_outlives_a_disabled_ring_and_is_not_waited_for() -> None:
    device = Keeper()
    device.drain_timeout = 10 * DEADLINE
    with raw_frontend(device) as raw:
        rig = Rig(raw, device)  # type: ignore[arg-type]
        rig.ask(b"one ", b"two ")
        wait_until(lambda: len(device.kept) == 2, "two are kept")
        raw.accepted(Q.SET_VRING_ENABLE, VringState(0, 0))
        device.finish(0)
        raw.accepted(Q.SET_VRING_ENABLE, VringState(0, 1))
        wait_until(lambda: rig.answers() == 1, "what was completed meanwhile comes back")
        device.finish(0)
        wait_until(lambda: rig.answers() == 1, "and so does the other one")
        assert not raw.served.backend.counters.broken
        device.drain_timeout = 0.0
        rig.close()
