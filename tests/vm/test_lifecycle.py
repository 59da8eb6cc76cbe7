"""Mappings while drivers come and go: stop and cont keep them, every reset drops them, on both sides alike."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from .lab import MIB, PAGE, SECONDS, PuppetProcess, check_well, make_file, running, through_queue
from .machine import QTestMachine
from .puppet import CONFIG, READY, Plan

pytestmark = [pytest.mark.vm, pytest.mark.usefixtures("qemu")]
RESETS = pytest.mark.parametrize("reset", [QTestMachine.system_reset, QTestMachine.reset], ids=["system", "status-0"])
Reset = Callable[[QTestMachine], None]
NOT_NOW = "LocalProtocolError: SHMEM_.*MAP is not possible now"


# Stop and cont


def test_stop_and_cont_keep_mappings_on_both_sides(tmp_path: Path) -> None:
    content = make_file(tmp_path / "file", MIB)
    with running() as (machine, puppet):
        through_queue(machine, "map", path=str(tmp_path / "file"), shm_offset=0, len=MIB)
        machine.stop()
        assert machine.read_shm(0, 0, MIB) == content
        machine.cont()
        assert through_queue(machine, "echo", text="again") == "again"
        assert puppet.mappings() == [(0, MIB, 0, False)]
        assert machine.read_shm(0, 0, MIB) == content
        through_queue(machine, "map", path=str(tmp_path / "file"), shm_offset=2 * MIB, len=PAGE)
        through_queue(machine, "unmap", shm_offset=0, len=MIB)
        assert machine.read_shm(0, 0, PAGE) == bytes(PAGE)
        assert machine.read_shm(0, 2 * MIB, PAGE) == content[:PAGE]
        assert len(puppet.told(READY)) == 1


def test_cont_after_a_stop_without_requests_asks_the_device_to_map_again(tmp_path: Path) -> None:
    """Rings that stay at 0 look like a reset: both sides begin with nothing, and the device is told."""
    content = make_file(tmp_path / "file", PAGE)
    order = {"do": "map", "path": str(tmp_path / "file"), "shm_offset": 0, "len": PAGE}
    with running(moments={READY: [order]}) as (machine, puppet):
        settle(machine, puppet, times=1)
        machine.stop()
        machine.cont()
        settle(machine, puppet, times=2)
        assert puppet.told(READY) == [[{"result": None}], [{"result": None}]]
        assert puppet.mappings() == [(0, PAGE, 0, False)]
        assert machine.read_shm(0, 0, PAGE) == content


def test_what_was_submitted_during_a_stop_is_answered_after_cont(tmp_path: Path) -> None:
    with running() as (machine, _):
        machine.stop()
        head = machine.submit(0, b'{"do": "echo", "text": "kept"}', PAGE)
        machine.cont()
        assert machine.collect(0, head) == b'{"result": "kept"}'


def test_fifty_stops_with_a_live_mapping(tmp_path: Path) -> None:
    content = make_file(tmp_path / "file", MIB)
    with running() as (machine, puppet):
        through_queue(machine, "map", path=str(tmp_path / "file"), shm_offset=0, len=MIB)
        for cycle in range(50):
            machine.stop()
            machine.cont()
            assert through_queue(machine, "echo", text=str(cycle)) == str(cycle)
            at = cycle * PAGE
            assert machine.read_shm(0, at, PAGE) == content[at : at + PAGE]
            through_queue(machine, "map", path=str(tmp_path / "file"), shm_offset=2 * MIB + at, len=PAGE, fd_offset=at)
            assert machine.read_shm(0, 2 * MIB + at, PAGE) == content[at : at + PAGE]
            through_queue(machine, "unmap", shm_offset=2 * MIB + at, len=PAGE)
        assert puppet.mappings() == [(0, MIB, 0, False)]


# Resets


@RESETS
def test_a_reset_drops_mappings_on_both_sides(tmp_path: Path, reset: Reset) -> None:
    """Requests were processed, so that the rings' start at 0 says that there was a reset."""
    content = make_file(tmp_path / "file", MIB)
    with running() as (machine, puppet):
        through_queue(machine, "map", path=str(tmp_path / "file"), shm_offset=0, len=MIB)
        reset(machine)
        machine.bring_up()
        assert through_queue(machine, "mappings") == []
        assert machine.read_shm(0, 0, PAGE) == bytes(PAGE)
        assert len(puppet.told("reset")) == 1
        assert len(puppet.told(READY)) == 2
        through_queue(machine, "map", path=str(tmp_path / "file"), shm_offset=0, len=MIB)
        assert machine.read_shm(0, 0, MIB) == content


@RESETS
def test_a_reset_without_requests_drops_mappings_on_both_sides(tmp_path: Path, reset: Reset) -> None:
    """The rings were at 0 before and after: no sign of a reset. The back-end takes back what may be left."""
    content = make_file(tmp_path / "file", PAGE)
    with running() as (machine, puppet):
        puppet.call("map", path=str(tmp_path / "file"), shm_offset=0, len=PAGE)
        reset(machine)
        machine.bring_up()
        assert through_queue(machine, "mappings") == []
        assert machine.read_shm(0, 0, PAGE) == bytes(PAGE)
        assert len(puppet.told(READY)) == 2
        through_queue(machine, "map", path=str(tmp_path / "file"), shm_offset=0, len=PAGE)
        assert machine.read_shm(0, 0, PAGE) == content


@RESETS
def test_a_device_that_maps_when_it_is_ready_does_so_after_each_reset(tmp_path: Path, reset: Reset) -> None:
    content = make_file(tmp_path / "file", PAGE)
    order = {"do": "map", "path": str(tmp_path / "file"), "shm_offset": PAGE, "len": PAGE}
    with running(moments={READY: [order]}) as (machine, puppet):
        for times in range(1, 4):
            settle(machine, puppet, times)
            assert machine.read_shm(0, PAGE, PAGE) == content
            reset(machine)
            machine.bring_up()


@RESETS
def test_fifty_resets_with_a_live_mapping(tmp_path: Path, reset: Reset) -> None:
    content = make_file(tmp_path / "file", MIB)
    with running() as (machine, puppet):
        for cycle in range(50):
            through_queue(machine, "map", path=str(tmp_path / "file"), shm_offset=cycle * PAGE, len=MIB)
            assert machine.read_shm(0, cycle * PAGE, PAGE) == content[:PAGE]
            reset(machine)
            machine.bring_up()
        assert through_queue(machine, "mappings") == []
        assert len(puppet.told("reset")) == 50


def settle(machine: QTestMachine, puppet: PuppetProcess, times: int) -> None:
    """Wait until the device was told that often that it is ready; no request of the driver takes part."""
    machine.read_config(0, 1)
    puppet.wait_told(READY, times)


@pytest.mark.parametrize("requests", [True, False], ids=["with-requests", "without"])
@pytest.mark.parametrize("leave", ["stop", "reset"])
def test_who_maps_at_the_first_chance_after_a_pause_is_not_forgotten(tmp_path: Path, leave: str, requests: bool) -> None:
    """Another thread of the device tries all the time while the driver goes and comes: both sides must agree after."""
    content = make_file(tmp_path / "file", PAGE)
    away, back = (
        (QTestMachine.stop, QTestMachine.cont) if leave == "stop" else (QTestMachine.system_reset, QTestMachine.bring_up)
    )
    with running() as (machine, puppet):
        for _ in range(10):
            if requests:
                through_queue(machine, "echo", text="a request")
            away(machine)
            with ThreadPoolExecutor(1) as pool:
                mapped = pool.submit(puppet.call, "map_as_soon_as_possible", path=str(tmp_path / "file"), len=PAGE)
                back(machine)
                mapped.result(SECONDS)
            assert puppet.mappings() == [(0, PAGE, 0, False)]
            assert machine.read_shm(0, 0, PAGE) == content
            puppet.call("unmap", shm_offset=0, len=PAGE)
            assert machine.read_shm(0, 0, PAGE) == bytes(PAGE)


# Ends


def test_sigterm_of_the_back_end_leaves_qemu_alive(tmp_path: Path) -> None:
    content = make_file(tmp_path / "file", MIB)
    with running() as (machine, puppet):
        through_queue(machine, "map", path=str(tmp_path / "file"), shm_offset=0, len=MIB)
        assert puppet.terminate() == 0
        check_well(machine)
        assert machine.read_shm(0, 0, MIB) == content
        assert machine.quit() == 0


def test_qemu_quits_with_a_live_mapping_and_the_next_one_is_served(tmp_path: Path) -> None:
    content = make_file(tmp_path / "file", PAGE)
    with tempfile.TemporaryDirectory(prefix="vhu") as folder, PuppetProcess(Path(folder) / "s", Plan({"0": MIB})) as puppet:
        for served in range(3):
            with QTestMachine(puppet.path, seconds=SECONDS) as machine:
                machine.bring_up()
                assert through_queue(machine, "mappings") == []
                through_queue(machine, "map", path=str(tmp_path / "file"), shm_offset=served * PAGE, len=PAGE)
                assert machine.read_shm(0, served * PAGE, PAGE) == content
                assert machine.quit() == 0


# The rest of the conversation


def test_qemu_asks_for_the_configuration_of_shared_memory_once() -> None:
    with running() as (machine, puppet):
        machine.system_reset()
        machine.bring_up()
        assert puppet.heard().count("GET_SHMEM_CONFIG") == 1


def test_every_request_that_wants_an_acknowledgement_gets_one(tmp_path: Path) -> None:
    make_file(tmp_path / "file", PAGE)
    with running(queues=(64, 64)) as (machine, puppet):
        through_queue(machine, "map", queue=1, path=str(tmp_path / "file"), shm_offset=0, len=PAGE)
        machine.stop()
        machine.cont()
        counters, heard = puppet.counters(), puppet.heard()
        assert counters["refused"] == 0
        assert counters["messages"] == len(heard)
        assert counters["acks"] == sum(name.endswith("!") for name in heard)
        assert {"SET_BACKEND_REQ_FD!", "SET_MEM_TABLE!", "SET_VRING_KICK!", "SET_VRING_ENABLE!"} <= set(heard)


def test_the_driver_reads_the_configuration_space_byte_by_byte(tmp_path: Path) -> None:
    content = make_file(tmp_path / "file", PAGE)
    with running() as (machine, puppet):
        puppet.call("map", path=str(tmp_path / "file"), shm_offset=0, len=PAGE)
        assert machine.read_config(0, 40) == CONFIG[:40]
        assert puppet.heard().count("GET_CONFIG") >= 40
        assert machine.read_shm(0, 0, PAGE) == content


@pytest.mark.parametrize("queues", [(128,), (16, 128), (256, 256, 256)], ids=str)
def test_each_queue_works_and_goes_on_after_a_stop(queues: tuple[int, ...]) -> None:
    with running(queues=(max(queues),) * len(queues)) as (machine, _):
        for word in ("before", "after"):
            for queue in range(len(queues)):
                assert through_queue(machine, "echo", queue=queue, text=word) == word
            machine.stop()
            machine.cont()
