"""A Linux guest that uses our devices through QEMU."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import pytest

from vhostuser import accelerated
from vhostuser.virtio.numbers import Feature

from .guest import Guest
from .test_vhu_shm import running_back_end

pytestmark = [pytest.mark.vm, pytest.mark.usefixtures("qemu"), pytest.mark.timeout(300)]
DISK = 64 << 20


def disk(opened: ExitStack, tmp_path: Path, *options: str, queues: int = 1, device: str = "", cpus: int = 1) -> Guest:
    """A guest whose /dev/vda is `vhu-blk` with a file of 64 MiB."""
    with open(tmp_path / "disk.raw", "ab") as file:
        file.truncate(DISK)
    socket = tmp_path / "blk.sock"
    words = ["--socket-path", str(socket), "--blk-file", str(tmp_path / "disk.raw"), "--num-queues", str(queues), *options]
    opened.enter_context(running_back_end(socket, ["-m", "vhostuser.cli.blk", *words]))
    device = f"vhost-user-blk-pci,chardev=c0,num-queues={queues}{device}"
    arguments = ["-chardev", f"socket,id=c0,path={socket}", "-device", device]
    return opened.enter_context(Guest(arguments, modules=["virtio_blk"], cpus=cpus))


def taken(guest: Guest, feature: Feature) -> bool:
    """The guest's driver has accepted a feature."""
    return guest.run("cat /sys/bus/virtio/devices/virtio0/features")[feature] == "1"


@pytest.mark.parametrize("device", [",packed=off", ",packed=on", ",packed=off,event_idx=off", ",packed=on,event_idx=off"])
def test_a_file_system_outlives_a_reset(tmp_path: Path, device: str) -> None:
    with ExitStack() as opened:
        guest = disk(opened, tmp_path, device=device)
        assert taken(guest, Feature.RING_PACKED) == ("packed=on" in device)
        assert taken(guest, Feature.RING_EVENT_IDX) == (accelerated and "event_idx" not in device)
        assert guest.run("cat /sys/block/vda/size") == str(DISK // 512)
        guest.run("mke2fs /dev/vda && mount /dev/vda /mnt")
        guest.run("dd if=/dev/urandom of=/mnt/file bs=64k count=128 2>/dev/null && sync")
        digest = guest.run("md5sum /mnt/file")
        guest.system_reset()
        guest.run("mount -o ro /dev/vda /mnt")
        assert guest.run("md5sum /mnt/file") == digest


@pytest.mark.parametrize("device", [",packed=off", ",packed=on"])
def test_stop_and_cont_under_load_lose_nothing(tmp_path: Path, device: str) -> None:
    with ExitStack() as opened:
        guest = disk(opened, tmp_path, queues=2, cpus=2, device=device)
        guest.run("mke2fs /dev/vda && mount /dev/vda /mnt")
        load = "for i in 1 2 3 4 5 6; do dd if=/dev/urandom of=/mnt/$i bs=64k count=64 conv=fsync && md5sum /mnt/$i; done"
        guest.start(f"{load}; echo over")
        for _ in range(20):
            guest.stop_and_cont()
        guest.run("until grep -q over /tmp/background; do sleep 0.1; done")
        wanted = guest.run("grep /mnt/ /tmp/background")
        guest.run("umount /mnt && mount /dev/vda /mnt")
        assert guest.run("md5sum /mnt/?") == wanted
        assert len(wanted.splitlines()) == 6


def test_a_guest_takes_random_bytes(tmp_path: Path) -> None:
    socket = tmp_path / "rng.sock"
    arguments = ["-chardev", f"socket,id=c0,path={socket}", "-device", "vhost-user-rng-pci,chardev=c0"]
    program = ["-m", "vhostuser.cli.rng", "--socket-path", str(socket)]
    with running_back_end(socket, program), Guest(arguments, modules=["virtio_rng"]) as guest:
        assert guest.run("cat /sys/class/misc/hw_random/rng_current").startswith("virtio_rng")
        take = "dd if=/dev/hwrng bs=64 count=16 2>/dev/null | md5sum"
        assert guest.run(take) != guest.run(take)
