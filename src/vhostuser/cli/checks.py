"""What `vhu doctor` looks at: each check looks at one thing, and says how to mend it."""

from __future__ import annotations

import ctypes
import os
import platform
import resource
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from .. import _native
from ..vm.errand import STATUS, script
from ..vm.initramfs import initramfs
from ..vm.machine import Machine
from ..vm.ports import Ports
from ..vm.tree import FetchError, cache_folder, is_fetched, kernel, qemu_command
from .children import child

OLDEST_KERNEL: Final = (5, 6)
"""The first with openat2, by which shares keep to their directory."""
FILES: Final = 4096
LOCKED: Final = 64 << 10
MAPS: Final = 65530
KVM_SECONDS: Final = 15.0
GENERIC: Final = "vhost-user-test-device-pci"
_LANDLOCK_CREATE_RULESET: Final = 444
_VERSION_ONLY: Final = 1


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check found: whether all is well, and how to mend it if not. Only what is `needed` makes the doctor fail."""

    name: str
    well: bool
    text: str
    fix: str = ""
    needed: bool = True


def check_kernel() -> Finding:
    """Linux, and not too old."""
    release = platform.release()
    numbers = tuple(int(part) for part in release.split("-")[0].split(".")[:2] if part.isdigit())
    lowest = ".".join(map(str, OLDEST_KERNEL))
    return Finding(
        "kernel", numbers >= OLDEST_KERNEL, f"Linux {release}, at least {lowest} is needed", "boot a newer kernel"
    )


def check_files() -> Finding:
    """Open files: a ring takes four, a share one for each file that the guest knows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    enough = hard == resource.RLIM_INFINITY or hard >= FILES
    text = f"RLIMIT_NOFILE is {_limit(soft)}, which daemons may raise to {_limit(hard)}; {FILES} is wise"
    return Finding("open files", enough, text, f"LimitNOFILE={1 << 16} in the service, or ulimit -Hn {1 << 16}")


def check_locked() -> Finding:
    """Locked memory, which io_uring and mlock count."""
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    enough = soft == resource.RLIM_INFINITY or soft >= LOCKED
    text = f"RLIMIT_MEMLOCK is {_limit(soft)} bytes; {LOCKED} is wise"
    return Finding("locked memory", enough, text, "LimitMEMLOCK=64M in the service, or ulimit -l 65536", needed=False)


def _limit(value: int) -> str:
    return "unlimited" if value == resource.RLIM_INFINITY else str(value)


def check_maps() -> Finding:
    """Mappings a process may have: a front-end makes one for each SHMEM_MAP."""
    value = int(Path("/proc/sys/vm/max_map_count").read_text())
    text = f"vm.max_map_count is {value}; {MAPS} is the kernel's default"
    return Finding("mappings", value >= MAPS, text, f"sysctl vm.max_map_count={MAPS}")


def check_memfd() -> Finding:
    """Files in memory that can't shrink under whoever maps them."""
    fix = "allow memfd_create in the seccomp profile of this container"
    try:
        fd = os.memfd_create("doctor", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    except OSError as error:
        return Finding("memfd", False, f"memfd_create fails: {error.strerror}", fix)
    os.close(fd)
    return Finding("memfd", True, "memfd_create works, with seals")


def check_namespaces() -> Finding:
    """User namespaces, which the sandbox of an unprivileged daemon is made of."""
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", "true"], capture_output=True, timeout=KVM_SECONDS, check=False
    )
    why = done.stderr.decode(errors="replace").strip().rpartition(": ")[2]
    text = "user namespaces work" if not done.returncode else f"user namespaces can't be made: {why}"
    fix = "sysctl user.max_user_namespaces=10000 (and kernel.apparmor_restrict_unprivileged_userns=0), or --sandbox none"
    return Finding("namespaces", not done.returncode, text, fix, needed=False)


def check_landlock() -> Finding:
    """Landlock, which keeps a daemon to its directory."""
    version = ctypes.CDLL(None, use_errno=True).syscall(_LANDLOCK_CREATE_RULESET, None, 0, _VERSION_ONLY)
    text = f"Landlock {version}" if version > 0 else f"no Landlock: {os.strerror(ctypes.get_errno())}"
    return Finding("landlock", version > 0, text, "boot with lsm=landlock,... on the kernel's command line", needed=False)


def check_speed() -> Finding:
    """The compiled half."""
    live = _native.accelerated
    text = "the compiled half is live" if live else "pure Python: the compiled half was not built, or VHOSTUSER_PURE is set"
    return Finding("compiled half", live, text, "unset VHOSTUSER_PURE, or install with a C compiler", needed=False)


def check_qemu() -> Finding:
    """The fetched QEMU, with the device that has shared memory regions."""
    fix = "vhu vm fetch"
    if not is_fetched():
        return Finding("qemu", False, f"no QEMU >= 11.1 in {cache_folder()}", fix)
    version = _of_qemu("--version").partition("\n")[0].removeprefix("QEMU emulator version ")
    there = f'"{GENERIC}"' in _of_qemu("-device", "help")
    text = f"QEMU {version}, {'with' if there else 'without'} {GENERIC}"
    return Finding("qemu", bool(version) and there, text, f"rm -r {cache_folder()} && {fix}")


def _of_qemu(*words: str) -> str:
    """What QEMU prints."""
    done = subprocess.run(
        [*qemu_command(), *words], stdin=subprocess.DEVNULL, capture_output=True, timeout=KVM_SECONDS, check=False
    )
    return done.stdout.decode(errors="replace")


def check_kvm() -> Finding:
    """KVM, by a guest that boots: the device may be there, and no guest run."""
    fix = "use --accel tcg here; else load kvm_intel or kvm_amd, join the group kvm, or enable nested virtualisation"
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return Finding("kvm", False, "/dev/kvm is not there, or not for you", fix, needed=False)
    if not is_fetched():
        return Finding("kvm", False, "/dev/kvm is there, but there is no QEMU to try it with", "vhu vm fetch", needed=False)
    why = _boot("kvm")
    return Finding("kvm", not why, why or "a guest boots with KVM", fix, needed=False)


def _boot(accel: str) -> str:
    """Why no guest boots, or nothing."""
    with tempfile.TemporaryDirectory(prefix="vhu-doctor-") as folder, Ports((STATUS,)) as ports:
        image, said = Path(folder) / "initramfs", Path(folder) / "said"
        image.write_bytes(initramfs([], script=script([], ["true"], dax="off")))
        words = [*qemu_command(), *Machine(accel=accel).words(), "-nodefaults", "-no-user-config", "-display", "none"]
        words += ["-no-reboot", "-kernel", str(kernel()), "-initrd", str(image), "-append", "quiet panic=-1", *ports.words()]
        with said.open("w+b") as file, child(words, fds=ports.fds, said=file):
            ports.started()
            try:
                if any(b"ready" in data for _, data in ports.pieces(KVM_SECONDS)):
                    return ""
            except TimeoutError:
                return f"a guest with {accel} has not booted in {KVM_SECONDS:g} s"
        last = said.read_text(errors="replace").strip().splitlines()[-1:]
        return f"a guest with {accel} does not boot: {last[0] if last else 'QEMU said nothing'}"


CHECKS: Final[dict[str, Callable[[], Finding]]] = {
    "kernel": check_kernel,
    "open files": check_files,
    "locked memory": check_locked,
    "mappings": check_maps,
    "memfd": check_memfd,
    "namespaces": check_namespaces,
    "landlock": check_landlock,
    "compiled half": check_speed,
    "qemu": check_qemu,
    "kvm": check_kvm,
}


def examine() -> list[Finding]:
    """The findings of all checks; one that can't be made is a finding, too."""
    found = []
    for name, check in CHECKS.items():
        try:
            found.append(check())
        except (OSError, ValueError, FetchError, LookupError, subprocess.SubprocessError) as error:
            text = f"it can't be checked: {error}"
            found.append(Finding(name, False, text, "see what the error names", needed=False))
    return found
