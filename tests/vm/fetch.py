"""Fetch QEMU >= 11.1 and the parts of a Linux guest into an ignored cache folder: no root, nothing installed.

The packages come from Debian's backports, by way of a private apt configuration that uses the machine's own mirror and
Debian's keyring. Programs of the unpacked tree run through its own loader, so the machine's libraries don't matter.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path

RELEASE = "trixie"
BACKPORTS = f"{RELEASE}-backports"
NEXT = "forky"  # what no earlier suite has; it needs no more than the C library
MINIMUM = (11, 1)  # the first QEMU with VIRTIO Shared Memory Regions over vhost-user
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
PROGRAMS = ("qemu-system-x86", "qemu-utils", "virtiofsd", "busybox-static", "zstd", "libblkio-dev")
FROM_NEXT = ("vhost-device-vsock",)
KERNEL = "linux-image-cloud-amd64"
KERNEL_PARTS = ("linux-binary-", "linux-modules-")
LIBRARIES = "usr/lib/x86_64-linux-gnu"
EXAMPLES = "libblkio-dev"  # whose programs Debian ships as sources, among its documents
UNWANTED = (*(f"share/{name}" for name in ("doc", "man", "locale", "info", "lintian", "bug")), "bin/qemu-system-i386")
STAMP = "versions.json"
SECONDS = 300  # for one run of apt-get; all other programs need far less


class FetchError(Exception):
    """Something is missing; the text says what failed and one thing to try."""


class OutOfReach(FetchError):
    """Nothing can be fetched here at all: no network, no apt, or another kind of machine."""


def cache_folder() -> Path:
    """Where the tree lives: `vm` in $VHOSTUSER_CACHE, or else in `.cache` at the top of the checkout."""
    parent = os.environ.get("VHOSTUSER_CACHE") or Path(__file__).resolve().parents[2] / ".cache"
    return Path(parent).absolute() / "vm"


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
    return kernel and all(name in found for name in (*PROGRAMS, *FROM_NEXT))


def qemu_command() -> list[str]:
    """The start of a qemu-system-x86_64 command line."""
    tree = _tree()  # QEMU looks for its modules (qtest is one) beside the loader, so it is told where they are
    modules = f"QEMU_MODULE_DIR={tree / LIBRARIES / 'qemu'}"
    firmware = [word for name in ("qemu", "seabios") for word in ("-L", str(tree / "usr/share" / name))]
    return ["/usr/bin/env", modules, *_loaded(tree, "usr/bin/qemu-system-x86_64"), *firmware]


def storage_daemon_command() -> list[str]:
    """The start of a qemu-storage-daemon command line."""
    return _loaded(_tree(), "usr/bin/qemu-storage-daemon")


def virtiofsd_command() -> list[str]:
    """The start of a virtiofsd command line."""
    return _loaded(_tree(), "usr/libexec/virtiofsd")


def vsock_command() -> list[str]:
    """The start of a vhost-device-vsock command line."""
    return _loaded(_tree(), "usr/bin/vhost-device-vsock")


def blkio_sources() -> Path:
    """The folder with the C sources of libblkio's programs: blkio-bench.c, blkio-copy.c, blkio-info.c."""
    return _tree() / "usr/share/doc/libblkio-dev/examples"


def blkio_flags() -> list[str]:
    """What a C compiler wants to know of libblkio. What it makes is started by `loaded`."""
    return [f"-I{_tree() / 'usr/include'}", str(_tree() / LIBRARIES / "libblkio.so.1"), "-Wl,--allow-shlib-undefined"]


def loaded(program: Path) -> list[str]:
    """The start of a command line that runs a program with the libraries of the tree."""
    return _loaded(_tree(), str(program))


def busybox() -> Path:
    """A static busybox, for the guest's initramfs."""
    return _tree() / "usr/bin/busybox"


def kernel() -> Path:
    """The guest's kernel: an ELF vmlinux, which boots faster, or the bzImage if that couldn't be had."""
    elf = _tree() / "vmlinux"
    return elf if elf.exists() else _image(_tree())


def modules() -> dict[str, Path]:
    """The guest's kernel modules by name (`virtio_blk`), each .ko.xz."""
    return {path.name.partition(".")[0].replace("-", "_"): path for path in _tree().glob("usr/lib/modules/**/*.ko.xz")}


def _tree() -> Path:
    if not is_fetched():
        raise FetchError(f"no QEMU in {cache_folder()}: run python3 tests/vm/fetch.py once, with a network")
    return cache_folder()


def _loaded(tree: Path, program: str) -> list[str]:
    libraries = tree / LIBRARIES
    return [str(libraries / "ld-linux-x86-64.so.2"), "--library-path", str(libraries), str(tree / program)]


def _image(tree: Path) -> Path:
    found = [*tree.glob("usr/lib/modules/*/vmlinuz"), *tree.glob("boot/vmlinuz-*")]
    if not found:
        raise FetchError("the kernel packages hold no vmlinuz: has their layout changed?")
    return found[0]


def fetch(into: Path) -> dict[str, str]:
    """Download and unpack beside `into`, then move it there; what was complete before stays until that moment."""
    if platform.machine() != "x86_64":
        raise OutOfReach(f"the guest is x86-64 and so must this machine be, but it is {platform.machine()}")
    if into.exists() and any(into.iterdir()) and not versions(into):
        raise FetchError(f"{into} holds something else: remove it, or choose another folder with --into")
    into.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f"{into.name}.", dir=into.parent) as scratch:
        debs = Apt(Path(scratch) / "apt", RELEASE, BACKPORTS).download()
        debs += Apt(Path(scratch) / "next", NEXT).download_alone(*FROM_NEXT)
        found = _packages(debs)
        _check_version(found["qemu-system-x86"])
        tree = Path(scratch) / "tree"
        tree.mkdir()
        for deb in debs:
            _unpack(deb, tree)
        _run([*_loaded(tree, "usr/bin/qemu-system-x86_64"), "--version"], seconds=30)
        _extract_elf(tree)
        (tree / STAMP).write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")
        if into.exists():
            into.rename(Path(scratch) / "old")
        tree.rename(into)
    return found


class Apt:
    """A private apt: its own lists, cache and (empty) state, but the machine's mirror, proxies and keyring."""

    def __init__(self, folder: Path, *suites: str) -> None:
        if re.search(r'["\\\n]', str(folder)):
            raise FetchError(f"apt can't be given the path {folder}: choose another folder with --into")
        self.folder, self.suites = folder, suites
        self.lists = folder / "lists"
        self.archives = folder / "cache/archives"
        for place in (self.lists, self.archives):
            (place / "partial").mkdir(parents=True)
        (folder / "status").touch()
        (folder / "apt.conf").write_text(_machine_settings() + self._settings())

    def _settings(self) -> str:
        settings = {
            "Dir::Etc::main": "/dev/null",
            "Dir::Etc::parts": "/dev/null",
            "Dir::Etc::sourcelist": self.folder / "sources.list",
            "Dir::Etc::sourceparts": "/dev/null",
            "Dir::Etc::preferences": "/dev/null",
            "Dir::Etc::preferencesparts": "/dev/null",
            "Dir::State::lists": self.lists,
            "Dir::State::status": self.folder / "status",
            "Dir::Cache": self.folder / "cache",
            "APT::Architecture": "amd64",
            "APT::Install-Recommends": "false",
            "APT::Sandbox::User": "root",
            "APT::Update::Error-Mode": "any",
            "Acquire::AllowInsecureRepositories": "false",
            "Acquire::Check-Valid-Until": "false",  # warn_of_old_lists says so instead
            "Acquire::Languages": "none",
            "Acquire::Retries": "2",
            "Acquire::http::Timeout": "20",
            "Acquire::https::Timeout": "20",
        }
        return "".join(f'{name} "{value}";\n' for name, value in settings.items())

    def run(self, *words: str, cwd: Path | None = None) -> str:
        return _run(list(words), cwd=cwd, environment={"APT_CONFIG": str(self.folder / "apt.conf")})

    def update(self) -> None:
        """Read the package lists from the first of the machine's mirrors that has them."""
        if not KEYRING.exists():
            raise OutOfReach(f"{KEYRING} is missing: install debian-archive-keyring")
        failures = []
        for site in _sites():
            lines = [f"deb [signed-by={KEYRING}] {site} {suite} main\n" for suite in self.suites]
            (self.folder / "sources.list").write_text("".join(lines))
            try:
                self.run("apt-get", "-qq", "update")
            except FetchError as failure:
                failures.append(str(failure))
                continue
            return warn_of_old_lists(self.lists)
        reason = failures[0] if failures else "apt has no mirror configured"
        raise OutOfReach(f"no package lists of {self.suites[-1]}: {reason}; is there a network, and a Debian mirror in apt?")

    def download(self) -> list[Path]:
        """The programs with all they depend on; of the kernel only the image and the modules."""
        self.update()
        self.run("apt-get", "-qq", "-y", "--download-only", "-t", BACKPORTS, "install", *PROGRAMS)
        self.run("apt-get", "-qq", "download", *self._kernel_packages(), cwd=self.archives)
        return sorted(self.archives.glob("*.deb"))

    def download_alone(self, *packages: str) -> list[Path]:
        """These packages without what they depend on."""
        self.update()
        self.run("apt-get", "-qq", "download", *packages, cwd=self.archives)
        return sorted(self.archives.glob("*.deb"))

    def _kernel_packages(self) -> list[str]:
        depends = self.run("apt-cache", "depends", f"{KERNEL}/{BACKPORTS}")
        release = re.search(r"Depends: linux-image-(\d\S*)", depends)
        if release is None:
            raise FetchError(f"{KERNEL} of {BACKPORTS} names no kernel: has its layout changed?")
        return [part + release[1] for part in KERNEL_PARTS]


def warn_of_old_lists(lists: Path) -> None:
    """An old list is used all the same (its signature was checked), but never silently."""
    for release in lists.glob("*Release"):
        until = re.search(r"^Valid-Until: (.+)$", release.read_text(errors="replace"), re.MULTILINE)
        if until and parsedate_to_datetime(until[1].replace("UTC", "GMT")) < datetime.now(UTC):
            print(f"warning: {release.name} was valid until {until[1]} only: the mirror lags behind", file=sys.stderr)


def _sites() -> list[str]:
    """The mirrors apt is configured with; those whose lists are here and say Debian come first."""
    listed = "$(LABEL) $(SITE)"
    known = _run(["apt-get", "indextargets", "--format", listed, "Created-By: Packages"])
    configured = _run(["apt-get", "indextargets", "--no-release-info", "--format", listed, "Created-By: Packages"])
    debian = [line for line in known.splitlines() if line.startswith("Debian ")]
    lines = [*debian, *configured.splitlines()]
    return list(dict.fromkeys(line.rpartition(" ")[2] for line in lines if "/" in line))[:4]


def _machine_settings() -> str:
    """How the machine's apt acquires things (proxies, above all), without its hooks and its extra indexes."""
    lines = _run(["apt-config", "dump", "Acquire"]).splitlines()
    return "".join(line + "\n" for line in lines if not line.startswith("Acquire::IndexTargets"))


def _packages(debs: list[Path]) -> dict[str, str]:
    names = [deb.name.split("_") for deb in debs]
    return {package: version.replace("%3a", ":") for package, version, *_ in names}


def _check_version(version: str) -> None:
    numbers = re.match(r"(?:\d+:)?(\d+)\.(\d+)", version)
    if numbers is None or (int(numbers[1]), int(numbers[2])) < MINIMUM:
        lowest = ".".join(map(str, MINIMUM))
        raise FetchError(f"{BACKPORTS} has QEMU {version}, but shared memory regions need {lowest}: try another mirror")


def _unpack(deb: Path, tree: Path) -> None:
    if not tree.is_absolute():
        raise FetchError(f"not unpacking into {tree}: it must be an absolute path")
    content = subprocess.run(["dpkg-deb", "--fsys-tarfile", deb], stdout=subprocess.PIPE, timeout=60, check=True).stdout
    command = ["tar", "-x", "-C", str(tree), "--no-same-owner", "--no-same-permissions"]  # no setuid bits in a cache
    unwanted = () if deb.name.startswith(EXAMPLES) else UNWANTED
    subprocess.run([*command, *(f"--exclude=./usr/{path}" for path in unwanted)], input=content, timeout=60, check=True)


def _extract_elf(tree: Path) -> None:
    """Take vmlinux out of the bzImage, if it is packed with zstd; payload_offset and _length are at 0x248 and 0x24c."""
    image = _image(tree).read_bytes()
    start = (image[0x1F1] + 1) * 512 + int.from_bytes(image[0x248:0x24C], "little")
    end = start + int.from_bytes(image[0x24C:0x250], "little") - 4  # the last four bytes are the unpacked size
    command = [*_loaded(tree, "usr/bin/zstd"), "-dcq"]
    unpacked = subprocess.run(command, input=image[start:end], capture_output=True, timeout=60, check=False)
    if unpacked.returncode == 0 and unpacked.stdout.startswith(b"\x7fELF"):
        (tree / "vmlinux").write_bytes(unpacked.stdout)


def _run(
    words: list[str], *, cwd: Path | None = None, environment: dict[str, str] | None = None, seconds: int = SECONDS
) -> str:
    """What the program prints, or a FetchError of one line."""
    settings = {**os.environ, "LC_ALL": "C.UTF-8", **(environment or {})}
    try:
        done = subprocess.run(
            words, cwd=cwd, env=settings, stdin=subprocess.DEVNULL, capture_output=True, timeout=seconds, check=False
        )
    except FileNotFoundError:
        raise OutOfReach(f"{words[0]} is not here: use a Debian machine or container") from None
    except subprocess.TimeoutExpired:
        raise FetchError(f"{words[0]} took more than {seconds} s: is the network slow?") from None
    if done.returncode:
        said = done.stderr.decode(errors="replace").splitlines()
        reason = next((line for line in said if line.startswith("E:")), said[-1] if said else "no reason given")
        raise FetchError(f"{Path(words[0]).name} failed: {reason.removeprefix('E:').strip()}")
    return done.stdout.decode(errors="replace")


def _summary(found: dict[str, str]) -> str:
    shown = [name for name in found if name in (*PROGRAMS, *FROM_NEXT) or name.startswith("linux-")]
    return "\n".join(f"{name} {found[name]}" for name in shown)


def main() -> int:
    parser = argparse.ArgumentParser(description="Fetch QEMU and the parts of a guest for the tests (about 85 MB).")
    parser.add_argument("--offline", action="store_true", help="only check that everything is here")
    parser.add_argument("--into", type=Path, default=None, metavar="DIR", help="instead of .cache/vm")
    options = parser.parse_args()
    into = Path(options.into).absolute() if options.into else cache_folder()
    try:
        found = versions(into)
        if options.offline and not is_fetched(into):
            raise FetchError(f"{into} is not complete: run once without --offline")
        if not is_fetched(into):
            found = fetch(into)
    except (FetchError, OSError, subprocess.SubprocessError) as failure:
        print(f"fetch: {failure}", file=sys.stderr)
        return 3 if isinstance(failure, OutOfReach) else 1
    print(f"{_summary(found)}\nin {into}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
