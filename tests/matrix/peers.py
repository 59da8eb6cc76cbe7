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
    cache_folder,
    is_fetched,
    loaded,
    storage_daemon_command,
    versions,
    virtiofsd_command,
    vsock_command,
)

from .fetched import CRATES, PASST, TESTPMD, built_on_crates, have
from .store import TOP

BACK, FRONT = "back-end", "front-end"
Start = Callable[[Path], list[str]]
BOOT: Final = 300.0
"""Seconds that a guest may take to boot, under TCG on a machine that does other things as well."""
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
    setup: Sequence[str] = ()
    """What a reader types before."""
    device: str = ""
    """What `vhu check back-end --device` wants to know."""
    tool: Tool | None = None
    """Where it was fetched to, if not with the VM."""
    place: str = ""
    """Where in the cache that is, if not with the VM and no tool."""
    rules: str = ""
    """A pattern of the names of those that it is held to, if these are not all."""
    why: str = ""
    """Why these."""
    timeout: int = 0
    """Seconds that it may take for its next message, if that is more than usual."""
    seconds: int = 600
    """The most that a run of all rules may take."""

    def versions(self) -> dict[str, str]:
        """Those of its packages that are there."""
        elsewhere = cache_folder().parent / self.place if self.place else None
        found = versions(self.tool.folder if self.tool else elsewhere)
        return {name: found[name] for each in self.packages for name in found if _is_named(name, each)}

    def options(self) -> list[str]:
        """What `vhu check` is told besides how it is started."""
        device = ["--device", self.device] if self.device else []
        return [*device, *(["--timeout", str(self.timeout)] if self.timeout else [])]

    def check(self) -> str:
        """The command that holds it to all rules."""
        return " ".join(["vhu check", self.side, *self.options(), f"--run '{self.shown}'"])


def _is_named(package: str, name: str) -> bool:
    """The package has this name, or begins with it where the version is a part of the name."""
    return package == name or (name.endswith("-") and package.startswith(name))


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


def _guest(folder: Path) -> list[str]:
    if not is_fetched():
        raise FetchError("there is no guest: run `vhu vm fetch` once, with a network")
    program, state = [sys.executable, "-m", "tests.interop.qemu_guest"], str(folder / "state")
    try:
        subprocess.run([*program, "--save", state], check=True, timeout=BOOT, cwd=TOP, capture_output=True)
    except (OSError, subprocess.SubprocessError) as error:
        raise FetchError(f"the guest does not boot: {error}") from None
    return [*program, "{socket}", state]


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


def _rust(name: str) -> Start:
    return lambda _: [*built_on_crates(name), "{socket}"]


def testpmd_words(device: str) -> str:
    """What testpmd is told, with one port of this kind."""
    few = "--total-num-mbufs 8192 --stats-period 3600"
    return f"--no-huge -m 256 --no-pci --no-telemetry --no-shconf --vdev {device} -- {few}"


def built(name: str) -> Sequence[str]:
    """What builds a program of tests/matrix/rust, and has it found."""
    return (f'PATH="$(dirname "$(python benchmarks/fetch_rust.py tests/matrix/rust {name})"):$PATH"',)


FETCH: Final = "vhu vm fetch"
COMPILE: Final = "gcc -o blkio_front tests/interop/blkio_front.c $(pkg-config --cflags --libs blkio)"
PASST_WORDS: Final = "--foreground --vhost-user --socket {socket}"
VHOST: Final = "net_vhost0,iface={socket}"
VIRTIO_USER: Final = "net_virtio_user0,path={socket}"
DISK: Final = "--blockdev file,node-name=disk,filename=DISK"
EXPORT: Final = "--export vhost-user-blk,id=e0,node-name=disk,addr.type=unix,addr.path={socket},writable=on"

OF_DRIVERS: Final = (
    *("^(a_|the_files_of_a_)?rings?_(?!of_)", "^a_base_is_an_index", "^no_more_rings", "^a_stop_asks"),
    *("^(memory|regions|user_addresses)_(?!may|of)", "^a_table_has", "^a_refused_memory_table"),
    *("^the_features_are_ack", "^the_bit_of_the_protocol", "^acknowledged_", "^the_device_is_owned", "^nothing_is_sent"),
    *("_reset$", "^(the_first|the_last|the_whole)_\\w+_can_be", "^a_mapping_\\w+_is_made$", "^a_mapping_is_answered"),
    *("^several_hundred", "^a_mapping_equal", "^a_whole_mapping", "^a_range_can_be", "_before_the_rings_start_"),
    *("^the_end_of", "^the_connection_outlives", "^a_back_end_that_(is_gone|goes)", "^the_channel_outlives_refusals"),
)
"""Patterns of rules about rings, memory, features, and what a mapping, a reset or an end does to a guest that runs."""

PEERS: Final = (
    Peer(
        "qemu",
        "QEMU",
        FRONT,
        ("qemu-system-x86",),
        "python -m tests.interop.qemu_front {socket}",
        _qemu,
        setup=(FETCH,),
        seconds=900,
    ),
    Peer("libblkio", "libblkio", FRONT, ("libblkio1",), "./blkio_front {socket}", _blkio, setup=(COMPILE,), seconds=900),
    Peer(
        *("qemu-storage-daemon", "qemu-storage-daemon (libvhost-user)", BACK, ("qemu-utils",)),
        *(f"qemu-storage-daemon {DISK} {EXPORT}", _storage_daemon),
        setup=("truncate -s 16M DISK",),
        device="block",
    ),
    Peer(
        *("virtiofsd", "virtiofsd (rust-vmm)", BACK, ("virtiofsd",)),
        *("virtiofsd --socket-path={socket} --shared-dir DIR --sandbox none --seccomp none", _virtiofsd),
        setup=("mkdir DIR",),
        device="fs",
    ),
    Peer(
        *("vhost-device-vsock", "vhost-device-vsock (rust-vmm)", BACK, ("vhost-device-vsock",)),
        *("vhost-device-vsock --guest-cid 3 --socket {socket} --uds-path HOST", _vsock),
        device="vsock",
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
    Peer(
        *("rust-back-end", "rust-vmm, vhost-user-backend", BACK),
        *(("librust-vhost-dev", "librust-vhost-user-backend-dev"), "rust-back-end {socket}", _rust("rust-back-end")),
        setup=built("rust-back-end"),
        device="echo",
        place=CRATES,
    ),
    Peer(
        *("rust-front-end", "rust-vmm, vhost", FRONT, ("librust-vhost-dev",)),
        *("rust-front-end {socket}", _rust("rust-front-end")),
        setup=built("rust-front-end"),
        place=CRATES,
        seconds=900,
    ),
    Peer(
        *("qemu-guest", "QEMU with a Linux guest", FRONT, ("qemu-system-x86", "linux-binary-")),
        *("python -m tests.interop.qemu_guest {socket} STATE", _guest),
        setup=(FETCH, "python -m tests.interop.qemu_guest --save STATE"),
        rules="|".join(OF_DRIVERS),
        why="a guest is started for each rule, so these are those alone that its driver or its memory makes a difference to",
        timeout=10,
        seconds=900,
    ),
)
