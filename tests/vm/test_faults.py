"""The known ways in which a back-end kills QEMU 11.1 are not ours.

K1  a request reaches it while the device is not started: none is sent before DRIVER_OK, after a stop, or during a reset.
K2  a request is under way when a stop or a reset begins: none is sent from the first SET_VRING_ENABLE 0 on. One that QEMU
    has not read when it decides to stop can't be called back; no back-end can avoid that, but few mappings make it rare.
K3  a reset with a live mapping under CONFIGURE_MEM_SLOTS, and
K4  513 memory regions under it: it is not offered.
K5  the host truncates a mapped file: who owns the file decides. A memfd that is sealed against shrinking maps like any.
K6  the back-end comes back to a chardev with server=on, and (7) QEMU's own reconnect-ms=: both fail inside QEMU, whatever
    the back-end says.
(8) without CONFIGURE_MEM_SLOTS the memory table ends at 8 regions: what is mapped beyond works, until a stop and cont.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from .lab import PAGE, Refused, make_file, running, through_queue
from .machine import QTestMachine

pytestmark = [pytest.mark.vm, pytest.mark.usefixtures("qemu")]
NOT_NOW = r"LocalProtocolError: SHMEM_(UN)?MAP is not possible now: no driver runs the device"
FITTING = 6
RESETS = pytest.mark.parametrize("reset", [QTestMachine.system_reset, QTestMachine.reset], ids=["system", "status-0"])


# K1


def test_nothing_is_mapped_before_the_driver_is_ready(tmp_path: Path) -> None:
    make_file(tmp_path / "file", PAGE)
    with running(bring_up=False) as (machine, puppet):
        with pytest.raises(Refused, match=NOT_NOW):
            puppet.call("map", path=str(tmp_path / "file"), shm_offset=0, len=PAGE)
        machine.bring_up()
        through_queue(machine, "map", path=str(tmp_path / "file"), shm_offset=0, len=PAGE)


def test_nothing_is_mapped_or_unmapped_while_the_machine_is_stopped(tmp_path: Path) -> None:
    make_file(tmp_path / "file", PAGE)
    with running() as (machine, puppet):
        through_queue(machine, "map", path=str(tmp_path / "file"), shm_offset=0, len=PAGE)
        machine.stop()
        with pytest.raises(Refused, match=NOT_NOW):
            puppet.call("map", path=str(tmp_path / "file"), shm_offset=PAGE, len=PAGE)
        with pytest.raises(Refused, match=NOT_NOW):
            puppet.call("unmap", shm_offset=0, len=PAGE)
        machine.cont()
        through_queue(machine, "unmap", shm_offset=0, len=PAGE)


@RESETS
def test_nothing_is_mapped_from_a_reset_to_the_next_driver(tmp_path: Path, reset: Callable[[QTestMachine], None]) -> None:
    make_file(tmp_path / "file", PAGE)
    with running() as (machine, puppet):
        through_queue(machine, "map", path=str(tmp_path / "file"), shm_offset=0, len=PAGE)
        reset(machine)
        with pytest.raises(Refused, match=NOT_NOW):
            puppet.call("map", path=str(tmp_path / "file"), shm_offset=PAGE, len=PAGE)
        machine.bring_up()
        through_queue(machine, "map", path=str(tmp_path / "file"), shm_offset=PAGE, len=PAGE)


def test_a_device_can_not_map_from_its_reset_method(tmp_path: Path) -> None:
    """It is called when QEMU starts the device again, and waits for the answer to that."""
    make_file(tmp_path / "file", PAGE)
    order = {"do": "map", "path": str(tmp_path / "file"), "shm_offset": 0, "len": PAGE}
    with running(moments={"reset": [order]}) as (machine, puppet):
        through_queue(machine, "echo", text="a request")
        machine.system_reset()
        machine.bring_up()
        assert through_queue(machine, "mappings") == []
        ((came,),) = puppet.told("reset")
        assert came["error"] == "LocalProtocolError"


# K2


def test_no_request_is_possible_from_the_first_disabled_ring_on() -> None:
    with running(queues=(128, 128)) as (machine, puppet):
        through_queue(machine, "echo", text="a request")
        before = len(puppet.heard())
        machine.stop()
        heard = puppet.heard_running()[before:]
        assert [name for name, _ in heard] == ["SET_VRING_ENABLE!"] * 2 + ["GET_VRING_BASE"] * 2
        assert not any(possible for _, possible in heard)


# K3 and K4


def test_configurable_memory_slots_are_not_offered() -> None:
    with running() as (_, puppet):
        negotiated = puppet.rows("negotiated")
        assert "SHMEM" in negotiated
        assert "CONFIGURE_MEM_SLOTS" not in negotiated
        assert not {"ADD_MEM_REG!", "GET_MAX_MEM_SLOTS"} & set(puppet.heard())


@RESETS
def test_a_reset_with_twenty_mappings(tmp_path: Path, reset: Callable[[QTestMachine], None]) -> None:
    content = make_file(tmp_path / "file", 20 * PAGE)
    with running() as (machine, _):
        for _ in range(3):
            assert through_queue(machine, "map_many", path=str(tmp_path / "file"), count=20, len=PAGE) == [""] * 20
            assert machine.read_shm(0, 0, 20 * PAGE) == content
            reset(machine)
            machine.bring_up()
            assert machine.read_shm(0, 0, 20 * PAGE) == bytes(20 * PAGE)
        assert through_queue(machine, "mappings") == []


def test_six_hundred_mappings_live_and_a_reset_takes_them_away(tmp_path: Path) -> None:
    content = make_file(tmp_path / "file", 600 * PAGE)
    with running() as (machine, puppet):
        puppet.call("map_many", path=str(tmp_path / "file"), count=600, len=PAGE)
        assert machine.read_shm(0, 0, 600 * PAGE) == content
        assert len(puppet.mappings()) == 600
        machine.system_reset()
        machine.bring_up()
        assert through_queue(machine, "mappings") == []


# K5


def test_a_memfd_sealed_against_shrinking_maps_like_any() -> None:
    with running() as (machine, puppet):
        assert puppet.call("map_sealed", content="sealed", shm_offset=PAGE) == "EPERM"
        assert machine.read_shm(0, PAGE, PAGE) == b"sealed".ljust(PAGE, b"\0")
        machine.system_reset()
        machine.bring_up()
        assert machine.read_shm(0, PAGE, PAGE) == bytes(PAGE)


# (8)


def test_six_mappings_survive_a_stop(tmp_path: Path) -> None:
    """With the two regions of the machine's own memory they are the eight that a memory table may have."""
    content = make_file(tmp_path / "file", FITTING * PAGE)
    with running() as (machine, puppet):
        through_queue(machine, "map_many", path=str(tmp_path / "file"), count=FITTING, len=PAGE)
        machine.stop()
        machine.cont()
        assert through_queue(machine, "echo", text="alive") == "alive"
        assert machine.read_shm(0, 0, FITTING * PAGE) == content
        assert len(puppet.mappings()) == FITTING
        assert machine.stderr == ""


def test_with_more_mappings_a_stop_ends_the_device_until_a_reset(tmp_path: Path) -> None:
    """It can't be mended from outside: QEMU does not start the device again, so nothing can be unmapped."""
    content = make_file(tmp_path / "file", (FITTING + 1) * PAGE)
    with running() as (machine, puppet):
        through_queue(machine, "map_many", path=str(tmp_path / "file"), count=FITTING + 1, len=PAGE)
        assert machine.read_shm(0, 0, (FITTING + 1) * PAGE) == content
        machine.stop()
        machine.cont()
        assert "Error starting vhost-user-base: 105" in machine.stderr
        with pytest.raises(Refused, match=NOT_NOW):
            puppet.call("unmap", shm_offset=0, len=PAGE)
        assert machine.read_shm(0, 0, (FITTING + 1) * PAGE) == content
        machine.system_reset()
        machine.bring_up()
        assert through_queue(machine, "mappings") == []
        through_queue(machine, "map", path=str(tmp_path / "file"), shm_offset=0, len=PAGE)
        assert machine.read_shm(0, 0, PAGE) == content[:PAGE]


def test_a_mapping_taken_away_in_time_makes_room_again(tmp_path: Path) -> None:
    make_file(tmp_path / "file", (FITTING + 1) * PAGE)
    with running() as (machine, _):
        through_queue(machine, "map_many", path=str(tmp_path / "file"), count=FITTING + 1, len=PAGE)
        through_queue(machine, "unmap", shm_offset=0, len=PAGE)
        machine.stop()
        machine.cont()
        assert through_queue(machine, "echo", text="alive") == "alive"


def test_the_back_end_says_when_the_memory_table_is_full(tmp_path: Path) -> None:
    make_file(tmp_path / "file", FITTING * PAGE)
    with running() as (machine, puppet):
        through_queue(machine, "map_many", path=str(tmp_path / "file"), count=FITTING - 1, len=PAGE)
        assert "memory table" not in puppet.log
        order = {"shm_offset": FITTING * PAGE, "len": PAGE}
        through_queue(machine, "map", path=str(tmp_path / "file"), **order)
        through_queue(machine, "echo", text="the table is there by now")
        assert puppet.log.count("the front-end's memory table is full") == 1
