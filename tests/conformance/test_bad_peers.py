"""Peers that do worse than break a rule: each gets a verdict, in time, and nothing of it is left over."""

from __future__ import annotations

import os
import shlex
import signal
import socket
import struct
import sys
import tempfile
import threading
import time
from pathlib import Path
from unittest.mock import Mock

import pytest

from vhostuser.conformance import peer
from vhostuser.conformance.backend_bench import BackendBench, Offer
from vhostuser.conformance.check_backend import check_back_end, check_one, offer_of
from vhostuser.conformance.check_frontend import reach_of
from vhostuser.conformance.command import crash_in_words
from vhostuser.conformance.frontend_bench import Reach
from vhostuser.conformance.outcome import Outcome, Result
from vhostuser.conformance.peer import Listening, Started
from vhostuser.conformance.rule import Level, Needs, Rule
from vhostuser.conformance.scripted_backend import ScriptedBackend
from vhostuser.errors import VhostUserError
from vhostuser.protocol.numbers import FrontendRequest
from vhostuser.protocol.payloads import U64, VringState
from vhostuser.protocol.state import Role
from vhostuser.testing import DEADLINE, wait_until
from vhostuser.testing.files import message
from vhostuser.transport.listen import connect

from .devices import Everything
from .wrong import Behind

Q = FrontendRequest


@pytest.mark.parametrize(
    ("code", "says"),
    [(0, ""), (1, ""), (-11, "killed by SIGSEGV"), (139, "killed by SIGSEGV"), (101, "exit code 101, a panic"), (255, "")],
)
def test_a_crash_is_seen_through_a_shell_too(code: int, says: str) -> None:
    assert crash_in_words(code) == says


def asks_for_nonsense(bench: BackendBench) -> None:
    """What a reply is read as has not its size."""
    VringState.unpack(bench.replied(Q.GET_FEATURES).payload[:4])


def sends_for_ever(bench: BackendBench) -> None:
    """More is sent than anybody takes."""
    while True:
        bench.send(message(Q.SET_VRING_NUM, VringState(0, 8)))


def ruled(check: object) -> Rule[BackendBench]:
    return Rule("made_up", Role.BACKEND, "Header", Level.MUST, Needs(), "It is made up.", check)  # type: ignore[arg-type]


def test_a_reply_that_can_not_be_used_is_a_verdict_and_not_the_end() -> None:
    with Behind(Everything) as peer:
        outcome = check_one(ruled(asks_for_nonsense), peer, Offer(0, 0, 1), timeout=1.0)
    assert (outcome.result, outcome.expected) == (Result.BROKEN, "what can be used")


def test_a_back_end_that_reads_no_more_is_hung(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        served: list[socket.socket] = []

        def serve() -> None:
            sock = listener.accept()[0]
            sock.recv(12)
            sock.send(message(Q.GET_FEATURES, U64(0), flags=5))
            served.append(sock)

        thread = threading.Thread(target=serve)
        thread.start()
        outcome = check_one(ruled(sends_for_ever), Listening(path), Offer(0, 0, 1), timeout=0.5)
        thread.join(DEADLINE)
        for sock in served:
            sock.close()
    assert outcome.result is Result.HUNG


def test_a_front_end_that_floods_is_not_served_past_the_time() -> None:
    ours, theirs = socket.socketpair()
    stop = threading.Event()

    def flood() -> None:
        theirs.setblocking(False)
        while not stop.is_set():
            try:
                theirs.send(message(Q.SET_OWNER))
            except BlockingIOError:
                time.sleep(0.001)
            except OSError:
                return

    thread = threading.Thread(target=flood)
    thread.start()
    try:
        with ScriptedBackend(ours, [], deadline=DEADLINE) as bench:
            assert not bench.soon(lambda: False, within=0.2)
    finally:
        stop.set()
        thread.join(DEADLINE)
        theirs.close()


class Restless:
    """A front-end that is right, and asks for the status again and again."""

    def accept(self) -> socket.socket:
        ours, self._theirs = socket.socketpair()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._ask)
        self._thread.start()
        return ours

    def _ask(self) -> None:
        with self._theirs:
            while not self._stop.is_set():
                try:
                    self._theirs.sendall(message(Q.GET_FEATURES))
                    if not self._theirs.recv(64):
                        return
                except OSError:
                    return
                time.sleep(0.02)

    def retire(self) -> bool:
        return False

    def crashed(self) -> str:
        self._stop.set()
        self._thread.join(DEADLINE)
        return ""


def test_a_front_end_that_never_is_quiet_is_known_in_the_end() -> None:
    reach = reach_of(Restless(), timeout=0.5, quiet=0.2)
    assert isinstance(reach, Reach)
    assert reach.rings == 0


_SERVES = "import socket,sys;s=socket.socket(1);s.bind(sys.argv[1]);s.listen();c=s.accept()[0];c.recv(1);s.accept()"


def runs(pid: int) -> bool:
    """The process is there, and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] not in "ZX"
    except OSError:
        return False


def test_what_a_shell_has_started_ends_with_it() -> None:
    command = f"{shlex.join([sys.executable, '-c', _SERVES])} {{socket}}; true"
    with Started(["sh", "-c", command]) as peer, peer.connect() as sock:
        pid = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]
        assert runs(pid)
    wait_until(lambda: not runs(pid), "it has ended")


def test_one_that_runs_and_does_not_listen_is_waited_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peer, "APPEARS", 0.2)
    monkeypatch.setattr(peer, "connect", tries := Mock(side_effect=connect))
    with Started(["sleep", "100"]) as started, pytest.raises(VhostUserError, match=r"^sleep runs, but does not listen on /"):
        started.connect()
    assert (tries.call_count, started.starts) == (1, 1)


_ANSWERS = """
import os, socket, struct, sys, time
listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[1])
listener.listen()
while True:
    sock = listener.accept()[0]
    while len(asked := sock.recv(12)) == 12:
        number, _, size = struct.unpack("=III", asked)
        if size:
            sock.recv(size)
        if number == 1:
            sock.sendall(struct.pack("=IIIQ", 1, 5, 8, 0))
        elif number == 2 and sys.argv[2] == "dies":
            sock.close()
            time.sleep(0.4)
            os.abort()
"""
"""A back-end that has no feature, and dies some time after SET_FEATURES, if it is told to."""


def sets_features(bench: BackendBench) -> None:
    bench.request(Q.SET_FEATURES, bytes(8))


def asks_only(bench: BackendBench) -> None:
    bench.value(Q.GET_FEATURES)


def test_a_death_that_comes_late_is_told_of_the_rule_that_was_run() -> None:
    rules = [ruled(sets_features), ruled(asks_only)]
    with Started([sys.executable, "-I", "-S", "-c", _ANSWERS, "{socket}", "dies"]) as peer:
        outcomes = list(check_back_end(rules, peer, offer_of(peer)))
    assert [outcome.result for outcome in outcomes] == [Result.CRASHED, Result.KEPT]
    assert "SIGABRT" in outcomes[0].got


def test_one_that_goes_into_the_background_is_told() -> None:
    words = shlex.join([sys.executable, "-I", "-S", "-c", _ANSWERS])
    with tempfile.TemporaryDirectory() as folder:
        noted = Path(folder) / "pid"
        starts = f'setsid {words} "$0" stays & echo $! > {noted}; while ! [ -S "$0" ]; do sleep 0.01; done'
        try:
            with (
                Started(["sh", "-c", starts, "{socket}"]) as peer,
                pytest.raises(VhostUserError, match="into the background"),
            ):
                list(check_back_end([ruled(asks_only)] * 3, peer, offer_of(peer)))
        finally:
            os.kill(int(noted.read_text()), signal.SIGKILL)


class Interrupted(Started):
    """Somebody presses Ctrl-C while it is awaited at the end whether it has died."""

    looks = 0

    def crashed(self) -> str:
        self.looks += 1
        if self.looks == 2:
            raise KeyboardInterrupt
        return super().crashed()


def test_an_interrupt_at_the_end_loses_no_outcome() -> None:
    outcomes: list[Outcome] = []
    with Interrupted([sys.executable, "-I", "-S", "-c", _ANSWERS, "{socket}", "stays"]) as peer:
        each = check_back_end([ruled(asks_only)], peer, offer_of(peer))
        with pytest.raises(KeyboardInterrupt):
            outcomes.extend(each)
    assert [outcome.result for outcome in outcomes] == [Result.KEPT]
