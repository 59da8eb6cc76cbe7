"""Back-ends that number shared memory as the drafts did: QEMU 11.1 gives them no region, and they can say why."""

from __future__ import annotations

import pytest

from .lab import PAGE, Refused, running, through_queue

pytestmark = [pytest.mark.vm, pytest.mark.usefixtures("qemu")]


def test_bit_20_is_dropped_by_qemu() -> None:
    with running(dialect="20") as (machine, puppet):
        assert through_queue(machine, "echo", text="works") == "works"
        assert machine.shm_sizes == {}
        assert "GET_SHMEM_CONFIG" not in puppet.heard()
        assert puppet.log.count("did not acknowledge SHMEM (bit 20)") == 1
        assert "try --shmem-dialect released" in puppet.log


def test_bit_21_is_taken_for_guest_physical_addresses() -> None:
    """GPA_ADDRESSES, which QEMU then applies. Queues work all the same: the memory table speaks of the same addresses."""
    with running(dialect="21") as (machine, puppet):
        assert through_queue(machine, "echo", text="works") == "works"
        assert machine.shm_sizes == {}
        assert "GET_SHMEM_CONFIG" not in puppet.heard()
        assert puppet.log.count("acknowledged bit 21 but never asked for the shared memory configuration") == 1
        assert "to a front-end of today bit 21 is GPA_ADDRESSES: try --shmem-dialect released" in puppet.log


@pytest.mark.parametrize("dialect", ["20", "21"])
def test_nothing_can_be_mapped_without_the_region(dialect: str) -> None:
    with running(dialect=dialect) as (_, puppet), pytest.raises(Refused):
        puppet.call("map", path="/dev/zero", shm_offset=0, len=PAGE)


def test_without_regions_nothing_is_diagnosed() -> None:
    with running(regions={}) as (machine, puppet):
        assert through_queue(machine, "echo", text="works") == "works"
        assert machine.shm_sizes == {}
        assert "SHMEM" not in puppet.rows("negotiated")
        assert "shmem" not in puppet.log.lower()
