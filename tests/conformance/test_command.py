"""The command that is a peer: how it ended is known without reaping it, and its group ends with it."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

from tests.cli.programs import until
from vhostuser.conformance.command import Command, crash_in_words, end_in_words, words_of
from vhostuser.errors import VhostUserError
from vhostuser.testing import DEADLINE

PYTHON = [sys.executable, "-I", "-S", "-c"]
SLEEPS = [*PYTHON, "import time; time.sleep(600)"]
LEAVES_ONE = ["sh", "-c", 'sleep 600 & echo $! > "$socket"; exit 7']


def state_of(pid: int) -> str:
    """Z is one that has ended and was not reaped."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return ""


def pid_of(command: Command) -> int:
    process = command._process
    assert process is not None
    return process.pid


def test_a_leader_that_has_ended_is_kept_until_its_group_is_killed(tmp_path: Path) -> None:
    command = Command(LEAVES_ONE, str(tmp_path / "left"))
    command.start()
    assert command.code(within=DEADLINE) == 7
    leader, left = pid_of(command), int((tmp_path / "left").read_text())
    assert not command.runs
    assert state_of(leader) == "Z"  # nobody else can have its number
    assert os.getpgid(left) == leader
    assert command.end(DEADLINE) == 7
    assert state_of(leader) == ""
    until(lambda: state_of(left) in ("", "Z"), "what it left is over")


def test_a_start_ends_what_there_was(tmp_path: Path) -> None:
    command = Command(SLEEPS, str(tmp_path / "s"))
    assert (command.runs, command.code(), command.terminate(), command.end(0)) == (False, None, False, None)
    command.start()
    first = pid_of(command)
    assert command.runs
    assert command.code() is None
    command.start()
    assert state_of(first) == ""
    assert command.starts == 2
    assert command.end(DEADLINE) == -signal.SIGTERM
    command.kill()


def test_one_that_does_not_end_is_killed(tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    script = "import os,signal,time; signal.signal(15, signal.SIG_IGN); os.mkfifo(os.environ['socket']); time.sleep(600)"
    command = Command([*PYTHON, script], str(ready))
    command.start()
    until(ready.exists, "it ignores SIGTERM")
    assert command.end(0.05) == -signal.SIGKILL


def test_what_is_no_program_is_named(tmp_path: Path) -> None:
    with pytest.raises(VhostUserError, match="cannot start /nowhere: No such file"):
        Command(["/nowhere"], str(tmp_path)).start()


@pytest.mark.parametrize(("line", "why"), [("", "empty"), (" \t", "empty"), ("a 'b", "No closing quotation")])
def test_what_is_no_command_line_is_refused(line: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        words_of(line)


def test_ends_are_told_in_words() -> None:
    assert [end_in_words(code) for code in (0, 3, -11)] == ["exit status 0", "exit status 3", "killed by SIGSEGV"]
    assert [crash_in_words(code) for code in (0, 1, 101, 139, -6, 200)] == [
        *("", "", "exit code 101, a panic", "killed by SIGSEGV", "killed by SIGABRT", "")
    ]
    assert crash_in_words(-15, (signal.SIGTERM,)) == ""


def test_what_a_sanitizer_finds_is_a_death_by_a_signal(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ASAN_OPTIONS", "detect_leaks=0")
    monkeypatch.delenv("UBSAN_OPTIONS", raising=False)
    seen = tmp_path / "seen"
    command = Command(["sh", "-c", f'echo "$ASAN_OPTIONS $UBSAN_OPTIONS" > {seen}'], str(tmp_path / "s"))
    command.start()
    assert command.code(within=DEADLINE) == 0
    assert command.end(0) == 0
    assert seen.read_text() == "abort_on_error=1:detect_leaks=0 abort_on_error=1\n"
