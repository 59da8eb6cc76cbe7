"""The peers of the matrix: what they come in, and how each is started."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from vhostuser.vm.tool import Tool
from vhostuser.vm.tree import (
    FetchError,
    blkio_flags,
    loaded,
    storage_daemon_command,
    versions,
    virtiofsd_command,
    vsock_command,
)

from .fetched import PASST, TESTPMD, have

BACK, FRONT = "back-end", "front-end"
Start = Callable[[Path], list[str]]
BLKIO_SOURCE: Final = Path(__file__).parents[1] / "interop/blkio_front.c"


@dataclass(frozen=True, slots=True)
class Peer:
    """A real implementation of one side."""

    name: str
    """Of its files, and what `make matrix PEER=` takes."""
    title: str
    side: str
    packages: Sequence[str]
    """Debian's, whose versions are told."""
    shown: str
    """Its command line as a reader would type it, with `{socket}`."""
    start: Start
    """The words that start it, given a folder for its files."""
    device: str = ""
    """What `vhu check back-end --device` wants to know."""
    tool: Tool | None = None
    """Where it was fetched to, if not with the VM."""
    seconds: int = 600
    """The most that a run of all rules may take."""

    def versions(self) -> dict[str, str]:
        """Those of its packages that are there."""
        found = versions(self.tool.folder if self.tool else None)
        return {package: found[package] for package in self.packages if package in found}

    def check(self) -> str:
        """The command that holds it to all rules."""
        device = f" --device {self.device}" if self.device else ""
        return f"vhu check {self.side}{device} --run '{self.shown}'"


def _storage_daemon(folder: Path) -> list[str]:
    disk = folder / "disk"
    disk.write_bytes(bytes(16 << 20))
    export = "vhost-user-blk,id=e0,node-name=disk,addr.type=unix,addr.path={socket},writable=on"
    return [*storage_daemon_command(), "--blockdev", f"file,node-name=disk,filename={disk}", "--export", export]


def _virtiofsd(folder: Path) -> list[str]:
    (folder / "shared").mkdir()
    words = ["--socket-path={socket}", "--shared-dir", str(folder / "shared"), "--sandbox", "none", "--seccomp", "none"]
    return [*virtiofsd_command(), *words]


def _vsock(folder: Path) -> list[str]:
    return [*vsock_command(), "--guest-cid", "3", "--socket", "{socket}", "--uds-path", str(folder / "host")]


def _qemu(_: Path) -> list[str]:
    return [sys.executable, "-m", "tests.interop.qemu_front", "{socket}"]


def _blkio(folder: Path) -> list[str]:
    program = folder / "front"
    command = ["gcc", "-O1", "-o", str(program), str(BLKIO_SOURCE), *blkio_flags()]
    try:
        subprocess.run(command, check=True, timeout=60)
    except (OSError, subprocess.SubprocessError) as error:
        raise FetchError(f"its program can't be compiled: {error}") from None
    return [*loaded(program), "{socket}"]


def _passt(_: Path) -> list[str]:
    return [*have(PASST), *PASST_WORDS.split()]


def _testpmd(device: str) -> Start:
    return lambda _: [*have(TESTPMD), *testpmd_words(device).split()]


def testpmd_words(device: str) -> str:
    """What testpmd is told, with one port of this kind."""
    few = "--total-num-mbufs 8192 --stats-period 3600"
    return f"--no-huge -m 256 --no-pci --no-telemetry --no-shconf --vdev {device} -- {few}"


PASST_WORDS: Final = "--foreground --vhost-user --socket {socket}"
VHOST: Final = "net_vhost0,iface={socket}"
VIRTIO_USER: Final = "net_virtio_user0,path={socket}"
DISK: Final = "--blockdev file,node-name=disk,filename=DISK"
EXPORT: Final = "--export vhost-user-blk,id=e0,node-name=disk,addr.type=unix,addr.path={socket},writable=on"

PEERS: Final = (
    Peer("qemu", "QEMU", FRONT, ("qemu-system-x86",), "python -m tests.interop.qemu_front {socket}", _qemu, seconds=900),
    Peer("libblkio", "libblkio", FRONT, ("libblkio1",), "blkio_front {socket}", _blkio, seconds=900),
    Peer(
        *("qemu-storage-daemon", "qemu-storage-daemon (libvhost-user)", BACK, ("qemu-utils",)),
        *(f"qemu-storage-daemon {DISK} {EXPORT}", _storage_daemon, "block"),
    ),
    Peer(
        *("virtiofsd", "virtiofsd (rust-vmm)", BACK, ("virtiofsd",)),
        *("virtiofsd --socket-path={socket} --shared-dir DIR --sandbox none --seccomp none", _virtiofsd, "fs"),
    ),
    Peer(
        *("vhost-device-vsock", "vhost-device-vsock (rust-vmm)", BACK, ("vhost-device-vsock",)),
        *("vhost-device-vsock --guest-cid 3 --socket {socket} --uds-path HOST", _vsock, "vsock"),
    ),
    Peer("passt", "passt", BACK, ("passt",), f"passt {PASST_WORDS}", _passt, tool=PASST),
    Peer(
        *("testpmd-vhost", "DPDK testpmd, net_vhost", BACK, ("dpdk-dev",)),
        *(f"dpdk-testpmd {testpmd_words(VHOST)}", _testpmd(VHOST)),
        tool=TESTPMD,
    ),
    Peer(
        *("testpmd-virtio-user", "DPDK testpmd, net_virtio_user", FRONT, ("dpdk-dev",)),
        *(f"dpdk-testpmd {testpmd_words(VIRTIO_USER)}", _testpmd(VIRTIO_USER)),
        tool=TESTPMD,
        seconds=900,
    ),
)
NOT_RUN: Final = {
    "rust-vmm crates 0.17 (SHMEM, both sides)": (
        "benchmarks/rust_pair speaks the back-end channel alone, over an fd that it inherits: it has no main channel that"
        " `vhu check` could talk to. Programs with one are still to be written"
    ),
    "QEMU with a guest": "QEMU is driven over qtest here; what a guest adds is tested in tests/vm, not rule by rule",
}
"""What belongs to the matrix and is not in it: why."""
