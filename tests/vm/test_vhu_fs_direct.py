"""`vhu-fs --dax=direct` behind QEMU: files themselves in the window of a Linux guest, for who takes the risk.

QEMU 11.1 may crash of it at a stop or a reset, so there is none here; how a guest ends in good order is what works.
"""

from __future__ import annotations

import hashlib
import random
from contextlib import ExitStack
from pathlib import Path

import pytest

from vhostuser.vm.guest import Guest

from .lab import MIB, SECONDS
from .machine import generic_device
from .shares import ONCE
from .test_vhu_shm import Shm, running_back_end

pytestmark = [pytest.mark.vm, pytest.mark.usefixtures("qemu"), pytest.mark.timeout(300), ONCE]
DEVICE = generic_device(virtio_id=26, queues=2, config_size=40)
CACHED = "grep ^Cached: /proc/meminfo | tr -dc 0-9"


def running_fs(opened: ExitStack, folder: Path, name: str, *options: str) -> tuple[list[str], Shm]:
    """`vhu-fs --dax=direct` for a folder: QEMU's words for its device, and the process."""
    socket = folder.parent / name
    words = ["--socket-path", str(socket), "--shared-dir", str(folder), "--tag", name, "--sandbox", "none", *options]
    back = opened.enter_context(
        running_back_end(socket, ["-m", "vhostuser.cli.fs", "--dax=direct", "--log-level=info", *words])
    )
    return ["-chardev", f"socket,id={name},path={socket}", "-device", f"{DEVICE},chardev={name}"], back


def test_a_guest_reads_and_writes_files_themselves_and_only_who_says_so_gets_it(tmp_path: Path) -> None:
    content = {"large": bytearray(random.Random(1).randbytes(3 * MIB + 5000)), "small": bytearray(b"x" * 5000)}
    folder = tmp_path / "shared"
    folder.mkdir()
    for name, data in content.items():
        (folder / name).write_bytes(data)
    with ExitStack() as opened:
        unsafe, direct = running_fs(opened, folder, "unsafe", "--dax-unsafe-peer")
        safe, plain = running_fs(opened, folder, "safe")
        guest = opened.enter_context(Guest([*unsafe, *safe]))
        guest.run("mkdir -p /a /b && mount -t virtiofs -o dax=always unsafe /a && mount -t virtiofs safe /b")
        before = int(guest.run(CACHED))
        for name, data in content.items():
            assert guest.run(f"md5sum </a/{name}").split()[0] == hashlib.md5(data, usedforsecurity=False).hexdigest()
        assert int(guest.run(CACHED)) - before < 1024  # KiB: the guest has no copy of it
        guest.run("cmp /a/large /b/large")
        for name, place in (("large", 2 * MIB - 2), ("large", 3 * MIB + 4997), ("small", 4094)):
            guest.run(f"printf abc | dd of=/a/{name} bs=1 seek={place} conv=notrunc 2>/dev/null")
            content[name][place : place + 3] = b"abc"
        guest.run("truncate -s 4097 /a/small && truncate -s 6000 /a/small && sync")
        content["small"][4097:] = bytes(6000 - 4097)
        assert guest.run("md5sum </a/small").split()[0] == hashlib.md5(content["small"], usedforsecurity=False).hexdigest()
        guest.run("umount /a /b")
        for name, data in content.items():
            assert (folder / name).read_bytes() == data
        guest.qmp.execute("quit")
        assert guest.process.wait(guest.seconds) == 0, guest.stderr
        for back in (direct, plain):
            assert back.process.wait(SECONDS) == 0, back.log
            assert "Traceback" not in back.log
        assert "it is mapped into as --dax-unsafe-peer says" in direct.log
        assert "the front-end tells of mappings as memory" in direct.log
        assert "there is no DAX" in plain.log
        assert "looks like QEMU 11.1" in plain.log
