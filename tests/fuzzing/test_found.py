"""Back-ends that are wrong on purpose: what is wrong with each is found, made short, kept, and shown again by a replay."""

from __future__ import annotations

import contextlib
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from vhostuser.conformance.peer import Listening, Started
from vhostuser.errors import VhostUserError
from vhostuser.fuzzing.as_front_end import front_end_conversations
from vhostuser.fuzzing.campaign import Campaign
from vhostuser.fuzzing.finding import Finding
from vhostuser.fuzzing.target import BackendTarget, Gone, Kind
from vhostuser.protocol.state import Role
from vhostuser.testing import DEADLINE
from vhostuser.trace.capture import open_capture
from vhostuser.trace.replay import Replay

WRONG = Path(__file__).with_name("wrong.py")
HANGS = 1.0
"""Seconds after which a back-end that hangs is called so."""
FEW = 3


def command(fault: str) -> str:
    return f"{shlex.join([sys.executable, '-S', '-E', str(WRONG), fault])} {{socket}}"


@contextlib.contextmanager
def campaign(fault: str, *, seed: int, most: int, timeout: float = DEADLINE) -> Iterator[Campaign]:
    with Started(command(fault)) as peer:
        target = BackendTarget(peer, timeout=timeout)
        try:
            yield Campaign(target, front_end_conversations(seed, target.offer), seconds=600, most=most)
        finally:
            target.next.close()


def found(fault: str, *, seed: int, most: int, timeout: float = DEADLINE) -> list[Finding]:
    with campaign(fault, seed=seed, most=most, timeout=timeout) as played:
        return list(played.run())


def replayed(fault: str, finding: Finding, folder: Path) -> tuple[str, list[str]]:
    """What such a back-end dies of when the capture is played to it, and the differences there were."""
    finding.save(folder)
    differences: list[str] = []
    with Started(command(fault), path=str(folder / "s")) as peer:
        sock = peer.connect()
        with contextlib.suppress(VhostUserError), Replay(open_capture(finding.capture), Role.FRONTEND, sock) as play:
            differences = [str(each) for each in play.differences()]
        peer.linger()
        return peer.crashed(), differences


@pytest.mark.parametrize(
    ("fault", "seed", "last", "text"),
    [
        ("crash", 62, "SET_VRING_NUM", "killed by SIGSEGV"),
        ("panic", 91, "SET_VRING_BASE", "exit code 101, a panic"),
    ],
)
def test_a_crash_is_found_made_short_and_shown_again(fault: str, seed: int, last: str, text: str, tmp_path: Path) -> None:
    (finding,) = found(fault, seed=seed, most=10)
    assert (finding.kind, finding.last, finding.text) == (Kind.CRASH, last, text)
    assert len(finding.talk.acts) <= FEW
    assert finding.again
    assert replayed(fault, finding, tmp_path)[0] == text


def test_a_hang_is_found_and_made_short(tmp_path: Path) -> None:
    (finding,) = found("spin", seed=92, most=1, timeout=HANGS)
    assert (finding.kind, finding.last) == (Kind.HANG, "SET_VRING_ENABLE")
    assert finding.text.endswith("and computes meanwhile")
    assert len(finding.talk.acts) <= FEW
    finding.save(tmp_path)
    assert any(open_capture(finding.capture))


def test_a_leak_of_an_fd_a_connection_is_found() -> None:
    (finding,) = found("leak", seed=1, most=110)
    assert (finding.kind, finding.last) == (Kind.LEAK, "GET_FEATURES")
    assert finding.text.startswith("12 more fds")
    assert len(finding.talk.acts) == 1


def test_a_reply_of_a_wrong_size_is_found_and_shown_again(tmp_path: Path) -> None:
    (finding,) = found("size", seed=1, most=20)
    assert (finding.kind, finding.last) == (Kind.WRONG, "GET_VRING_BASE")
    assert "12 must be 8" in finding.text
    assert len(finding.talk.acts) == 1
    assert replayed("size", finding, tmp_path)[1] == []  # the same wrong reply as was recorded
    assert replayed("right", finding, tmp_path)[1] != []


def test_what_was_found_already_is_counted() -> None:
    with campaign("size", seed=1, most=40) as played:
        (finding,) = played.run()
    assert finding.count > 1
    assert played.findings == [finding]


def test_nothing_is_found_where_nothing_is() -> None:
    with campaign("right", seed=1, most=80) as played:
        assert list(played.run()) == []
    assert played.conversations == 80
    assert len({mutation for _, mutation in played.covered}) > 15


def test_a_back_end_that_nobody_starts_again_is_found_gone(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    with Started(command("crash"), path=path) as peer:
        peer.connect().close()
        target = BackendTarget(Listening(path, patience=0.2), timeout=DEADLINE)
        played = Campaign(target, front_end_conversations(62, target.offer), seconds=600)
        with pytest.raises(Gone, match="does not come back"):
            list(played.run())
        target.next.close()
    (finding,) = played.findings
    assert (finding.kind, finding.again) == (Kind.CRASH, False)
    assert replayed("crash", finding, tmp_path)[0] == "killed by SIGSEGV"
