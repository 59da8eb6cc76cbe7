"""Front-ends that are waited for or started, and how it is known that one has died."""

from __future__ import annotations

import socket
import struct
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.programs import VHU, until, words
from vhostuser.conformance.check_frontend import check_front_end, front_end_rules, reach_of
from vhostuser.conformance.front_profiles import FRONT_END_PROFILES
from vhostuser.conformance.frontend_bench import FrontendBench, Reach
from vhostuser.conformance.frontend_peer import Awaited, Launched
from vhostuser.conformance.outcome import Result
from vhostuser.conformance.rule import Rule
from vhostuser.conformance.scripted_backend import FEATURES, PROTOCOL
from vhostuser.errors import VhostUserError
from vhostuser.testing import DEADLINE
from vhostuser.transport.listen import connect

from .fronts import steady

REACH = Reach(FEATURES, PROTOCOL, rings=1, asks=True)
CONNECTS = "import socket,os,sys,signal,time;s=socket.socket(socket.AF_UNIX);s.connect(sys.argv[1]);"
DIES = [sys.executable, "-I", "-S", "-c", CONNECTS + "s.recv(1);os.kill(os.getpid(),signal.SIGSEGV)", "{socket}"]
LIVES_ON = [sys.executable, "-I", "-S", "-c", CONNECTS + "s.recv(1);s.close();time.sleep(60)", "{socket}"]
DIES_OF_SIGTERM = [
    *(sys.executable, "-I", "-S", "-c"),
    "import signal,os;signal.signal(signal.SIGTERM,lambda *_:os.abort());" + CONNECTS + "s.recv(1);s.close();time.sleep(60)",
    "{socket}",
]


def rule_named(name: str) -> Rule[FrontendBench]:
    return next(rule for rule in front_end_rules() if rule.name == name)


GONE_AT_ONCE = rule_named("a_back_end_that_is_gone_at_once_is_survived")


@pytest.mark.parametrize(("command", "signal"), [(DIES, "SIGSEGV"), (DIES_OF_SIGTERM, "SIGABRT")])
def test_a_death_by_a_signal_is_the_rules_result(command: list[str], signal: str) -> None:
    with Launched(command) as peer:
        (outcome,) = check_front_end([GONE_AT_ONCE], peer, REACH)
    assert outcome.result is Result.CRASHED
    assert signal in outcome.got


def test_one_that_lives_on_is_told_to_end_and_started_anew() -> None:
    with Launched(LIVES_ON) as peer:
        outcomes = list(check_front_end([GONE_AT_ONCE] * 2, peer, REACH))
    assert [outcome.result for outcome in outcomes] == [Result.KEPT] * 2


def test_each_connection_is_one_of_the_process_that_runs(tmp_path: Path) -> None:
    again = (
        "r=socket.socket(socket.AF_UNIX);r.connect(sys.argv[1]);" + "print(os.getpid(),file=open(sys.argv[2],'w'));s.recv(1)"
    )
    noted = tmp_path / "pid"
    with Launched([sys.executable, "-I", "-S", "-c", CONNECTS + again, "{socket}", str(noted)]) as peer:
        for _ in range(2):
            noted.unlink(missing_ok=True)
            with peer.accept() as sock:
                until(noted.exists, "it has connected a second time")
                pid, _, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
                until(noted.read_text, "and says its number")
                assert pid == int(noted.read_text())


def test_one_that_ends_without_having_connected_is_named() -> None:
    with Launched("false {socket}") as peer, pytest.raises(VhostUserError, match=r"false ended \(exit status 1\) without"):
        peer.accept()


def test_one_that_is_no_program_is_named() -> None:
    with Launched("/nonexistent") as peer, pytest.raises(VhostUserError, match="cannot start /nonexistent"):
        peer.accept()


def test_one_that_never_connects_is_waited_for_so_long_only() -> None:
    with Launched("sleep 60", patience=0.1) as peer, pytest.raises(VhostUserError, match="has not connected"):
        peer.accept()


def test_the_path_and_the_environment_say_where_to_connect(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    script = "import socket,os;s=socket.socket(socket.AF_UNIX);s.connect(os.environ['socket'])"
    with Launched([sys.executable, "-I", "-S", "-c", script], path=path) as peer:
        peer.accept().close()
        assert not peer.crashed()
    assert not Path(path).exists()


def test_vhu_attach_is_a_front_end_that_can_be_started() -> None:
    rule = rule_named("a_whole_mapping_can_be_taken_away")
    with Launched(words(VHU, "attach", "{socket}")) as peer:
        (outcome,) = check_front_end([rule], peer, REACH)
    assert (outcome.result, outcome.got) == (Result.KEPT, "")


@pytest.fixture
def restarting(tmp_path: Path) -> Iterator[str]:
    """A path that a front-end connects to again and again, until nobody listens."""
    path, over = str(tmp_path / "s"), threading.Event()

    def run() -> None:
        while not over.is_set():
            try:
                sock = connect(path, wait=DEADLINE, check=lambda: _check(over))
            except VhostUserError:
                return
            steady(sock)

    thread = threading.Thread(target=run, name="front-end")
    thread.start()
    yield path
    over.set()
    thread.join(DEADLINE)
    assert not thread.is_alive()


def _check(over: threading.Event) -> None:
    if over.is_set():
        raise VhostUserError("over")


def test_a_front_end_that_comes_again_is_waited_for(restarting: str) -> None:
    rules = [rule_named("a_whole_mapping_can_be_taken_away"), rule_named("unmapping_twice_is_refused")]
    with Awaited(restarting) as peer:
        assert reach_of(peer, quiet=0.2) == REACH
        outcomes = list(check_front_end(rules, peer, REACH))
    assert [outcome.result for outcome in outcomes] == [Result.KEPT] * 2


def test_one_that_does_not_come_is_waited_for_so_long_only(tmp_path: Path) -> None:
    with Awaited(str(tmp_path / "s"), patience=0.05) as peer, pytest.raises(VhostUserError, match="nobody connected"):
        peer.accept()


def test_a_front_end_that_dies_of_a_right_back_end_can_not_be_checked() -> None:
    script = CONNECTS + "s.send(bytes([1,0,0,0,1,0,0,0,0,0,0,0]));s.recv(20);os.abort()"
    command = [sys.executable, "-I", "-S", "-c", script, "{socket}"]
    with Launched(command) as peer, pytest.raises(VhostUserError, match="SIGABRT"):
        reach_of(peer, quiet=0.2)


def test_what_a_front_end_does_not_do_is_skipped() -> None:
    rule = rule_named("a_whole_mapping_can_be_taken_away")
    with Launched("false") as peer:
        (outcome,) = check_front_end([rule], peer, Reach(protocol=PROTOCOL))
    assert (outcome.result, outcome.got) == (Result.SKIPPED, "it does not start a ring")


@pytest.mark.parametrize("profile", FRONT_END_PROFILES)
def test_profiles_name_rules_that_there_are_and_say_why(profile: str) -> None:
    rows = FRONT_END_PROFILES[profile]
    assert rows.keys() <= {rule.name for rule in front_end_rules()}
    assert all(rows.values())
