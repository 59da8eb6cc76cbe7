"""`vhu-fs` with a Linux guest: files read through the window, and without one."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import pytest

from vhostuser.vm.guest import Guest, GuestFailed

from .lab import MIB
from .shares import CACHED, Share, guest_of, make, mount, quit_well

pytestmark = [pytest.mark.vm, pytest.mark.usefixtures("qemu"), pytest.mark.timeout(300)]
SIZES = {"whole": 8 * MIB, "odd": 3 * MIB + 77, "small": 5000, "empty": 0}


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
