"""Front-ends under fire: one that aborts at what a back-end does wrong is found, ours bears it."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from vhostuser.conformance.frontend_peer import Awaited, Launched
from vhostuser.fuzzing import shrink
from vhostuser.fuzzing.as_back_end import back_end_conversations
from vhostuser.fuzzing.campaign import Campaign
from vhostuser.fuzzing.front_target import FrontendTarget
from vhostuser.fuzzing.target import Kind
from vhostuser.testing import DEADLINE
from vhostuser.trace.capture import open_capture

FRONT = Path(__file__).with_name("front.py")


def test_a_front_end_that_aborts_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shrink, "TRIES", 3)  # each of them starts a process
    with Launched(shlex.join([sys.executable, str(FRONT), "careless"]) + " {socket}") as peer:
        target = FrontendTarget(peer, timeout=DEADLINE)
        played = Campaign(target, back_end_conversations(1, target.asked), seconds=600, most=60)
        finding = next(played.run())
    assert (finding.kind, finding.text) == (Kind.CRASH, "killed by SIGABRT")
    finding.save(tmp_path)
    assert any(open_capture(finding.capture))


def test_our_front_end_survives(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    with Awaited(path) as peer:
        command = [sys.executable, str(FRONT), "right", path]
        process = subprocess.Popen(command, env=os.environ, stderr=subprocess.DEVNULL)
        try:
            target = FrontendTarget(peer, timeout=DEADLINE)
            played = Campaign(target, back_end_conversations(2, target.asked), seconds=600, most=30)
            assert list(played.run()) == []
            target.next.close()
        finally:
            process.kill()
            process.wait(DEADLINE)
    assert played.conversations == 30
