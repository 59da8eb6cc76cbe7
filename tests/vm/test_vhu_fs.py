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
from .shares import CACHED, ONCE, Share, guest_of, make, mount, quit_well

pytestmark = [pytest.mark.vm, pytest.mark.usefixtures("qemu"), pytest.mark.timeout(300)]
SIZES = {"whole": 8 * MIB, "odd": 3 * MIB + 77, "small": 5000, "empty": 0}
OPERATIONS = int(os.environ.get("FSX_OPERATIONS", "1000"))
"""Of the exerciser, in each window; 100,000 take some ten minutes."""
SEED = 11


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


@ONCE
def test_what_the_guest_stores_into_mapped_files_is_in_the_hosts_files(tmp_path: Path) -> None:
    """And what an exerciser does to a file by all ways at once leaves the same bytes as on the host.

    One window has room for it; in the other one ranges are removed all the time, with what was stored into them.
    """
    with ExitStack() as opened:
        here = exercised(tmp_path)
        shares = [
            Share(opened, tag, tmp_path / tag, "--dax-write", "--dax-window", window)
            for tag, window in (("wide", "64M"), ("narrow", "4M"))
        ]
        guest = guest_of(opened, *shares, programs=["exercise"])
        for share in shares:
            make(share.folder / "stored", 3 * MIB)
            wanted = (share.folder / "stored").read_bytes()
            mount(guest, share.tag, "dax=always")
            guest.run(f"printf stored | dd of=/{share.tag}/stored bs=1 seek=2097150 conv=notrunc,fsync 2>/dev/null")
            assert (share.folder / "stored").read_bytes() == wanted[:2097150] + b"stored" + wanted[2097156:]
            assert guest.run(f"exercise /{share.tag}/file {OPERATIONS} {SEED}") == here
            assert (share.folder / "file").read_bytes() == (tmp_path / "file").read_bytes()
        guest.start("sleep 0.5; poweroff -f")
        assert guest.process.wait(guest.seconds) == 0
        counts = [share.ended() for share in shares]
        assert [each.get("READ", 0) for each in counts] == [0, 0]
        assert [share.counters["maps"] for share in shares] == [1, 1]
        assert counts[0]["SETUPMAPPING"] >= 3
        assert counts[1]["REMOVEMAPPING"] > OPERATIONS // 10


def exercised(folder: Path) -> str:
    """What the exerciser says of a file of the host, which it leaves there."""
    words = [str(compiled("exercise", folder)), str(folder / "file"), str(OPERATIONS), str(SEED)]
    return subprocess.run(words, capture_output=True, check=True, timeout=300, text=True).stdout.strip()
