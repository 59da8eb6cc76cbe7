"""QEMU with packed rings: where it begins, and where it goes on after a stop."""

from __future__ import annotations

from pathlib import Path

import pytest

from vhostuser.virtio.numbers import Feature

from .lab import MIB, make_file, running, through_queue
from .puppet import READY

pytestmark = [pytest.mark.vm, pytest.mark.usefixtures("qemu")]
SIZE = 8
PACKED = 1 << Feature.RING_PACKED


def test_packed_rings_go_round_stop_and_go_on(tmp_path: Path) -> None:
    content = make_file(tmp_path / "file", MIB)
    with running(bring_up=False, queues=(SIZE,)) as (machine, puppet):
        assert machine.bring_up(PACKED) & PACKED
        through_queue(machine, "map", path=str(tmp_path / "file"), shm_offset=0, len=MIB)
        for done in range(2, 20):
            assert through_queue(machine, "echo", text=f"request {done}") == f"request {done}"
            if done % SIZE:  # else the ring is where it began, which does not look different from a reset
                machine.stop()
                machine.cont()
            assert machine.read_shm(0, 0, MIB) == content
        assert len(puppet.told(READY)) == 1
