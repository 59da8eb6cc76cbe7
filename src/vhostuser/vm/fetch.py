"""Fetch QEMU >= 11.1 and the parts of a Linux guest into a cache folder: no root, nothing installed.

QEMU and the kernel come from Debian's backports, what no earlier suite has from the next release.
"""

from __future__ import annotations

import json
import platform
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Final

from .apt import Apt, run
from .tree import (
    ALONE,
    FROM_NEXT,
    KERNEL_PARTS,
    LIBRARIES_OF_NEXT,
    PROGRAMS,
    STAMP,
    WANTED,
    FetchError,
    OutOfReach,
    image,
    loaded,
    versions,
)

RELEASE: Final = "trixie"
BACKPORTS: Final = f"{RELEASE}-backports"
NEXT: Final = "forky"
"""Its programs must do with the libraries of the release: each is started once it is unpacked."""
MINIMUM: Final = (11, 1)
"""The first QEMU with VIRTIO Shared Memory Regions over vhost-user."""
KERNEL: Final = "linux-image-cloud-amd64"
EXAMPLES: Final = "libblkio-dev"
"""Whose programs Debian ships as sources, among its documents."""
UNWANTED: Final = (*(f"share/{name}" for name in ("doc", "man", "locale", "info", "lintian", "bug")), "bin/qemu-system-i386")
STARTED: Final = ("usr/bin/qemu-system-x86_64", "usr/bin/vhost-device-vsock", "usr/libexec/virtiofsd", "usr/bin/git")


def fetch(into: Path) -> dict[str, str]:
    """Download and unpack beside `into`, then move it there; what was complete before stays until that moment."""
    if platform.machine() != "x86_64":
        raise OutOfReach(f"the guest is x86-64 and so must this machine be, but it is {platform.machine()}")
    if into.exists() and any(into.iterdir()) and not versions(into):
        raise FetchError(f"{into} holds something else: remove it, or choose another folder with --into")
    into.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f"{into.name}.", dir=into.parent) as scratch:
        debs = _download(Path(scratch))
        found = packages(debs)
        _check_version(found["qemu-system-x86"])
        tree = Path(scratch) / "tree"
        tree.mkdir()
        for deb in debs:
            unpack(deb, tree)
        for program in STARTED:
            run([*loaded(program, tree), "--version"], seconds=30)
        _extract_elf(tree)
        (tree / STAMP).write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")
        if into.exists():
            into.rename(Path(scratch) / "old")
        tree.rename(into)
    return found


def _download(scratch: Path) -> list[Path]:
    """The programs with all they depend on; of the kernel only the image and the modules."""
    apt = Apt(scratch / "apt", RELEASE, BACKPORTS)
    apt.update()
    apt.download(*PROGRAMS, *LIBRARIES_OF_NEXT, suite=BACKPORTS)
    apt.download_alone(*(f"{name}/{BACKPORTS}" for name in ALONE if name.startswith("linux-")))
    apt.download_alone(*(name for name in ALONE if not name.startswith("linux-")), *_kernel_packages(apt))
    following = Apt(scratch / "next", NEXT)
    following.update()
    following.download_alone(*FROM_NEXT)
    return [*apt.debs(), *following.debs()]


def _kernel_packages(apt: Apt) -> list[str]:
    depends = apt.run("apt-cache", "depends", f"{KERNEL}/{BACKPORTS}")
    release = re.search(r"Depends: linux-image-(\d\S*)", depends)
    if release is None:
        raise FetchError(f"{KERNEL} of {BACKPORTS} names no kernel: has its layout changed?")
    return [part + release[1] for part in KERNEL_PARTS]


def packages(debs: list[Path]) -> dict[str, str]:
    """Their names, and versions."""
    names = [deb.name.split("_") for deb in debs]
    return {package: version.replace("%3a", ":") for package, version, *_ in names}


def _check_version(version: str) -> None:
    numbers = re.match(r"(?:\d+:)?(\d+)\.(\d+)", version)
    if numbers is None or (int(numbers[1]), int(numbers[2])) < MINIMUM:
        lowest = ".".join(map(str, MINIMUM))
        raise FetchError(f"{BACKPORTS} has QEMU {version}, but shared memory regions need {lowest}: try another mirror")


def unpack(deb: Path, tree: Path) -> None:
    """Put the files of a package into a tree, without documents and set-user-ID bits."""
    if not tree.is_absolute():
        raise FetchError(f"not unpacking into {tree}: it must be an absolute path")
    content = subprocess.run(["dpkg-deb", "--fsys-tarfile", deb], stdout=subprocess.PIPE, timeout=60, check=True).stdout
    command = ["tar", "-x", "-C", str(tree), "--no-same-owner", "--no-same-permissions"]  # no setuid bits in a cache
    unwanted = () if deb.name.startswith(EXAMPLES) else UNWANTED
    subprocess.run([*command, *(f"--exclude=./usr/{path}" for path in unwanted)], input=content, timeout=60, check=True)


def _extract_elf(tree: Path) -> None:
    """Take vmlinux out of the bzImage, if it is packed with zstd; payload_offset and _length are at 0x248 and 0x24c."""
    packed = image(tree).read_bytes()
    start = (packed[0x1F1] + 1) * 512 + int.from_bytes(packed[0x248:0x24C], "little")
    end = start + int.from_bytes(packed[0x24C:0x250], "little") - 4  # the last four bytes are the unpacked size
    command = [*loaded("usr/bin/zstd", tree), "-dcq"]
    unpacked = subprocess.run(command, input=packed[start:end], capture_output=True, timeout=60, check=False)
    if unpacked.returncode == 0 and unpacked.stdout.startswith(b"\x7fELF"):
        (tree / "vmlinux").write_bytes(unpacked.stdout)


def summary(found: dict[str, str]) -> str:
    """The versions that matter, one a line."""
    shown = [name for name in found if name in WANTED or name.startswith(KERNEL_PARTS)]
    return "\n".join(f"{name} {found[name]}" for name in shown)
