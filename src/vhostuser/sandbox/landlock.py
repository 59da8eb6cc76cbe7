"""Landlock: nothing outside some directories can be opened, made or removed, whatever a process does ("landlock(7)")."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from struct import Struct
from typing import Final

from .system import checked, syscall

_CREATE, _ADD, _RESTRICT = 444, 445, 446
_VERSION_FLAG, _ERRATA_FLAG, _ERRATUM_3 = 1, 2, 1 << 2
_BENEATH: Final = 1
_RULESET, _RULE = Struct("=QQQ"), Struct("=Qi")

EXECUTE: Final = 1 << 0
REMOVE_FILE: Final = 1 << 5
IOCTL_DEV: Final = 1 << 15
_RIGHTS: Final = ((1, 13), (2, 14), (3, 15), (5, 16))
"""How many rights for files there are from which version of the interface on."""
_NET_FROM, _TCP = 4, 0b11
_SCOPES_FROM, _SCOPES = 6, 0b11


def version() -> int:
    """The version of the kernel's interface; 0 if there is none or it is off."""
    return max(0, syscall(_CREATE, 0, 0, _VERSION_FLAG))


def takes_handles() -> bool:
    """A file that is opened by a handle, of which the kernel knows no path, is taken for one of its mount's root.

    Linux had it otherwise until it was fixed as erratum 3.
    """
    return not version() or bool(max(0, syscall(_CREATE, 0, 0, _ERRATA_FLAG)) & _ERRATUM_3)


def file_rights(abi: int) -> int:
    """All rights for files that this version knows, as bits."""
    return (1 << max(count for least, count in _RIGHTS if least <= abi)) - 1


def restrict_to(folder: int) -> int:
    """Confine this thread, and those that it starts, to what is beneath `folder`, an fd: files and directories, no programs
    to run, no ioctl of devices, no TCP, no signals to others. Returns the version of the interface, 0 for not done.
    """
    return _restrict([folder], ~(EXECUTE | IOCTL_DEV))


def let_remove_in(folders: Sequence[int]) -> int:
    """Let this thread, and those that it starts, remove files beneath these directories, and open none anywhere.

    Neither is there TCP, nor are there signals to others. Returns the version of the interface, 0 for not done.
    """
    return _restrict(folders, REMOVE_FILE)


def _restrict(folders: Sequence[int], rights: int) -> int:
    """Leave these rights for files, those that the kernel knows, beneath these directories, and no others."""
    abi = version()
    if not abi:
        return 0
    handled = file_rights(abi)
    ruleset = _make(abi, handled)
    try:
        for folder in folders:
            rule = ctypes.create_string_buffer(_RULE.pack(handled & rights, folder), _RULE.size)
            checked(syscall(_ADD, ruleset, _BENEATH, ctypes.addressof(rule), 0), "allow a directory in Landlock")
        checked(syscall(_RESTRICT, ruleset, 0), "restrict this process by Landlock")
    finally:
        os.close(ruleset)
    return abi


def _make(abi: int, handled: int) -> int:
    """An fd of a new ruleset, about these rights for files, and whatever the version knows besides."""
    network = _TCP if abi >= _NET_FROM else 0
    scopes = _SCOPES if abi >= _SCOPES_FROM else 0
    size = 24 if abi >= _SCOPES_FROM else 16 if abi >= _NET_FROM else 8
    attributes = _RULESET.pack(handled, network, scopes)[:size]
    kept = ctypes.create_string_buffer(attributes, len(attributes))
    return checked(syscall(_CREATE, ctypes.addressof(kept), len(attributes), 0), "make a Landlock ruleset")
