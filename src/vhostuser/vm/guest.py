"""QEMU with a Linux guest, under TCG, in whose shell a test types."""

from __future__ import annotations

import os
import re
import select
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Final, Self

from . import tree
from .initramfs import initramfs
from .qmp import Qmp

READY: Final = b"the guest is ready"
_KILLED: Final = 10.0
"""Seconds until a process that was killed has gone."""
_DONE: Final = re.compile(rb"\n?@done (\d+)@\r?\n")


class GuestFailed(Exception):
    """A command in the guest failed, or the guest said nothing in time."""


class Guest:
    """A context manager around a guest that has booted. `devices` are words for QEMU, `seconds` bounds every wait.

    `modules` of the kernel are loaded, with all they need; `programs`, static ones, are in /bin.
    """

    def __init__(
        self,
        devices: Sequence[str],
        *,
        modules: Iterable[str] = (),
        programs: Mapping[str, Path] = MappingProxyType({}),
        memory: int = 256,
        cpus: int = 1,
        seconds: float = 120,
    ) -> None:
        self._devices, self._modules, self._memory, self._cpus = devices, modules, memory, cpus
        self._programs, self.seconds = programs, seconds
        self._heard = b""

    def __enter__(self) -> Self:
        with ExitStack() as opened:
            self._said = opened.enter_context(tempfile.TemporaryFile("a+b"))
            folder = Path(opened.enter_context(tempfile.TemporaryDirectory(prefix="vhu-guest-")))
            programs = {f"bin/{name}": path for name, path in self._programs.items()}
            (folder / "initramfs").write_bytes(initramfs(self._modules, files=programs))
            self._console, serial = _pair(opened)
            monitor, monitor_of_qemu = _pair(opened)
            self.qmp = Qmp(monitor, self.seconds)
            words = self._words(folder / "initramfs", serial.fileno(), monitor_of_qemu.fileno())
            self.process = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=self._said,
                stderr=self._said,
                pass_fds=(serial.fileno(), monitor_of_qemu.fileno()),
            )
            opened.callback(self._end)
            serial.close()
            monitor_of_qemu.close()
            self.qmp.greet()
            self.wait_ready()
            self._opened = opened.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with self._opened:
            if error is not None:
                error.add_note(f"QEMU has said: {self.stderr or 'nothing'}; the guest's last words: {self._heard[-2000:]!r}")

    def _words(self, image: Path, serial: int, monitor: int) -> list[str]:
        memory = f"memory-backend-memfd,id=ram,size={self._memory}M,share=on"
        return [
            *tree.qemu_command(),
            *("-machine", "q35,accel=tcg,memory-backend=ram", "-cpu", "max", "-smp", str(self._cpus)),
            *("-m", f"{self._memory}M", "-object", memory, "-nodefaults", "-no-user-config", "-display", "none"),
            *("-chardev", f"socket,id=serial,fd={serial}", "-serial", "chardev:serial"),
            *("-chardev", f"socket,id=qmp,fd={monitor}", "-qmp", "chardev:qmp"),
            *("-kernel", str(tree.kernel()), "-initrd", str(image)),
            *("-append", "console=ttyS0 quiet loglevel=1 panic=-1"),
            *self._devices,
        ]

    def _end(self) -> None:
        self.process.kill()
        self.process.wait(max(self.seconds, _KILLED))

    @property
    def stderr(self) -> str:
        """All that QEMU has said so far."""
        return os.pread(self._said.fileno(), 1 << 20, 0).decode(errors="replace")

    def wait_ready(self) -> None:
        """Wait until the guest's shell takes commands: after the start, or a reset."""
        self._until(re.compile(READY + rb"\r?\n"), "the guest's shell")

    def run(self, command: str) -> str:
        """Run a shell command in the guest; what it printed. GuestFailed if it did not succeed."""
        self._console.sendall(f'{command}\necho "@done $?@"\n'.encode())
        printed, status = self._until(_DONE, command)
        text = printed.decode(errors="replace").replace("\r\n", "\n").strip()
        if status != b"0":
            raise GuestFailed(f"`{command}` ended with {status.decode()} and printed: {text}")
        return text

    def start(self, command: str) -> None:
        """Run a shell command in the guest's background."""
        self.run(f"({command}) </dev/null >/tmp/background 2>&1 &")

    def stop_and_cont(self) -> None:
        """Pause the machine, and let it go on."""
        self.qmp.execute("stop")
        self.qmp.execute("cont")

    def system_reset(self) -> None:
        """Reset the machine and wait until it has booted again."""
        self._heard = b""
        self.qmp.execute("system_reset")
        self.wait_ready()

    def reboot(self) -> None:
        """Let the guest reboot itself at once, with nothing written back, and wait until it has booted again."""
        self._heard = b""
        self._console.sendall(b"reboot -f\n")
        self.wait_ready()

    def _until(self, pattern: re.Pattern[bytes], what: str) -> tuple[bytes, bytes]:
        """What comes before the pattern, and its group, if it has one."""
        deadline = time.monotonic() + self.seconds
        while not (found := pattern.search(self._heard)):
            if not select.select([self._console], [], [], max(0.0, deadline - time.monotonic()))[0]:
                heard = self._heard[-2000:].decode(errors="replace")
                raise GuestFailed(f"not within {self.seconds:g} s: {what}; the guest said last: {heard}")
            data = self._console.recv(1 << 16)
            if not data:
                raise GuestFailed(f"QEMU ended with {self.process.wait(self.seconds)} before the end of: {what}")
            self._heard += data
        before, self._heard = self._heard[: found.start()], self._heard[found.end() :]
        return before, found[1] if found.re.groups else b""


def _pair(opened: ExitStack) -> tuple[socket.socket, socket.socket]:
    ours, theirs = socket.socketpair()
    return opened.enter_context(ours), opened.enter_context(theirs)
