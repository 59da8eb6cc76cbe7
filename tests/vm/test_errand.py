"""What a guest does with a share, of which virtiofsd is the back-end here: it has no window."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.interop.peers import virtiofsd
from vhostuser.cli.children import child
from vhostuser.vm.errand import ERR, OUT, STATUS, script
from vhostuser.vm.initramfs import initramfs
from vhostuser.vm.machine import Attachment, Kind, Machine
from vhostuser.vm.ports import Ports
from vhostuser.vm.tree import kernel, qemu_command

from .shares import ONCE

pytestmark = [pytest.mark.vm, pytest.mark.usefixtures("qemu"), pytest.mark.timeout(300), ONCE]
SECONDS = 240.0


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder with a share in it, and room in its name for a socket's."""
    with tempfile.TemporaryDirectory(prefix="vhu") as name:
        (Path(name) / "share").mkdir()
        yield Path(name)


def errand(place: Path, *command: str, dax: str) -> dict[str, bytes]:
    """What comes out of each port of a guest that has the share."""
    attached = Attachment(Kind.SHARE, str(place / "s"), dax=False)
    (place / "initramfs").write_bytes(initramfs([], script=script([Kind.SHARE], command, dax=dax)))
    heard = {OUT: b"", ERR: b"", STATUS: b""}
    with virtiofsd(place / "share", place / "s"), Ports(tuple(heard)) as ports:
        words = [*qemu_command(), *Machine().words(), *ports.words(), *attached.words(), "-nodefaults", "-no-user-config"]
        words += ["-display", "none", "-no-reboot", "-append", "quiet panic=-1"]
        with child([*words, "-kernel", str(kernel()), "-initrd", str(place / "initramfs")], fds=ports.fds) as qemu:
            ports.started()
            for name, data in ports.pieces(SECONDS):
                heard[name] += data
            assert qemu.wait(SECONDS) == 0
    return heard


def test_a_share_is_mounted_and_the_command_starts_in_it(place: Path) -> None:
    (place / "share" / "in").write_bytes(b"from the host")
    heard = errand(place, "sh", "-c", "pwd; cp in out; cat out", dax="off")
    assert heard == {OUT: b"/mnt\nfrom the host", ERR: b"", STATUS: b"ready\nexit 0\n"}
    assert (place / "share" / "out").read_bytes() == b"from the host"


def test_a_share_that_can_not_be_mounted_is_said_with_the_reason(place: Path) -> None:
    heard = errand(place, "echo", "never", dax="direct")
    assert heard[OUT] == b""
    assert heard[STATUS].startswith(b"failed the share can't be mounted: mount: mounting myfs on /mnt failed: Invalid")
