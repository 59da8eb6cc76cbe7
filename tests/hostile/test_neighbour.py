"""Two devices in one process: whatever one's front-end does, the other serves. benchmarks/neighbour.py measures it."""

from __future__ import annotations

import threading
import time

import neighbour
import pytest

from vhostuser.protocol.numbers import VhostFeature, mask
from vhostuser.testing import DEADLINE, RawFrontend, joined, raw_frontend
from vhostuser.virtio.numbers import Feature

REQUESTS = 500


class Attack(threading.Thread):
    """Goes on until it is told to stop; `steps` says how far it came, `error` what ended it early."""

    def __init__(self, name: str, raw: RawFrontend) -> None:
        super().__init__(name=name, daemon=True)
        self.attack, self.raw = neighbour.ATTACKS[name], raw
        self.steps, self.stop, self.error = 0, threading.Event(), None

    error: BaseException | None

    def run(self) -> None:
        try:
            with self.attack(self.raw) as step:
                while not self.stop.is_set():
                    step()
                    self.steps += 1
        except BaseException as error:
            self.error = error.with_traceback(None)


@pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
@pytest.mark.parametrize("name", neighbour.ATTACKS)
def test_q35_the_neighbour_of_a_hostile_front_end_serves_all_its_requests(name: str, packed: bool) -> None:
    with raw_frontend(neighbour.Echo()) as raw, joined(neighbour.Echo(), packed=packed) as (frontend, served):
        raw.negotiate(features=mask((Feature.VERSION_1, VhostFeature.PROTOCOL_FEATURES)))
        raw.share_memory()
        frontend.share_memory(1 << 20)
        queue = frontend.start_queue(0, size=256)
        attack = Attack(name, raw)
        attack.start()
        try:
            done, late = 0, time.monotonic() + DEADLINE
            while done < REQUESTS or (not attack.steps and time.monotonic() < late):
                request = done.to_bytes(8, "little")
                assert queue.exchange(request, 8) == request
                done += 1
        finally:
            attack.stop.set()
            attack.join(DEADLINE)
        assert attack.error is None
        assert attack.steps, "the attack has begun"
        counters = served.backend.counters
        assert (counters.broken, counters.refused, counters.closed) == (0, 0, 0)
        raw.alive()
