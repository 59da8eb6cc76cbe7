"""Act two of `vhu demo`: a Linux guest reads a file of the host through DAX, and stores into another one."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Final

from ..limited_log import printable
from ..transport.listen import listen
from ..vm.guest import Guest, GuestFailed
from ..vm.machine import MIB, Attachment, Kind
from ..vm.qmp import QmpError
from ..vm.tree import FetchError, is_fetched, versions
from .children import GRACE, Child, child
from .demo_stage import Stage
from .info import in_units
from .outcome import CommandError, undone

MADE: Final = "film.raw"
MADE_SIZE: Final = 64 * MIB
NOTES: Final = "notes.raw"
NOTES_SIZE: Final = 2 * MIB
STORED_AT: Final = 4096
STORED: Final = b"by mmap!"
"""What the guest stores in one go, hence its 8 bytes."""
GROWTH: Final = 1024
"""KiB that the guest's page cache may grow by: programs of its own may want some."""
PATIENCE: Final = 90.0
"""Seconds for all of it, besides those for the file: a busy machine without KVM takes 60."""
SLOWEST: Final = 2 * MIB
"""Bytes a second that a guest reads and hashes at least."""
_CACHED: Final = re.compile(r"^Cached:\s+(\d+) kB", re.MULTILINE)
_LINE: Final = re.compile(r'] (\{"requests": .*\})$', re.MULTILINE)
Shell = Callable[[str], str]
"""What a command prints in the guest. GuestFailed if it fails."""
_REST: Final = """\
there is no QEMU here for the second act, a file inside a Linux guest; this enables it: make vm (or: vhu vm fetch)"""


def chosen_file(name: str | None) -> Path | None:
    """The user's file, if one is given. CommandError if it can't be shown."""
    if name is None:
        return None
    path = Path(name).resolve()
    why, advice = "", "try: another FILE"
    if not path.name.isprintable():
        why = "its name can't be typed"
    elif not stat.S_ISREG(os.stat(path).st_mode) or not os.stat(path).st_size:
        why = "it is no regular file with something in it"
    elif not is_fetched():
        why, advice = "it takes a VM to show it", "try: vhu vm fetch"
    if why:
        raise CommandError(f"--file {printable(name[:256])}: {why}", advice)
    return path


def act_two(stage: Stage, file: Path | None) -> None:
    """Show it, if there is a VM; else say what it takes. Without `file` one is made."""
    if not is_fetched():
        stage.say(_REST)
        return
    try:
        _show(stage, file or _made(stage.directory))
    except (GuestFailed, FetchError, QmpError, ConnectionError, TimeoutError, subprocess.SubprocessError) as failure:
        raise CommandError(f"the second act failed: {failure}", "try: vhu doctor") from None


def _made(directory: Path) -> Path:
    path = directory / "film" / MADE
    path.parent.mkdir()
    with path.open("wb") as file:
        for _ in range(MADE_SIZE // MIB):
            file.write(os.urandom(MIB))
    return path


def _show(stage: Stage, file: Path) -> None:
    notes = stage.directory / "notes" / NOTES
    notes.parent.mkdir()
    notes.write_bytes(bytes(NOTES_SIZE))
    deadline = time.monotonic() + PATIENCE + file.stat().st_size / SLOWEST
    with ExitStack() as opened:
        stage.title("A Linux guest boots, with the directories of two files shared by two vhu-fs")
        read = opened.enter_context(Daemon(stage.directory, file.parent, "read", "--readonly"))
        write = opened.enter_context(Daemon(stage.directory, notes.parent, "write", "--dax-write"))
        with _booted([*read.words(), *write.words()], deadline) as shell:
            _mounted(stage, shell)
            _hashed(stage, shell, file)
            _stored(stage, shell, notes)
            shell("umount /read && umount /write")
        stage.title("The guest ends, and both vhu-fs say what it asked them for")
        _counted(stage, read, file, "READ")
        _counted(stage, write, notes, "WRITE")


class Daemon:
    """A context manager around a `vhu-fs` for a directory; the guest mounts `name`."""

    def __init__(self, folder: Path, shared: Path, name: str, *options: str) -> None:
        self.name = name
        self._socket = str(folder / f"{name}.sock")
        # A container may refuse namespaces; Landlock keeps it to the directory in any case
        self._options = ("--shared-dir", str(shared), "--tag", name, "--sandbox", "none", "--rlimit-nofile", "0", *options)

    def __enter__(self) -> Daemon:
        with ExitStack() as opened:
            self._said: IO[bytes] = opened.enter_context(tempfile.TemporaryFile("a+b"))
            listener = opened.enter_context(listen(self._socket))
            fd = str(listener.fileno())
            words = [sys.executable, "-m", f"{__package__}.fs", "--fd", fd, "--stats", "--log-level", "info", *self._options]
            self._process: Child = opened.enter_context(child(words, fds=[listener.fileno()], said=self._said))
            listener.close()
            self._opened = opened.pop_all()
        return self

    def __exit__(self, *unused: object) -> None:
        self._opened.close()

    def words(self) -> list[str]:
        """QEMU's words for it."""
        device = Attachment(Kind.SHARE, self._socket).device
        return ["-chardev", f"socket,id={self.name},path={self._socket}", "-device", f"{device},chardev={self.name}"]

    def requests(self) -> Mapping[str, int]:
        """What it was asked for, by the names of requests, once it has ended by itself. CommandError if it failed."""
        code = self._process.wait(GRACE)
        said = os.pread(self._said.fileno(), 1 << 20, 0).decode(errors="replace")
        found = _LINE.findall(said)
        if code or not found:
            raise CommandError(f"vhu-fs ended with {code} and said: {printable(said[-1000:])}", "try: vhu doctor")
        requests: dict[str, int] = {}
        for line in found:
            requests |= json.loads(line)["requests"]
        return requests


class _Shell:
    """The guest's shell, until the deadline."""

    def __init__(self, guest: Guest, deadline: float) -> None:
        self._guest, self._deadline = guest, deadline

    def __call__(self, command: str) -> str:
        """What a command prints. GuestFailed if it fails."""
        self._guest.seconds = max(0.0, self._deadline - time.monotonic())
        try:
            return self._guest.run(command)
        finally:
            self._guest.seconds = GRACE


@contextmanager
def _booted(words: list[str], deadline: float) -> Iterator[Shell]:
    """A guest with these devices; whatever ends this process ends it."""
    ending = ["-run-with", "exit-with-parent=on"]
    with Guest([*words, *ending], seconds=deadline - time.monotonic()) as guest, undone(guest.process.kill):
        yield _Shell(guest, deadline)


def _mounted(stage: Stage, shell: Shell) -> None:
    release = shell("uname -r")
    stage.say(f"   Linux {release} in QEMU {versions()['qemu-system-x86']}, under TCG")
    shell("mkdir /read /write")
    for name in ("read", "write"):
        shell(f"mount -t virtiofs -o dax=inode {name} /{name}")
    mounts = shell("grep virtiofs /proc/mounts").splitlines()
    stage.check(len(mounts) == 2, f"it has mounted both: {mounts[0]}")


def _hashed(stage: Stage, shell: Shell, file: Path) -> None:
    size = file.stat().st_size
    stage.title(f"It reads {printable(file.name)}, {in_units(size)}, through the window")
    before = _cached(shell)
    began = time.monotonic()
    digest = shell(f"sha256sum < {shlex.quote(f'/read/{file.name}')}").split()[0]
    seconds = time.monotonic() - began
    grown = _cached(shell) - before
    with file.open("rb") as ours:
        same = digest == hashlib.file_digest(ours, "sha256").hexdigest()
    stage.check(same, f"its SHA-256 there is the host's: {digest[:16]}... ({seconds:.1f} s)")
    stage.check(grown < GROWTH, f"the guest's page cache grew by {grown} KiB")


def _cached(shell: Shell) -> int:
    """KiB of the guest's page cache."""
    found = _CACHED.search(shell("cat /proc/meminfo"))
    if found is None:
        raise GuestFailed("/proc/meminfo does not say how much is cached")
    return int(found[1])


def _stored(stage: Stage, shell: Shell, notes: Path) -> None:
    """The guest's devmem maps what it takes for /dev/mem, shared, and stores one number there: into our file."""
    stage.title(f"It maps {NOTES} and stores {len(STORED)} bytes: one instruction, no write()")
    number = int.from_bytes(STORED, "little")
    shell(f"ln -sf /write/{NOTES} /dev/mem && devmem {STORED_AT} {8 * len(STORED)} {number:#x}")
    with notes.open("rb") as file:
        content = file.read()
    wanted = bytearray(NOTES_SIZE)
    wanted[STORED_AT : STORED_AT + len(STORED)] = STORED
    seen = content[STORED_AT : STORED_AT + len(STORED)]
    stage.check(content == wanted, f"the host's {NOTES} has them at {STORED_AT}: {seen!r}, and nothing else")


def _counted(stage: Stage, daemon: Daemon, file: Path, other: str) -> None:
    """The bytes went through the window, and not by requests."""
    requests = daemon.requests()
    maps, others = requests.get("SETUPMAPPING", 0), requests.get(other, 0)
    name = printable(file.name)
    stage.check(maps > 0 and not others, f"{name}: FUSE_{other} {others}, FUSE_SETUPMAPPING {maps}")
