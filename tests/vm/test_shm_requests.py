"""`vhu-shm --file` behind QEMU: the driver has files mapped, looks at them through the BAR, and has them unmapped."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vhostuser.virtio.mapper import ENTRY, WRITABLE, MapperOp, MapperRequest, MapperStatus
from vhostuser.virtio.numbers import Feature

from .lab import MIB, PAGE, make_file
from .machine import QTestMachine
from .test_vhu_shm import shm_and_qemu

pytestmark = [pytest.mark.vm, pytest.mark.usefixtures("qemu")]
OPTIONS = ("--region", "0:1M", "--region", "1:1M")
OK = bytes([MapperStatus.OK])


def ask(machine: QTestMachine, op: MapperOp, *, room: int = 200, **fields: int) -> bytes:
    """What the device answers to a request."""
    return machine.exchange(0, MapperRequest(op, **fields).pack(), room)


def test_files_are_mapped_and_unmapped_as_the_driver_asks(tmp_path: Path) -> None:
    content = make_file(tmp_path / "a", MIB, 1)
    make_file(tmp_path / "b", MIB, 2)
    with shm_and_qemu(*OPTIONS, "--file", str(tmp_path / "a"), "--file", f"{tmp_path / 'b'}:rw") as (machine, _):
        assert ask(machine, MapperOp.MAP, shm_offset=PAGE, len=2 * PAGE, fd_offset=PAGE) == OK
        assert ask(machine, MapperOp.MAP, shmid=1, file=1, flags=WRITABLE, len=PAGE) == OK
        assert machine.read_shm(0, 0, 4 * PAGE) == bytes(PAGE) + content[PAGE : 3 * PAGE] + bytes(PAGE)
        machine.write_shm(1, 8, b"from the guest")
        assert (tmp_path / "b").read_bytes()[8:].startswith(b"from the guest")
        assert ask(machine, MapperOp.MAPPINGS) == OK + ENTRY.pack(PAGE, 2 * PAGE, PAGE, 0)
        assert ask(machine, MapperOp.MAPPINGS, shmid=1) == OK + ENTRY.pack(0, PAGE, 0, WRITABLE)
        assert ask(machine, MapperOp.UNMAP, shm_offset=PAGE, len=2 * PAGE) == OK
        assert machine.read_shm(0, 0, 4 * PAGE) == bytes(4 * PAGE)
        assert ask(machine, MapperOp.MAPPINGS) == OK


def test_what_qemu_refuses_is_refused_and_it_lives_on(tmp_path: Path) -> None:
    content = make_file(tmp_path / "a", 2 * PAGE)
    with shm_and_qemu(*OPTIONS, "--file", str(tmp_path / "a")) as (machine, _):
        os.truncate(tmp_path / "a", PAGE)
        answer = ask(machine, MapperOp.MAP, len=2 * PAGE)
        assert answer[0] == MapperStatus.REFUSED
        assert answer.endswith(b"the file has 0x1000 bytes, the mapping needs 0x2000")
        assert ask(machine, MapperOp.MAP, shm_offset=4 * PAGE, len=PAGE) == OK
        assert machine.read_shm(0, 4 * PAGE, PAGE) == content[:PAGE]


def test_after_a_reset_all_is_gone_and_comes_again(tmp_path: Path) -> None:
    content = make_file(tmp_path / "a", PAGE)
    with shm_and_qemu(*OPTIONS, "--file", str(tmp_path / "a")) as (machine, _):
        for features in (0, 1 << Feature.RING_PACKED):
            assert machine.bring_up(features) & features == features
            assert ask(machine, MapperOp.MAPPINGS) == OK
            assert ask(machine, MapperOp.MAP, len=PAGE) == OK
            assert machine.read_shm(0, 0, PAGE) == content
            machine.system_reset()
