"""The fetched tree: where it lies, what it must hold, and how its programs are started.

They run through the tree's own loader, so the machine's libraries don't matter.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Final

PROGRAMS: Final = ("qemu-system-x86", "qemu-utils", "busybox-static", "zstd", "libblkio-dev", "e2fsprogs")
LIBRARIES_OF_NEXT: Final = ("libseccomp2", "libcap-ng0")
ALONE: Final = ("git", "linux-libc-dev")
"""What is of use without most of what it depends on."""
FROM_NEXT: Final = ("vhost-device-vsock", "virtiofsd")
KERNEL_PARTS: Final = ("linux-binary-", "linux-modules-")
STAMP: Final = "versions.json"
_LIBRARIES: Final = "usr/lib/x86_64-linux-gnu"
WANTED: Final = (*PROGRAMS, *LIBRARIES_OF_NEXT, *ALONE, *FROM_NEXT)
LOADER: Final = "lib64/ld-linux-x86-64.so.2"
_PACKAGE: Final = Path(__file__).resolve().parents[1]
_LISTED: Final = re.compile(r"=> (\S+)")


class FetchError(Exception):
    """Something is missing; the text says what failed and one thing to try."""


class OutOfReach(FetchError):
    """Nothing can be fetched here at all: no network, no apt, or another kind of machine."""


def cache_folder() -> Path:
    """Where the tree lives: `vm` in $VHOSTUSER_CACHE, else in `.cache` of the checkout, else in the user's cache folder."""
    return Path(os.environ.get("VHOSTUSER_CACHE") or _checkout_cache() or _users_cache()).absolute() / "vm"


def _checkout_cache() -> Path | None:
    top = _PACKAGE.parents[1]
    return top / ".cache" if (top / "pyproject.toml").exists() and _PACKAGE.parent.name == "src" else None


def _users_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vhostuser"


def versions(folder: Path | None = None) -> dict[str, str]:
    """The fetched packages and their versions; empty if there is no tree."""
    try:
        found = json.loads(((folder or cache_folder()) / STAMP).read_text())
    except (OSError, ValueError):
        return {}
    return {str(name): str(version) for name, version in found.items()}


def is_fetched(folder: Path | None = None) -> bool:
    """Is there a tree with all that is wanted today, so that the commands below can be run?"""
    found = versions(folder)
    kernel = all(any(name.startswith(part) for name in found) for part in KERNEL_PARTS)
    return kernel and all(name in found for name in WANTED)


def qemu_command() -> list[str]:
    """The start of a qemu-system-x86_64 command line."""
    tree = folder()  # QEMU looks for its modules (qtest is one) beside the loader, so it is told where they are
    modules = f"QEMU_MODULE_DIR={tree / _LIBRARIES / 'qemu'}"
    firmware = [word for name in ("qemu", "seabios") for word in ("-L", str(tree / "usr/share" / name))]
    return ["/usr/bin/env", modules, *loaded("usr/bin/qemu-system-x86_64"), *firmware]


def storage_daemon_command() -> list[str]:
    """The start of a qemu-storage-daemon command line."""
    return loaded("usr/bin/qemu-storage-daemon")


def virtiofsd_command() -> list[str]:
    """The start of a virtiofsd command line."""
    return loaded("usr/libexec/virtiofsd")


def vsock_command() -> list[str]:
    """The start of a vhost-device-vsock command line."""
    return loaded("usr/bin/vhost-device-vsock")


def headers() -> Path:
    """The kernel's headers for user space: `linux/fuse.h` and its neighbours."""
    return folder() / "usr/include"


def blkio_sources() -> Path:
    """The folder with the C sources of libblkio's programs: blkio-bench.c, blkio-copy.c, blkio-info.c."""
    return folder() / "usr/share/doc/libblkio-dev/examples"


def blkio_flags() -> list[str]:
    """What a C compiler wants to know of libblkio. What it makes is started by `loaded`."""
    return [f"-I{folder() / 'usr/include'}", str(folder() / _LIBRARIES / "libblkio.so.1"), "-Wl,--allow-shlib-undefined"]


def busybox() -> Path:
    """A static busybox, for the guest's initramfs."""
    return folder() / "usr/bin/busybox"


def kernel() -> Path:
    """The guest's kernel: an ELF vmlinux, which boots faster, or the bzImage if that couldn't be had."""
    elf = folder() / "vmlinux"
    return elf if elf.exists() else image(folder())


def modules() -> dict[str, Path]:
    """The guest's kernel modules by name (`virtio_blk`), each .ko.xz."""
    return {path.name.partition(".")[0].replace("-", "_"): path for path in folder().glob("usr/lib/modules/**/*.ko.xz")}


def folder() -> Path:
    """The complete tree; FetchError if there is none."""
    if not is_fetched():
        raise FetchError(f"no QEMU in {cache_folder()}: run `vhu vm fetch` once, with a network")
    return cache_folder()


def loaded(program: str | Path, tree: Path | None = None) -> list[str]:
    """The start of a command line that runs a program, of the tree or built elsewhere, with the libraries of the tree."""
    tree = tree or folder()
    libraries = tree / _LIBRARIES
    return [str(libraries / "ld-linux-x86-64.so.2"), "--library-path", str(libraries), str(tree / program)]


def with_libraries(program: str) -> dict[str, Path]:
    """What a guest needs for a program of the tree (`usr/bin/git`): files by their paths in the guest."""
    tree = folder()
    listed = subprocess.run(
        [*loaded(program)[:-1], "--list", str(tree / program)], capture_output=True, timeout=30, check=True
    )
    libraries = [Path(found) for found in _LISTED.findall(listed.stdout.decode())]
    found = {f"{_LIBRARIES}/{library.name}": library for library in libraries}
    return {program: tree / program, **found, LOADER: tree / _LIBRARIES / Path(LOADER).name}


def image(tree: Path) -> Path:
    """The kernel of a tree as it was packed: a bzImage."""
    found = [*tree.glob("usr/lib/modules/*/vmlinuz"), *tree.glob("boot/vmlinuz-*")]
    if not found:
        raise FetchError("the kernel packages hold no vmlinuz: has their layout changed?")
    return found[0]
