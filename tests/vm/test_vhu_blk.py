"""`vhu-blk` and `vhu-rng` behind QEMU's own devices for them; the test is the guest's driver."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.cli.programs import BLK, RNG, Program, listening
from vhostuser.virtio.block import HEADER, RANGE, BlockFeature, BlockRequest

from .lab import MIB, check_well, make_file
from .machine import QTestMachine

pytestmark = [pytest.mark.vm, pytest.mark.usefixtures("qemu")]
ALL = (1 << 24) - 1
"""All features of the device type: the driver takes what is offered."""
OK, IOERR, UNSUPP = b"\0", b"\1", b"\2"
T = BlockRequest


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder whose name leaves room for a socket's."""
    with tempfile.TemporaryDirectory(prefix="vhu") as name:
        yield Path(name)


@contextmanager
def disk(folder: Path, *options: str, device: str = "vhost-user-blk-pci") -> Iterator[tuple[QTestMachine, Program]]:
    """A machine with the disk of `folder`, up to DRIVER_OK."""
    arguments = ("--blk-file", str(folder / "disk.img"), *options)
    with listening(folder / "s", *arguments, module=BLK) as back, QTestMachine(folder / "s", device=device) as machine:
        machine.bring_up(ALL)
        yield machine, back
        check_well(machine)


def ask(machine: QTestMachine, kind: int, sector: int = 0, data: bytes = b"", room: int = 0, queue: int = 0) -> bytes:
    return machine.exchange(queue, HEADER.pack(kind, 0, sector) + data, room + 1)


def test_qemu_shows_the_disk_as_it_is(place: Path) -> None:
    make_file(place / "disk.img", MIB)
    device = "vhost-user-blk-pci,num-queues=4"
    with disk(place, device=device) as (machine, _):
        wanted = sum(1 << bit for bit in (2, 6, 9, 10, 12, 13, 14))
        assert machine.bring_up(ALL) & ALL == wanted
        config = machine.read_config(0, 60)
        assert config[:8] == (MIB // 512).to_bytes(8, "little")
        assert config[12:16] == (126).to_bytes(4, "little")
        assert config[34:36] == (4).to_bytes(2, "little")
        assert ask(machine, T.GET_ID, room=20, queue=3) == b"disk.img".ljust(20, b"\0") + OK


def test_each_request_does_its_work(place: Path) -> None:
    content, image = make_file(place / "disk.img", MIB), place / "disk.img"
    with disk(place) as (machine, _):
        assert ask(machine, T.IN, 3, room=2048) == content[1536:3584] + OK
        assert ask(machine, T.OUT, 3, b"x" * 512) == OK
        assert ask(machine, T.FLUSH) == OK
        assert image.read_bytes()[1536:2048] == b"x" * 512
        assert ask(machine, T.DISCARD, 0, RANGE.pack(64, 64, 0)) == OK
        assert ask(machine, T.WRITE_ZEROES, 0, RANGE.pack(8, 8, 1)) == OK
        assert ask(machine, T.IN, 8, room=4096) == bytes(4096) + OK
        assert ask(machine, 99) == UNSUPP
        assert ask(machine, T.OUT, MIB // 512, b"x" * 512) == IOERR
    assert image.stat().st_size == MIB


def test_stop_cont_and_reset_lose_nothing(place: Path) -> None:
    content = make_file(place / "disk.img", MIB)
    with disk(place) as (machine, back):
        assert ask(machine, T.OUT, 0, b"y" * 512) == OK
        machine.stop()
        machine.cont()
        assert ask(machine, T.IN, 0, room=1024) == b"y" * 512 + content[512:1024] + OK
        machine.system_reset()
        machine.bring_up(ALL)
        assert ask(machine, T.IN, 0, room=512) == b"y" * 512 + OK
        assert machine.quit() == 0
        assert back.end() == 0


def test_a_read_only_disk(place: Path) -> None:
    content = make_file(place / "disk.img", MIB)
    with disk(place, "--read-only") as (machine, _):
        assert machine.bring_up(ALL) >> BlockFeature.RO & 1
        assert ask(machine, T.OUT, 0, bytes(512)) == IOERR
        assert ask(machine, T.IN, 0, room=512) == content[:512] + OK


def test_random_bytes(place: Path) -> None:
    with listening(place / "s", module=RNG) as back:
        with QTestMachine(place / "s", device="vhost-user-rng-pci") as machine:
            machine.bring_up(ALL)
            assert len({machine.exchange(0, b"", 32) for _ in range(8)}) == 8
            assert machine.quit() == 0
        assert back.end() == 0
    assert os.listdir(place) == []
