"""`vhu info` of back-ends that nobody here wrote: QEMU's storage daemon and virtiofsd."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from vhostuser.testing import is_listened_on

from .fetch import storage_daemon_command, virtiofsd_command
from .lab import MIB, SECONDS, python

pytestmark = [pytest.mark.vm, pytest.mark.usefixtures("qemu")]


@contextmanager
def running(command: Sequence[str], path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A back-end that listens at `path`."""
    with tempfile.TemporaryFile("a+b") as said:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=said, stderr=said)
        try:
            deadline = time.monotonic() + SECONDS
            while not is_listened_on(path):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"it does not listen: {os.pread(said.fileno(), 1 << 16, 0).decode(errors='replace')}")
                time.sleep(0.005)
            yield process
        finally:
            process.kill()  # does nothing if it has ended
            process.wait(SECONDS)


def info(path: Path) -> dict[str, Any]:
    """What `vhu info --json` says."""
    words = [*python(), "-m", "vhostuser", "info", str(path), "--json"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr
    offer: dict[str, Any] = json.loads(done.stdout)
    return offer


@pytest.fixture
def place() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="vhu") as folder:
        yield Path(folder)


def test_the_storage_daemon(place: Path) -> None:
    disk, path = place / "disk", place / "s"
    with open(disk, "wb") as file:
        file.truncate(MIB)
    export = f"vhost-user-blk,id=e0,node-name=disk,addr.type=unix,addr.path={path},num-queues=2"
    command = [*storage_daemon_command(), "--blockdev", f"file,node-name=disk,filename={disk}", "--export", export]
    with running(command, path):
        for _ in range(2):
            offer = info(path)
            assert {"VERSION_1", "PROTOCOL_FEATURES"} <= set(offer["features"])
            assert {"CONFIG", "REPLY_ACK", "MQ"} <= set(offer["protocol_features"])
            assert (offer["queues"], offer["regions"], offer["diagnosis"]) == (2, {}, None)
            assert int.from_bytes(bytes.fromhex(offer["config"])[:8], "little") == MIB // 512


def test_virtiofsd(place: Path) -> None:
    path = place / "s"
    command = [*virtiofsd_command(), "--socket-path", str(path), "--shared-dir", str(place), "--sandbox", "none"]
    with running(command, path) as process:
        offer = info(path)
        assert {"REPLY_ACK", "MQ", "BACKEND_REQ"} <= set(offer["protocol_features"])
        assert offer["queues"] >= 2
        assert offer["regions"] == {}
        assert process.wait(SECONDS) == 0
