"""Files in a shared memory region, from the back-end through QEMU to guest-physical memory."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from .lab import MIB, PAGE, Refused, make_file, running, through_queue

pytestmark = [pytest.mark.vm, pytest.mark.usefixtures("qemu")]


def test_two_files_are_seen_in_guest_memory_until_they_are_unmapped(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    a, b = make_file(first, MIB, 1), make_file(second, 2 * MIB, 2)
    with running() as (machine, puppet):
        assert machine.shm_sizes == {0: 4 * MIB}
        puppet.call("map", path=str(first), shm_offset=0, len=MIB)
        puppet.call("map", path=str(second), shm_offset=2 * MIB, len=MIB, fd_offset=MIB)
        assert machine.read_shm(0, 0, MIB) == a
        assert machine.read_shm(0, 2 * MIB, MIB) == b[MIB:]
        assert puppet.mappings() == [(0, MIB, 0, False), (2 * MIB, MIB, MIB, False)]
        puppet.call("unmap", shm_offset=0, len=MIB)
        assert machine.read_shm(0, 0, PAGE) == bytes(PAGE)
        assert machine.read_shm(0, 2 * MIB, MIB) == b[MIB:]
        assert puppet.mappings() == [(2 * MIB, MIB, MIB, False)]


def test_the_driver_can_ask_for_mappings_through_its_queue(tmp_path: Path) -> None:
    content = make_file(tmp_path / "file", MIB)
    with running() as (machine, puppet):
        through_queue(machine, "map", path=str(tmp_path / "file"), shm_offset=MIB, len=MIB)
        assert machine.wait_interrupt() & 1
        assert machine.read_shm(0, MIB, MIB) == content
        through_queue(machine, "unmap", shm_offset=MIB, len=MIB)
        assert machine.read_shm(0, MIB, PAGE) == bytes(PAGE)
        assert puppet.mappings() == []


def test_what_the_guest_writes_is_in_the_file(tmp_path: Path) -> None:
    content = make_file(tmp_path / "file", 2 * PAGE)
    with running() as (machine, puppet):
        puppet.call("map", path=str(tmp_path / "file"), shm_offset=PAGE, len=2 * PAGE, writable=True)
        machine.write_shm(0, PAGE + 100, b"from the guest")
        assert (tmp_path / "file").read_bytes() == content[:100] + b"from the guest" + content[114:]


def test_what_the_host_writes_is_seen_by_the_guest(tmp_path: Path) -> None:
    make_file(tmp_path / "file", PAGE)
    with running() as (machine, puppet):
        puppet.call("map", path=str(tmp_path / "file"), shm_offset=0, len=PAGE)
        with open(tmp_path / "file", "r+b") as file:
            file.write(b"from the host")
        assert machine.read_shm(0, 0, 13) == b"from the host"


@pytest.mark.parametrize("sizes", [(4 * MIB, 4 * MIB), (MIB, MIB, 2 * MIB)], ids=["two", "three"])
def test_each_region_is_a_place_of_its_own(tmp_path: Path, sizes: tuple[int, ...]) -> None:
    regions = dict(enumerate(sizes))
    contents = {shmid: make_file(tmp_path / str(shmid), MIB, shmid) for shmid in regions}
    with running(regions=regions) as (machine, puppet):
        assert machine.shm_sizes == regions
        for shmid in regions:
            puppet.call("map", shmid=shmid, path=str(tmp_path / str(shmid)), shm_offset=0, len=MIB)
        assert {shmid: machine.read_shm(shmid, 0, MIB) for shmid in regions} == contents
        puppet.call("unmap", shmid=1, shm_offset=0, len=MIB)
        assert machine.read_shm(1, 0, PAGE) == bytes(PAGE)
        assert machine.read_shm(0, 0, MIB) == contents[0]


def test_many_requests_under_way_at_once_are_answered_in_order(tmp_path: Path) -> None:
    content = make_file(tmp_path / "file", 5 * PAGE)
    with running() as (machine, puppet):
        said = puppet.call("map_many", path=str(tmp_path / "file"), count=6, len=PAGE)
        assert said == [*[""] * 5, puppet_says(6)]
        assert machine.read_shm(0, 0, 6 * PAGE) == content + bytes(PAGE)


def puppet_says(pages: int) -> str:
    """What is reported for the page that the file of five pages does not have."""
    where = f"shm_offset {(pages - 1) * PAGE:#x} len {PAGE:#x}"
    why = f"the file has {5 * PAGE:#x} bytes, the mapping needs {pages * PAGE:#x}"
    return f"SHMEM_MAP {where} was refused by the front-end (status 0x1): {why}"


# What is refused


@pytest.mark.parametrize("start", [0, PAGE, 2 * PAGE], ids=["head", "inside", "tail"])
def test_an_overlap_is_refused_here_before_it_is_sent(tmp_path: Path, start: int) -> None:
    content = make_file(tmp_path / "file", 3 * PAGE)
    with running() as (machine, puppet):
        puppet.call("map", path=str(tmp_path / "file"), shm_offset=PAGE, len=2 * PAGE)
        with pytest.raises(Refused, match=r"LocalProtocolError: SHMEM_MAP shm_offset .* overlaps"):
            puppet.call("map", path=str(tmp_path / "file"), shm_offset=start, len=2 * PAGE)
        assert machine.read_shm(0, PAGE, 2 * PAGE) == content[: 2 * PAGE]


@pytest.mark.parametrize("start", [0, PAGE, 2 * PAGE], ids=["head", "same", "tail"])
def test_an_overlap_is_answered_non_zero_by_qemu(tmp_path: Path, start: int) -> None:
    content = make_file(tmp_path / "file", 2 * PAGE)
    with running() as (machine, puppet):
        puppet.call("map", path=str(tmp_path / "file"), shm_offset=PAGE, len=2 * PAGE)
        assert puppet.call("send", request="SHMEM_MAP", path=str(tmp_path / "file"), shm_offset=start, len=2 * PAGE) == 1
        assert "mapping overlap" in machine.stderr
        assert machine.read_shm(0, PAGE, 2 * PAGE) == content


@pytest.mark.parametrize("part", [(0, PAGE), (PAGE, PAGE), (0, 4 * PAGE), (8 * PAGE, PAGE)], ids=str)
def test_only_whole_mappings_are_unmapped(tmp_path: Path, part: tuple[int, int]) -> None:
    content = make_file(tmp_path / "file", 2 * PAGE)
    with running() as (machine, puppet):
        puppet.call("map", path=str(tmp_path / "file"), shm_offset=0, len=2 * PAGE)
        with pytest.raises(Refused, match=r"LocalProtocolError: SHMEM_UNMAP"):
            puppet.call("unmap", shm_offset=part[0], len=part[1])
        assert puppet.call("send", request="SHMEM_UNMAP", shm_offset=part[0], len=part[1]) == 1
        assert machine.read_shm(0, 0, 2 * PAGE) == content


def test_a_refusal_by_qemu_is_reported_and_the_channel_lives(tmp_path: Path) -> None:
    content = make_file(tmp_path / "short", PAGE)
    with running() as (machine, puppet):
        with pytest.raises(Refused) as refusal:
            puppet.call("map", path=str(tmp_path / "short"), shm_offset=0, len=2 * PAGE)
        assert str(refusal.value) == (
            "RequestFailed: SHMEM_MAP shm_offset 0x0 len 0x2000 was refused by the front-end (status 0x1): "
            "the file has 0x1000 bytes, the mapping needs 0x2000"
        )
        assert "is too small" in machine.stderr
        assert puppet.mappings() == []
        puppet.call("map", path=str(tmp_path / "short"), shm_offset=0, len=PAGE)
        assert machine.read_shm(0, 0, PAGE) == content


@pytest.mark.parametrize("writable", [False, True])
def test_a_file_open_for_reading_only_is_refused_with_the_reason(tmp_path: Path, writable: bool) -> None:
    make_file(tmp_path / "file", PAGE)
    order = {"path": str(tmp_path / "file"), "flags": os.O_RDONLY, "shm_offset": 0, "len": PAGE, "writable": writable}
    with running() as (machine, puppet):
        with pytest.raises(Refused, match=r"RequestFailed: .* not open for reading and writing"):
            puppet.call("map_fd", **order)
        assert "Permission denied" in machine.stderr


def test_a_directory_is_refused_with_the_reason(tmp_path: Path) -> None:
    with running() as (_, puppet), pytest.raises(Refused, match=r"RequestFailed: .* it is no regular file or memfd"):
        puppet.call("map_fd", path=str(tmp_path), flags=os.O_RDONLY, shm_offset=0, len=PAGE)


@pytest.mark.parametrize(
    ("order", "reason"),
    [
        ({"shm_offset": 4 * MIB, "len": PAGE}, "passes region 0's end"),
        ({"shm_offset": 3 * MIB, "len": 2 * MIB}, "passes region 0's end"),
        ({"shm_offset": (1 << 64) - PAGE, "len": PAGE}, "wraps|passes"),
        ({"shm_offset": 100, "len": PAGE}, "multiple"),
        ({"shm_offset": 0, "len": 100}, "multiple"),
        ({"shm_offset": 0, "len": PAGE, "fd_offset": 100}, "multiple"),
        ({"shm_offset": 0, "len": 0}, "len 0x0"),
    ],
    ids=str,
)
def test_what_the_protocol_forbids_is_not_sent(tmp_path: Path, order: dict[str, int], reason: str) -> None:
    make_file(tmp_path / "file", PAGE)
    with running() as (machine, puppet):
        with pytest.raises(Refused, match=f"LocalProtocolError: SHMEM_MAP .*({reason})"):
            puppet.call("map", path=str(tmp_path / "file"), **order)
        assert machine.stderr == ""


def test_a_path_only_fd_does_not_cost_the_channel(tmp_path: Path) -> None:
    """QEMU 11.1 closes the back-end channel on an O_PATH fd."""
    content = make_file(tmp_path / "file", PAGE)
    with running() as (machine, puppet):
        with pytest.raises(Refused, match=r"LocalProtocolError: SHMEM_MAP fd .* for its path only"):
            puppet.call("map_fd", path=str(tmp_path / "file"), flags=os.O_PATH, shm_offset=0, len=PAGE)
        puppet.call("map", path=str(tmp_path / "file"), shm_offset=0, len=PAGE)
        assert machine.read_shm(0, 0, PAGE) == content
