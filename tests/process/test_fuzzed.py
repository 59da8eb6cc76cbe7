"""Our back-ends bear a hostile front-end: a few conversations each, with either half."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import pytest

from vhostuser.conformance.peer import Started
from vhostuser.fuzzing.as_front_end import front_end_conversations
from vhostuser.fuzzing.campaign import Campaign
from vhostuser.fuzzing.target import BackendTarget
from vhostuser.testing import DEADLINE

SEED = 20
CONVERSATIONS = 40


def options(daemon: str, folder: Path) -> list[str]:
    """What a daemon needs beside its socket."""
    match daemon:
        case "blk":
            image = folder / "disk"
            image.write_bytes(bytes(1 << 20))
            return ["--blk-file", str(image)]
        case "fs":
            return ["--shared-dir", str(folder), "--sandbox", "none"]
        case "shm":
            return ["--region", "0:1M"]
    return []


@pytest.mark.parametrize("daemon", ["blk", "fs", "rng", "shm"])
def test_nothing_is_found(daemon: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", f"vhostuser.cli.{daemon}", "--reconnect", *options(daemon, tmp_path)]
    with Started(f"{shlex.join(command)} --socket-path {{socket}}") as peer:
        target = BackendTarget(peer, timeout=DEADLINE)
        played = Campaign(target, front_end_conversations(SEED, target.offer), seconds=600, most=CONVERSATIONS)
        try:
            assert list(played.run()) == []
        finally:
            target.next.close()
    assert played.conversations == CONVERSATIONS
    assert target.restarts == 0
