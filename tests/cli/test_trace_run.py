"""`vhu trace --run`: the command ends with the tracer, and all that it has started."""

from __future__ import annotations

import shlex
import signal
import sys
from pathlib import Path

import pytest

from vhostuser.cli import children, trace_ends
from vhostuser.testing import is_listened_on
from vhostuser.transport.listen import AddressError

from .programs import VHU, Program, run, until, vhu

SHM = f"exec {shlex.quote(sys.executable)} -m vhostuser.cli.shm --socket-path $socket --region 0:4K --reconnect"


def inner(place: Path, script: str, trap: str = "true") -> str:
    """A script in a shell of its own, which says its number in a file: the shell of --run waits for it, and is not it."""
    return f"sh -c {shlex.quote(f'{trap}; echo $$ > {place}/new; mv {place}/new {place}/pid; {script}')}\ntrue"


def lives(place: Path) -> bool:
    """The script of `inner` runs still."""
    try:
        state = Path(f"/proc/{int((place / 'pid').read_text())}/stat").read_bytes().rpartition(b")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in (b"Z", b"X")


def traced(place: Path, script: str, *options: str, trap: str = "true") -> Program:
    """`vhu trace` that runs the script as a back-end; both are there."""
    program = vhu("trace", "--listen", place / "a", "--run", inner(place, script, trap), *options)
    until(lambda: is_listened_on(place / "a") and lives(place), "the tracer listens, and its command runs")
    return program


@pytest.mark.parametrize(
    ("command", "hint"),
    [
        ("sleep 1000", "try: {socket} in CMD, in the place of the path"),
        ("sleep 1000 # {socket}", "try: CMD by itself, to see what it says"),
        ("sleep 1000 # $socket", "try: CMD by itself, to see what it says"),
    ],
)
def test_a_command_that_does_not_listen_is_told(place: Path, command: str, hint: str) -> None:
    back_end = trace_ends.BackEnd(str(place / "b"), command)
    with trace_ends.running(command, str(place / "b"), -1) as process, pytest.raises(AddressError) as found:
        back_end.reach(process, 0.1)
    assert str(found.value) == f"the command of --run: it runs, but does not listen on {place / 'b'}"
    assert found.value.advice == hint


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_what_the_shell_of_run_has_started_ends_with_a_signal(place: Path, number: signal.Signals) -> None:
    with traced(place, "exec sleep 1000") as program:
        program.signal(number)
        assert program.end() == 0
        assert not lives(place)


def test_what_the_shell_of_run_has_started_has_its_time_to_end(place: Path) -> None:
    """The shell is dead before that."""
    trap = f"trap 'sleep 0.3; touch {place}/done; exit' TERM"
    with traced(place, "while true; do sleep 0.05; done", trap=trap) as program:
        program.signal(signal.SIGINT)
        assert program.end() == 0
        assert (place / "done").exists()
        assert not lives(place)


def test_a_second_signal_ends_a_command_at_once_that_does_not_want_to(place: Path) -> None:
    with traced(place, "while true; do sleep 1000; done", trap="trap '' TERM") as program:
        program.signal(signal.SIGINT)
        program.signal(signal.SIGTERM)
        assert program.end(5) in (130, 143)
        until(lambda: not lives(place), "the command is gone", 5)


def test_a_command_that_does_not_want_to_end_is_killed(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(children, "GRACE", 0.2)
    script = inner(place, "while true; do sleep 1000; done", "trap '' TERM")
    with children.child(["sh", "-c", script], group=True) as process:
        until(lambda: lives(place), "it runs")
        assert process.poll() is None
    until(lambda: not lives(place), "it is gone")
    assert process.poll() == -signal.SIGTERM
    process.kill()


def test_what_a_command_leaves_behind_that_ends_is_ended(place: Path) -> None:
    script = f"({inner(place, 'exec sleep 1000')}) & while [ ! -e {place}/pid ]; do sleep 0.01; done; exit 7"
    done = run(VHU, "trace", "--listen", place / "a", "--run", script)
    assert done.returncode == 7
    assert not lives(place)


def test_a_back_end_that_would_go_on_ends_with_once(place: Path) -> None:
    with traced(place, SHM, "--once") as program:
        assert run(VHU, "info", place / "a").returncode == 0
        assert program.end() == 0
        assert not lives(place)
