"""Sharing files with a VM, by the commands that the README and docs/vhu-fs.md show."""

from __future__ import annotations

import hashlib
import os
import re
import shlex
from pathlib import Path

import pytest

from tests.cli.programs import listening
from tests.unit.test_readme import README, block
from vhostuser.vm.guest import Guest

from .test_vm_run import SECONDS, temporary, vm

__all__ = ["temporary"]
from .shares import ONCE

pytestmark = [pytest.mark.vm, pytest.mark.usefixtures("qemu"), pytest.mark.timeout(300), ONCE]


def test_one_command_reads_a_file_through_the_window(
    temporary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it stands in the README, and with --stats to see how."""
    monkeypatch.chdir(tmp_path)
    command = next(line for line in block("sh", "vhu vm run").splitlines() if line.startswith("vhu vm run"))
    (tmp_path / "photo.raw").write_bytes(content := os.urandom(3 << 20))
    words = shlex.split(command, comments=True)[3:]
    cut = words.index("--")
    done = vm(temporary, *words[:cut], "--stats", command=tuple(words[cut + 1 :]))
    assert (done.returncode, done.stdout) == (0, f"{hashlib.sha256(content).hexdigest()}  photo.raw\n".encode()), done.stderr
    assert b'"SETUPMAPPING": 2' in done.stderr
    assert b'"READ"' not in done.stderr


def test_a_guest_of_ones_own_mounts_what_vhu_fs_shares(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The daemon's words and the device's, as they stand in the README; the rest of QEMU's words are this guest's own."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photo.raw").write_bytes(content := os.urandom(3 << 20))
    daemon, machine = block("sh", "vhu-fs --socket").split("&\n")
    socket, *options = shlex.split(daemon)[2:]
    words = shlex.split(machine.replace("\\\n", ""))
    devices = [word for at in range(len(words)) if words[at] in ("-chardev", "-device") for word in words[at : at + 2]]
    mount = re.search(r"In the guest: `(mount -t virtiofs \w+ /mnt)`", README)
    assert mount
    with listening(Path(socket), *options, module="vhostuser.cli.fs") as back:
        with Guest(devices) as guest:
            guest.run(mount[1])
            assert guest.run("sha256sum < /mnt/photo.raw").split()[0] == hashlib.sha256(content).hexdigest()
            assert guest.run("touch /mnt/new 2>/dev/null || echo refused") == "refused"
        assert back.end(SECONDS) == 0
    assert os.listdir(tmp_path) == ["photo.raw"]
