"""Capabilities: their names, and dropping all but a few ("capabilities(7)")."""

from __future__ import annotations

import ctypes
import errno
from typing import Final

from .system import SandboxError, checked, forbid_privileges, prctl

NAMES: Final = (
    *("chown", "dac_override", "dac_read_search", "fowner", "fsetid", "kill", "setgid", "setuid", "setpcap"),
    *("linux_immutable", "net_bind_service", "net_broadcast", "net_admin", "net_raw", "ipc_lock", "ipc_owner"),
    *("sys_module", "sys_rawio", "sys_chroot", "sys_ptrace", "sys_pacct", "sys_admin", "sys_boot", "sys_nice"),
    *("sys_resource", "sys_time", "sys_tty_config", "mknod", "lease", "audit_write", "audit_control", "setfcap"),
    *("mac_override", "mac_admin", "syslog", "wake_alarm", "block_suspend", "audit_read", "perfmon", "bpf"),
    "checkpoint_restore",
)
"""By number."""
_KEPT: Final = ("chown", "dac_override", "dac_read_search", "fowner", "fsetid", "setgid", "setuid", "mknod", "setfcap")
_VERSION: Final = 0x2008_0522
_PR_CAPBSET_READ, _PR_CAPBSET_DROP, _PR_CAP_AMBIENT = 23, 24, 47
_CLEAR_ALL: Final = 4

_libc = ctypes.CDLL(None, use_errno=True)
_words = ctypes.c_uint32 * 2
_sets = ctypes.c_uint32 * 6


def mask(*names: str) -> int:
    """Capabilities as bits."""
    return sum(1 << NAMES.index(name) for name in names)


MINIMAL: Final = mask(*_KEPT)
"""What serving files for a guest takes: 0x880000df."""


def modified(text: str, kept: int = MINIMAL) -> int:
    """`kept` changed by `+NAME` and `-NAME`, with colons between them; ValueError if that is none."""
    for change in text.lower().split(":"):
        name = change[1:].removeprefix("cap_")
        if change[:1] not in ("+", "-") or name not in NAMES:
            raise ValueError(f"{change[:40]!a} is neither +CAPABILITY nor -CAPABILITY (like +sys_admin:-mknod)")
        kept = kept | mask(name) if change[0] == "+" else kept & ~mask(name)
    return kept


def permitted() -> int:
    """The capabilities that this thread may use."""
    sets = _sets()
    checked(_libc.capget(_words(_VERSION, 0), sets), "read capabilities")
    return int(sets[1]) | int(sets[4]) << 32


def drop_all_but(kept: int) -> None:
    """Keep these capabilities, those of them that there are, and get no others ever again; for threads yet to come, too."""
    _drop_bounding(kept)
    if prctl(_PR_CAP_AMBIENT, _CLEAR_ALL) < 0:
        checked(-1, "clear ambient capabilities")
    low, high = (left := permitted() & kept) & 0xFFFF_FFFF, left >> 32
    checked(_libc.capset(_words(_VERSION, 0), _sets(low, low, 0, high, high, 0)), "drop capabilities")
    forbid_privileges()


def _drop_bounding(kept: int) -> None:
    """Take the others from the bounding set, if this process may; one without privileges gains none from it anyway."""
    for number in range(64):
        present = prctl(_PR_CAPBSET_READ, number)
        if present < 0:
            return
        if present and not kept >> number & 1 and prctl(_PR_CAPBSET_DROP, number) < 0:
            if ctypes.get_errno() == errno.EPERM and not permitted() & mask("setpcap"):
                return
            raise SandboxError("drop bounding capabilities", ctypes.get_errno())
