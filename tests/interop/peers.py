"""Foreign back-ends as processes, once they listen."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from vhostuser.testing import DEADLINE, is_listened_on
from vhostuser.vm.tree import storage_daemon_command, virtiofsd_command, vsock_command

STEP: Final = 0.005
Process = subprocess.Popen[bytes]


@contextmanager
def listening(command: Sequence[str], path: Path) -> Iterator[Process]:
    """A back-end that listens at `path`; killed in the end."""
    with tempfile.TemporaryFile("a+b") as said:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=said, stderr=said)
        try:
            deadline = time.monotonic() + DEADLINE
            while not is_listened_on(path):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"it does not listen: {os.pread(said.fileno(), 1 << 16, 0).decode(errors='replace')}")
                time.sleep(STEP)
            yield process
        finally:
            process.kill()  # does nothing if it has ended
            process.wait(DEADLINE)


@contextmanager
def storage_daemon(disk: Path, path: Path, *, queues: int = 1, writable: bool = True) -> Iterator[Process]:
    """qemu-storage-daemon with the file `disk` as its block device."""
    node = f"file,node-name=disk,filename={disk},discard=unmap"
    export = f"vhost-user-blk,id=e0,node-name=disk,addr.type=unix,addr.path={path},num-queues={queues}"
    switch = f"writable={'on' if writable else 'off'}"
    command = [*storage_daemon_command(), "--blockdev", node, "--export", f"{export},{switch}"]
    with listening(command, path) as process:
        yield process


@contextmanager
def virtiofsd(shared: Path, path: Path) -> Iterator[Process]:
    """The daemon of that name with the directory `shared`; it serves one front-end, and ends."""
    command = [*virtiofsd_command(), "--socket-path", str(path), "--shared-dir", str(shared)]
    with listening([*command, "--sandbox", "none", "--seccomp", "none"], path) as process:
        yield process


@contextmanager
def vhost_device_vsock(path: Path, host: Path, *, cid: int = 3) -> Iterator[Process]:
    """The daemon of that name for the guest `cid`; its host's programs listen at `host`, an underscore and the port."""
    command = [*vsock_command(), "--guest-cid", str(cid), "--socket", str(path), "--uds-path", str(host)]
    with listening(command, path) as process:
        yield process
