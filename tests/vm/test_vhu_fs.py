"""`vhu-fs` with a Linux guest: files read through the window, and without one."""

from __future__ import annotations

import os
import subprocess
from contextlib import ExitStack
from pathlib import Path

import pytest

from vhostuser.vm.guest import Guest, GuestFailed

from .lab import MIB
from .programs import compiled
from .shares import CACHED, Share, guest_of, make, mount, quit_well

pytestmark = [pytest.mark.vm, pytest.mark.usefixtures("qemu"), pytest.mark.timeout(300)]
SIZES = {"whole": 8 * MIB, "odd": 3 * MIB + 77, "small": 5000, "empty": 0}
OPERATIONS = int(os.environ.get("FSX_OPERATIONS", "2000"))
"""Of the exerciser; 100,000 take some ten minutes."""


def digests(guest: Guest, folder: str, names: list[str]) -> list[str]:
    """What md5sum says of files in the guest, each read at once."""
    return [guest.run(f"md5sum <{folder}/{name}").split()[0] for name in names]


def growth(guest: Guest, command: str) -> int:
    """KiB by which the guest's page cache grows."""
    before = int(guest.run(f"sync; echo 3 >/proc/sys/vm/drop_caches; {CACHED}"))
    guest.run(command)
    return int(guest.run(CACHED)) - before


def test_files_are_read_through_the_window_with_no_read_and_no_page_cache(tmp_path: Path) -> None:
    """With each of Linux's mount options but dax=never; another share has no window, and a third one refuses DAX."""
    with ExitStack() as opened:
        (tmp_path / "files").mkdir()
        names, wanted = list(SIZES), [make(tmp_path / "files" / name, size) for name, size in SIZES.items()]
        make(tmp_path / "files" / "large", 32 * MIB)
        dax = Share(opened, "dax", tmp_path / "files", "--readonly", "--dax-window", "64M")
        never = Share(opened, "never", tmp_path / "files", "--readonly", "--dax-window", "64M")
        plain = Share(opened, "plain", tmp_path / "files", window=False)
        guest = guest_of(opened, dax, never, plain)
        for options in ("dax=always", "dax=inode", ""):
            mount(guest, "dax", options)
            assert digests(guest, "/dax", names) == wanted
            assert growth(guest, "cat /dax/large >/dev/null") < 1024
            with pytest.raises(GuestFailed, match="Read-only file system"):
                guest.run("echo no >/dax/small")
            guest.run("umount /dax")
        for share, options in ((never, "dax=never"), (plain, "")):
            mount(guest, share.tag, options)
            assert digests(guest, f"/{share.tag}", names) == wanted
            assert growth(guest, f"cat /{share.tag}/large >/dev/null") > 31 * 1024
        with pytest.raises(GuestFailed, match="Invalid argument"):
            guest.run("umount /plain; mount -t virtiofs -o dax=always plain /plain")
        quit_well(guest)
        counts = dax.ended()
        assert (counts.get("READ", 0), counts["INIT"]) == (0, 3)
        assert counts["SETUPMAPPING"] >= 3 * (4 + 2 + 1)
        assert dax.counters["maps"] == 1
        assert never.ended()["READ"] > 40
        assert plain.ended()["READ"] > 40


def test_what_the_guest_stores_into_mapped_files_is_in_the_hosts_files(tmp_path: Path) -> None:
    """And what an exerciser does to a file by all ways at once leaves the same bytes as on the host."""
    with ExitStack() as opened:
        (tmp_path / "files").mkdir()
        make(tmp_path / "files" / "stored", 3 * MIB)
        before = (tmp_path / "files" / "stored").read_bytes()
        share = Share(opened, "dax", tmp_path / "files", "--dax-write", "--dax-window", "64M")
        guest = guest_of(opened, share, programs=["exercise"])
        mount(guest, "dax", "dax=always")
        guest.run("printf stored | dd of=/dax/stored bs=1 seek=2097150 conv=notrunc,fsync 2>/dev/null")
        assert (tmp_path / "files" / "stored").read_bytes() == before[:2097150] + b"stored" + before[2097156:]
        words = [str(OPERATIONS), "11"]
        said = guest.run(f"exercise /dax/exercised {' '.join(words)}")
        here = subprocess.run(
            [compiled("exercise", tmp_path), tmp_path / "here", *words], capture_output=True, check=True, timeout=60
        )
        assert said == here.stdout.decode().strip()
        assert (tmp_path / "files" / "exercised").read_bytes() == (tmp_path / "here").read_bytes()
        guest.start("sleep 0.5; poweroff -f")
        assert guest.process.wait(guest.seconds) == 0
        counts = share.ended()
        assert (counts.get("READ", 0), share.counters["maps"]) == (0, 1)
        assert counts["SETUPMAPPING"] >= 3
