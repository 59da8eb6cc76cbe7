"""Guest memory of QEMU: sealed, of a file that may shrink, region by region, and rings by guest address."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from .lab import SECONDS, PuppetProcess, check_well, through_queue
from .machine import QTestMachine, generic_device, usual_arguments
from .puppet import Plan

pytestmark = [pytest.mark.vm, pytest.mark.usefixtures("qemu")]
Pair = tuple[QTestMachine, PuppetProcess]


@pytest.fixture(params=[{}, {"0": 4 << 20}], ids=["no regions", "regions"])
def regions(request: pytest.FixtureRequest) -> dict[str, int]:
    """With none the back-end offers memory slots and GPA_ADDRESSES, and QEMU acknowledges both."""
    return dict(request.param)


@pytest.fixture(params=["memory-backend-memfd", "memory-backend-file"])
def pair(request: pytest.FixtureRequest, regions: dict[str, int]) -> Iterator[Pair]:
    device = generic_device(queues=2)
    with tempfile.TemporaryDirectory(prefix="vhu") as folder:
        place = f",mem-path={folder}/ram" if request.param == "memory-backend-file" else ""
        words = usual_arguments(f"{folder}/s", device, request.param + place)
        with (
            PuppetProcess(Path(folder) / "s", Plan(regions=regions, queues=[128, 128])) as puppet,
            QTestMachine(puppet.path, arguments=words, seconds=SECONDS) as machine,
        ):
            machine.bring_up()
            yield machine, puppet
            check_well(machine)


def test_requests_are_answered_through_stops_and_resets(pair: Pair) -> None:
    machine, puppet = pair
    for _ in range(3):
        assert through_queue(machine, "echo", text="a" * 3000) == "a" * 3000
        machine.stop()
        machine.cont()
        assert through_queue(machine, "echo", queue=1, text="b") == "b"
        machine.system_reset()
        machine.bring_up()
    assert puppet.counters()["broken"] == 0
