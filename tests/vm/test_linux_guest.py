"""A Linux guest that uses our devices through QEMU."""

from __future__ import annotations

import base64
import zlib
from contextlib import ExitStack
from pathlib import Path

import pytest

from vhostuser import accelerated
from vhostuser.virtio.numbers import Feature
from vhostuser.vm.guest import Guest

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


def check_taken(guest: Guest, device: str) -> None:
    """The guest's driver has the ring features that the device's options ask for."""
    assert taken(guest, Feature.RING_PACKED) == ("packed=on" in device)
    assert taken(guest, Feature.RING_EVENT_IDX) == (accelerated and "event_idx" not in device)


def taken(guest: Guest, feature: Feature) -> bool:
    """The guest's driver has accepted a feature."""
    return guest.run("cat /sys/bus/virtio/devices/virtio0/features")[feature] == "1"


@pytest.mark.parametrize("device", [",packed=off", ",packed=on"])
def test_a_file_system_outlives_a_reboot(tmp_path: Path, device: str) -> None:
    """The guest reboots itself while QEMU stays; what it had synced is there, and what it had not may be."""
    with ExitStack() as opened:
        guest = disk(opened, tmp_path, device=device)
        check_taken(guest, device)
        assert guest.run("cat /sys/block/vda/size") == str(DISK // 512)
        guest.run("mke2fs /dev/vda && mount /dev/vda /mnt && touch /mnt/file && sync")
        guest.run("dd if=/dev/urandom of=/mnt/file bs=64k count=32 conv=fsync 2>/dev/null")
        digest = guest.run("md5sum /mnt/file")
        guest.reboot()
        assert guest.run("cut -d. -f1 /proc/uptime; mount | grep -c vda || true").splitlines()[-1] == "0"
        guest.run("mount /dev/vda /mnt")
        assert guest.run("md5sum /mnt/file") == digest
        guest.run("rm /mnt/file && umount /mnt")


def test_a_system_reset_under_load_harms_nothing_that_was_synced(tmp_path: Path) -> None:
    with ExitStack() as opened:
        guest = disk(opened, tmp_path, device=",packed=on")
        guest.run("mke2fs /dev/vda && mount /dev/vda /mnt && touch /mnt/kept && sync")
        guest.run("dd if=/dev/urandom of=/mnt/kept bs=64k count=32 conv=fsync 2>/dev/null")
        digest = guest.run("md5sum /mnt/kept")
        load = "while true; do dd if=/dev/urandom of=/mnt/$1 bs=64k count=8 conv=fsync; done"
        guest.run(f"echo '{load}' > /tmp/load")
        guest.start("sh /tmp/load 1 & sh /tmp/load 2")
        guest.run("until [ $(grep -c records /tmp/background) -gt 4 ]; do sleep 0.1; done")
        guest.system_reset()
        guest.run("mount /dev/vda /mnt")
        assert guest.run("md5sum /mnt/kept") == digest
        guest.run("dd if=/dev/urandom of=/mnt/more bs=64k count=8 conv=fsync 2>/dev/null && umount /mnt")


@pytest.mark.parametrize("device", [",packed=off,event_idx=off", ",packed=on,event_idx=off"])
def test_both_queues_of_a_disk_carry_requests(tmp_path: Path, device: str) -> None:
    """Each CPU has a queue of its own: what one reads, that queue's interrupts say."""
    with ExitStack() as opened:
        guest = disk(opened, tmp_path, device=device, queues=2, cpus=2)
        check_taken(guest, device)
        assert guest.run("ls /sys/block/vda/mq").split() == ["0", "1"]
        assert sorted(guest.run("cat /sys/block/vda/mq/*/cpu_list").split()) == ["0", "1"]
        before = interrupts(guest)
        for cpu in (1, 2):
            guest.run(f"taskset {cpu} dd if=/dev/vda of=/dev/null bs=4k count=50 skip={cpu}00 iflag=direct 2>/dev/null")
        assert [after - earlier >= 50 for after, earlier in zip(interrupts(guest), before, strict=True)] == [True, True]


def interrupts(guest: Guest) -> list[int]:
    """How often each queue of the disk has interrupted the guest."""
    rows = guest.run("grep virtio0-req /proc/interrupts").splitlines()
    return [sum(int(word) for word in row.split()[1:3]) for row in sorted(rows, key=lambda row: row.split()[-1])]


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
        first, second = (guest.run("dd if=/dev/hwrng bs=64 count=16 iflag=fullblock 2>/dev/null | base64 -w0") for _ in "12")
        assert [len(base64.b64decode(each)) for each in (first, second)] == [1024, 1024]
        assert first != second
        assert len(zlib.compress(base64.b64decode(first))) > 1000
