"""A Linux guest that has taken IN_ORDER, on a disk of ours."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.shuffling import Shuffler
from vhostuser import DescriptorChain
from vhostuser.device import Keep
from vhostuser.devices.blk import BlockDevice
from vhostuser.devices.disk import Disk
from vhostuser.testing import Served
from vhostuser.virtio.numbers import Feature
from vhostuser.vm.guest import Guest

from .shares import ONCE
from .test_linux_guest import DISK, check_taken, disk, taken

pytestmark = [pytest.mark.vm, pytest.mark.usefixtures("qemu"), pytest.mark.timeout(300), ONCE]


LOAD = "for i in 1 2 3; do dd if=/dev/urandom of=/mnt/$i bs=64k count=16 conv=fsync && md5sum /mnt/$i; done; echo over"


def test_a_file_system_keeps_what_was_written_through_stops(tmp_path: Path) -> None:
    with ExitStack() as opened:
        guest = disk(opened, tmp_path, device=",packed=on,in_order=on", queues=2, cpus=2)
        check_taken(guest, ",packed=on")
        assert taken(guest, Feature.IN_ORDER)
        write_under_stops(guest)


class Shuffled(BlockDevice):
    """A disk that completes requests in any order."""

    def __init__(self, disk: Disk) -> None:
        super().__init__(disk)
        self.shuffler = Shuffler(self)

    def process(self, queue: int, chain: DescriptorChain) -> Keep:  # type: ignore[override]
        super().process(queue, chain)
        return self.shuffler.keep(queue, chain)

    def close(self) -> None:
        self.shuffler.close()
        super().close()


@pytest.mark.parametrize("device", [",packed=off", ",packed=on"])
def test_a_disk_that_completes_in_any_order_is_held_to_that_of_the_ring(tmp_path: Path, device: str) -> None:
    """Linux takes an id that is out of order for a broken ring, or for the end of a batch."""
    path = tmp_path / "disk.raw"
    with open(path, "wb") as file:
        file.truncate(DISK)
    with ExitStack() as opened:
        served = Served(opened.enter_context(Shuffled(Disk(path))))
        opened.callback(served.stop)
        served.at(str(tmp_path / "blk.sock"))
        arguments = ["-chardev", f"socket,id=c0,path={tmp_path / 'blk.sock'}"]
        arguments += ["-device", f"vhost-user-blk-pci,chardev=c0,num-queues=1,in_order=on{device}"]
        guest = opened.enter_context(Guest(arguments, modules=["virtio_blk"]))
        assert taken(guest, Feature.IN_ORDER)
        write_under_stops(guest)


def write_under_stops(guest: Guest) -> None:
    """Write files while the machine is paused now and then; they are as they were written when read from the disk."""
    guest.run("mke2fs /dev/vda && mount /dev/vda /mnt")
    guest.start(LOAD)
    for _ in range(5):
        guest.stop_and_cont()
    guest.run("until grep -q over /tmp/background; do sleep 0.1; done")
    wanted = guest.run("grep /mnt/ /tmp/background")
    guest.run("umount /mnt && mount /dev/vda /mnt")
    assert guest.run("md5sum /mnt/?") == wanted
    assert len(wanted.splitlines()) == 3
