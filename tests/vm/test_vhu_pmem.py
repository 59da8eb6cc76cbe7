"""`vhu-pmem` behind QEMU's generic device, as /dev/pmem0 of a Linux guest. Its driver is a module of the fetched kernel."""

from __future__ import annotations

import hashlib
import os
import struct
from contextlib import ExitStack
from pathlib import Path

import pytest

from vhostuser.virtio.pmem import CONFIG_SIZE
from vhostuser.vm.guest import Guest, GuestFailed

from .lab import MIB, SECONDS, check_well, make_file
from .machine import QTestMachine, generic_device
from .shares import ONCE
from .test_vhu_shm import Shm, running_back_end

pytestmark = [pytest.mark.vm, pytest.mark.usefixtures("qemu"), pytest.mark.timeout(300), ONCE]
IMAGE = 64 * MIB
DEVICE = generic_device(virtio_id=27, config_size=CONFIG_SIZE)
FLUSH, OK, FAILED = bytes(4), bytes(4), b"\xff" * 4
DAX = "-t ext4 -o dax=always /dev/pmem0 /mnt && grep -q ' /mnt ext4 .*dax=always' /proc/mounts"
MOUNT = f"mount {DAX}"


def running_pmem(opened: ExitStack, image: Path, *options: str) -> tuple[Path, Shm]:
    """`vhu-pmem` with that image: its socket, and the process."""
    socket = image.with_name("s")
    program = ["-m", "vhostuser.cli.pmem", "--socket-path", str(socket), "--image", str(image), *options]
    return socket, opened.enter_context(running_back_end(socket, program))


def running_guest(opened: ExitStack, image: Path, *options: str) -> tuple[Guest, Shm]:
    """A guest whose /dev/pmem0 is that image."""
    socket, back = running_pmem(opened, image, *options)
    arguments = ["-chardev", f"socket,id=c0,path={socket}", "-device", f"{DEVICE},chardev=c0"]
    return opened.enter_context(Guest(arguments, modules=["virtio_pmem", "nd_pmem"])), back


def sparse(folder: Path) -> Path:
    """An image that is all zeros."""
    with open(folder / "image", "wb") as file:
        file.truncate(IMAGE)
    return folder / "image"


def end(guest: Guest, back: Shm) -> None:
    """QEMU ends in good order, and the back-end after it."""
    guest.qmp.execute("quit")
    assert guest.process.wait(guest.seconds) == 0, guest.stderr
    assert back.process.wait(SECONDS) == 0, back.log
    assert "Traceback" not in back.log


def test_the_guests_driver_finds_the_image_and_flushes_it(tmp_path: Path) -> None:
    content = make_file(tmp_path / "image", 2 * MIB)
    with ExitStack() as opened:
        socket, back = running_pmem(opened, tmp_path / "image")
        machine = opened.enter_context(QTestMachine(socket, device=DEVICE, seconds=SECONDS))
        for turn in range(3):
            assert machine.bring_up(1) & 1
            assert machine.exchange(0, FLUSH, 4) == OK
            assert machine.shm_sizes == {0: 2 * MIB}
            assert machine.read_config(0, CONFIG_SIZE) == bytes(CONFIG_SIZE)
            assert machine.read_shm(0, 4096, 4096) == content[4096:8192]
            machine.write_shm(0, turn, b"w")
            machine.stop()
            machine.cont()
            assert machine.exchange(0, FLUSH, 4) == OK
            assert machine.exchange(0, struct.pack("<I", 9), 4) == FAILED
            assert (tmp_path / "image").read_bytes()[: turn + 2] == b"w" * (turn + 1) + content[turn + 1 : turn + 2]
            machine.system_reset()
        assert back.log.count("mapped ") == 3
        check_well(machine)


def test_a_dax_file_system_outlives_a_reboot_and_its_bytes_are_in_the_image(tmp_path: Path) -> None:
    image = sparse(tmp_path)
    content = b"".join(f"line {number} of a file in the guest\n".encode() for number in range(10_000))
    with ExitStack() as opened:
        guest, back = running_guest(opened, image)
        assert guest.run("cat /sys/block/pmem0/size /sys/block/pmem0/queue/dax").split() == [str(IMAGE // 512), "1"]
        guest.run(f"mke2fs -b 4096 /dev/pmem0 && {MOUNT}")
        guest.run('i=0; while [ $i -lt 10000 ]; do echo "line $i of a file in the guest"; i=$((i+1)); done >/mnt/file; sync')
        digest = hashlib.md5(content, usedforsecurity=False).hexdigest()
        assert guest.run("md5sum </mnt/file").split()[0] == digest
        cached = "grep ^Cached: /proc/meminfo | tr -dc 0-9"
        before = int(guest.run(cached))
        guest.run("dd if=/dev/zero of=/mnt/large bs=1M count=32 conv=fsync 2>/dev/null && cat /mnt/large >/dev/null")
        assert int(guest.run(cached)) - before < 1024  # KiB: the guest has no copy of it
        held = image.read_bytes()
        assert all(content[at : at + 4096] in held for at in range(0, len(content) - 4096, 4096))
        guest.reboot()
        guest.run(MOUNT)
        assert guest.run("md5sum </mnt/file").split()[0] == digest
        guest.run("umount /mnt")
        end(guest, back)
        assert back.log.count("mapped ") == 2


def test_stop_cont_and_resets_with_the_live_mapping_lose_nothing_that_was_synced(tmp_path: Path) -> None:
    """K1 to K3: QEMU lives, whatever the guest is at."""
    with ExitStack() as opened:
        guest, back = running_guest(opened, sparse(tmp_path))
        guest.run(f"mke2fs -b 4096 /dev/pmem0 && {MOUNT}")
        guest.run("dd if=/dev/urandom of=/mnt/kept bs=64k count=32 conv=fsync 2>/dev/null")
        digest = guest.run("md5sum </mnt/kept")
        load = "while true; do dd if=/dev/urandom of=/mnt/load bs=64k count=8 conv=fsync; md5sum /mnt/kept; done"
        for reset in (guest.system_reset, guest.reboot):
            guest.start(load)
            guest.run("until [ $(grep -c kept /tmp/background) -gt 1 ]; do sleep 0.1; done")
            for _ in range(30):
                guest.stop_and_cont()
            guest.run("grep -c kept /tmp/background >/tmp/seen")
            guest.run("until [ $(grep -c kept /tmp/background) -gt $(cat /tmp/seen) ]; do sleep 0.1; done")
            reset()
            guest.run(MOUNT)
            assert guest.run("md5sum </mnt/kept") == digest
        end(guest, back)
        assert back.log.count("mapped ") == 3


def test_a_read_only_image_can_be_mounted_and_never_changes(tmp_path: Path) -> None:
    image = sparse(tmp_path)
    with ExitStack() as opened:
        guest, back = running_guest(opened, image)
        guest.run(f"mke2fs -b 4096 /dev/pmem0 && {MOUNT} && echo kept >/mnt/file && umount /mnt")
        end(guest, back)
    os.truncate(image, 48 * MIB + 1)  # no whole page, and no power of two: the file system's blocks there are free
    before = image.read_bytes()
    with ExitStack() as opened:
        guest, back = running_guest(opened, image, "--read-only")
        assert guest.run("cat /sys/block/pmem0/size") == str(IMAGE // 512)
        guest.run(f"mount -r {DAX}")
        assert guest.run("cat /mnt/file") == "kept"
        guest.run("umount /mnt")
        with pytest.raises(GuestFailed, match="Input/output error"):
            guest.run("dd if=/dev/urandom of=/dev/pmem0 bs=4k count=100 conv=fsync")
        end(guest, back)
    assert image.read_bytes() == before
