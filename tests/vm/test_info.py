"""`vhu info` of back-ends that nobody here wrote: QEMU's storage daemon and virtiofsd."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.interop.peers import storage_daemon, virtiofsd

from .lab import MIB, SECONDS, python

pytestmark = [pytest.mark.vm, pytest.mark.usefixtures("qemu")]


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
    with storage_daemon(disk, path, queues=2):
        for _ in range(2):
            offer = info(path)
            assert {"VERSION_1", "PROTOCOL_FEATURES"} <= set(offer["features"])
            assert {"CONFIG", "REPLY_ACK", "MQ"} <= set(offer["protocol_features"])
            assert (offer["queues"], offer["regions"], offer["diagnosis"]) == (2, {}, None)
            assert int.from_bytes(bytes.fromhex(offer["config"])[:8], "little") == MIB // 512


def test_virtiofsd(place: Path) -> None:
    path = place / "s"
    with virtiofsd(place, path) as process:
        offer = info(path)
        assert {"REPLY_ACK", "MQ", "BACKEND_REQ"} <= set(offer["protocol_features"])
        assert offer["queues"] >= 2
        assert offer["regions"] == {}
        assert process.wait(SECONDS) == 0
