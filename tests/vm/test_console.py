"""`vhu-console` behind QEMU's generic device, as /dev/hvc0 of a Linux guest. Its driver is part of the fetched kernel."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from vhostuser.vm.guest import Guest

from .lab import SECONDS
from .test_vhu_shm import running_back_end

pytestmark = [pytest.mark.vm, pytest.mark.usefixtures("qemu"), pytest.mark.timeout(300)]
OPEN = "exec 3<>/dev/hvc0 && stty raw -echo <&3"
"""It stays open: the last one to close a terminal takes what it was set to along."""
DEVICE = "vhost-user-test-device-pci,virtio-id=3,num_vqs=2,config_size=12,chardev=c0"


@contextmanager
def guest(folder: Path, options: str = "") -> Iterator[tuple[Guest, int]]:
    """A guest with a console, and the user's end of that."""
    path, link = folder / "console.sock", folder / "console"
    program = ["-m", "vhostuser.cli.console", "--socket-path", str(path), "--pty", "--pty-link", str(link)]
    arguments = ["-chardev", f"socket,id=c0,path={path}", "-device", DEVICE + options]
    with running_back_end(path, program):
        user = os.open(link, os.O_RDWR | os.O_NOCTTY)
        try:
            with Guest(arguments) as booted:
                yield booted, user
        finally:
            os.close(user)


def take(fd: int, size: int) -> bytes:
    """So many bytes that the guest shows."""
    data, deadline = b"", time.monotonic() + SECONDS
    while len(data) < size:
        assert select.select([fd], [], [], max(0.0, deadline - time.monotonic()))[0], data
        data += os.read(fd, size - len(data))
    return data


@pytest.mark.parametrize("options", [",packed=off", ",packed=on"])
def test_hvc0_talks_and_listens_also_after_a_reset(tmp_path: Path, options: str) -> None:
    with guest(tmp_path, options) as (linux, user):
        for turn in range(2):
            linux.run(OPEN)
            linux.run("printf 'hello from the guest' >&3")
            assert take(user, 20) == b"hello from the guest"
            linux.start("head -c 5 <&3 | md5sum >/tmp/heard; echo over")
            os.write(user, b"keys!")
            linux.run("until grep -q over /tmp/background; do sleep 0.1; done")
            assert linux.run("cat /tmp/heard") == linux.run("printf 'keys!' | md5sum")
            if not turn:
                linux.system_reset()


def test_much_goes_through_as_it_is(tmp_path: Path) -> None:
    size = 200_000
    with guest(tmp_path) as (linux, user):
        linux.run(OPEN)
        linux.run(f"head -c {size} /dev/urandom >/tmp/much && md5sum </tmp/much >/tmp/sum")
        linux.start("cat /tmp/much >&3")
        shown = take(user, size)
        linux.start(f"head -c {size} <&3 | md5sum >/tmp/heard; echo over")
        sent = 0
        while sent < size:
            sent += os.write(user, shown[sent : sent + 512])
        linux.run("until grep -q over /tmp/background; do sleep 0.1; done")
        assert linux.run("cat /tmp/heard") == linux.run("cat /tmp/sum")
