"""What becomes of a share and its live mappings when its guest stops, is reset or ends, and when its daemon ends.

K1 to K6, the ways in which a back-end may kill QEMU 11.1, are not provoked: QEMU lives through all of it.
"""

from __future__ import annotations

import os
import select
import signal
from contextlib import ExitStack
from pathlib import Path

import pytest

from vhostuser.vm.guest import Guest

from .lab import MIB, SECONDS
from .shares import ONCE, Share, guest_of, make, mount, quit_well

pytestmark = [pytest.mark.vm, pytest.mark.usefixtures("qemu"), pytest.mark.timeout(300), ONCE]
TIMES = 100
LOAD = "while true; do md5sum /dax/a /dax/b /dax/c || exit; done"


def read_on(guest: Guest) -> None:
    """Wait until the load has read all files twice more."""
    guest.run("grep -c /c /tmp/background >/tmp/seen || true")
    guest.run("until [ $(grep -c /c /tmp/background) -gt $(($(cat /tmp/seen) + 1)) ]; do sleep 0.1; done")


def check_read(guest: Guest, wanted: list[str]) -> None:
    """All that the load has read was right."""
    assert guest.run("head -n 3 /tmp/background; sort -u /tmp/background | grep -c .").splitlines() == [*wanted, "3"]


@ONCE
def test_stop_cont_and_resets_under_load_keep_the_data_right(tmp_path: Path) -> None:
    """The window is smaller than the files, so that ranges of it are mapped and removed all the time."""
    with ExitStack() as opened:
        (tmp_path / "files").mkdir()
        wanted = [f"{make(tmp_path / 'files' / name, 4 * MIB)}  /dax/{name}" for name in "abc"]
        share = Share(opened, "dax", tmp_path / "files", "--readonly", "--dax-window", "8M")
        guest = guest_of(opened, share)
        for times, reset in ((TIMES, guest.system_reset), (5, guest.reboot), (5, None)):
            mount(guest, "dax", "dax=always")
            guest.start(LOAD)
            read_on(guest)
            for _ in range(times):
                guest.stop_and_cont()
            read_on(guest)
            check_read(guest, wanted)
            if reset:
                reset()
        quit_well(guest)
        counts = share.ended()
        assert (counts.get("READ", 0), counts["INIT"], share.counters["maps"]) == (0, 3, 3)
        assert counts["SETUPMAPPING"] > 3 * 6


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_mapped_pages_outlive_the_daemon(tmp_path: Path, number: signal.Signals) -> None:
    """And so do QEMU, the guest, and what the guest had synced. The guest has the mapping's file open."""
    with ExitStack() as opened:
        (tmp_path / "files").mkdir()
        wanted = make(tmp_path / "files" / "kept", 4 * MIB)
        make(tmp_path / "files" / "synced", 2 * MIB)
        share = Share(opened, "dax", tmp_path / "files", "--dax-write", "--dax-window", "16M")
        guest = guest_of(opened, share)
        mount(guest, "dax")
        guest.run("yes synced | head -c 1048576 | dd of=/dax/synced bs=64k conv=notrunc,fsync 2>/dev/null")
        guest.run("mkfifo /tmp/go /tmp/armed")
        guest.start("exec 4</dax/kept; cat <&4 >/dev/null; exec 5</dax/kept; echo >/tmp/armed; read x </tmp/go; md5sum <&5")
        guest.run("read x </tmp/armed")
        inner = children(share.daemon.process.pid)
        share.daemon.process.send_signal(number)
        assert share.daemon.process.wait(SECONDS) == (0 if number is signal.SIGTERM else -number)
        wait_ended(inner)
        guest.run("echo >/tmp/go; until grep . /tmp/background; do sleep 0.1; done")
        assert guest.run("cat /tmp/background").split()[0] == wanted
        assert (tmp_path / "files" / "synced").read_bytes()[:MIB] == (b"synced\n" * MIB)[:MIB]
        quit_well(guest)


def children(pid: int) -> list[int]:
    """The processes that a process has started."""
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def wait_ended(pids: list[int]) -> None:
    """Processes that are not ours have ended."""
    for pid in pids:
        try:
            fd = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        with open(fd, "rb", buffering=0) as process:
            assert select.select([process], [], [], SECONDS)[0]
