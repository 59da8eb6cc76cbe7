"""`vhu-fs`, and virtiofsd beside it, behind QEMU for a Linux guest."""

from __future__ import annotations

import hashlib
import json
import random
import sys
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import MappingProxyType
from typing import Final

import pytest

from vhostuser import accelerated
from vhostuser.vm.guest import Guest
from vhostuser.vm.machine import Attachment, Kind

from .lab import SECONDS
from .programs import compiled
from .test_vhu_shm import Shm, running_back_end

ONCE: Final = pytest.mark.skipif(
    not accelerated or bool(sys.flags.optimize), reason="takes long in a guest, and is in the compiled pass"
)
CACHED: Final = "grep ^Cached: /proc/meminfo | tr -dc 0-9"
"""KiB of the guest's page cache."""


class Share:
    """A directory that a daemon of ours serves, and how QEMU gets at it. The guest mounts `tag`."""

    def __init__(self, opened: ExitStack, tag: str, folder: Path, *options: str, window: bool = True) -> None:
        self.tag, self.folder, self._window = tag, folder, window
        folder.mkdir(exist_ok=True)
        self.socket = folder.with_name(f"{tag}.sock")
        words = ["-m", "vhostuser.cli.fs", "--socket-path", str(self.socket), "--shared-dir", str(folder), "--stats"]
        if window:
            words += ["--tag", tag]
        self.daemon: Shm = opened.enter_context(running_back_end(self.socket, [*words, *options]))

    def words(self) -> list[str]:
        """QEMU's words for it: its generic device has a window, the one for file systems has none."""
        if self._window:
            device = Attachment(Kind.SHARE, "", dax=True).device
        else:
            device = f"vhost-user-fs-pci,tag={self.tag},queue-size=128"
        return ["-chardev", f"socket,id={self.tag},path={self.socket}", "-device", f"{device},chardev={self.tag}"]

    def ended(self) -> dict[str, int]:
        """The daemon has ended well, as it does after its guest; how many requests of each name it had."""
        if (status := self.daemon.process.wait(SECONDS)) or "Traceback" in self.daemon.log:
            raise AssertionError(f"vhu-fs ended with {status} and said: {self.daemon.log}")
        return self._stats()[0]

    @property
    def counters(self) -> dict[str, int]:
        """What its back-end counted."""
        return self._stats()[1]

    def _stats(self) -> tuple[dict[str, int], dict[str, int]]:
        requests: dict[str, int] = {}
        words = [line.partition("] ")[2] for line in self.daemon.log.splitlines()]
        rows = [json.loads(text) for text in words if text.startswith("{")]
        for row in rows[:-1]:
            requests.update(row["requests"])
        return requests, rows[-1]


def guest_of(
    opened: ExitStack,
    *shares: Share,
    programs: Iterable[str] = (),
    folder: Path | None = None,
    files: Mapping[str, Path] = MappingProxyType({}),
    memory: int = 512,
    more: Iterable[str] = (),
) -> Guest:
    """A guest with these shares; `programs` of ours are compiled into `folder`."""
    found = {name: compiled(name, folder or shares[0].folder.parent) for name in programs}
    words = [*(word for share in shares for word in share.words()), *more]
    return opened.enter_context(Guest(words, programs={**found, **files}, memory=memory))


def mount(guest: Guest, tag: str, options: str = "") -> None:
    """Mount a share at a folder of its tag's name."""
    guest.run(f"mkdir -p /{tag} && mount -t virtiofs {f'-o {options} ' if options else ''}{tag} /{tag}")


def quit_well(guest: Guest) -> None:
    """QEMU ends in good order."""
    guest.qmp.execute("quit")
    if status := guest.process.wait(guest.seconds):
        raise AssertionError(f"QEMU ended with {status} and said: {guest.stderr}")


def make(path: Path, size: int) -> str:
    """A file of random bytes; its digest."""
    content = random.Random(f"{path.name} {size}").randbytes(size)
    path.write_bytes(content)
    return digest(content)


def digest(content: bytes) -> str:
    """As md5sum prints it."""
    return hashlib.md5(content, usedforsecurity=False).hexdigest()
