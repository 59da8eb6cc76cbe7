"""`vhu fuzz`: exit codes, what it tells, and that it leaves nothing behind."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path

import pytest

from tests.cli.programs import VHU, environment, one_line, run, words
from vhostuser.testing import DEADLINE, is_listened_on
from vhostuser.trace.capture import open_capture

from .test_found import command


def fuzz(*arguments: str) -> tuple[int, str, str]:
    done = run(VHU, "fuzz", *arguments)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("arguments", [(), ("--listen", "/tmp/s", "--as", "front-end"), ("/tmp/s", "--time", "0")])
def test_usage(arguments: tuple[str, ...]) -> None:
    code, _, said = fuzz(*arguments)
    assert code == 2
    one_line(said)


def test_a_peer_that_is_not_there(tmp_path: Path) -> None:
    code, _, said = fuzz(str(tmp_path / "none"), "--timeout", "0.2")
    assert code == 3
    assert "none" in one_line(said)


def test_nothing_found() -> None:
    code, said, _ = fuzz("--run", command("right"), "--count", "10", "--seed", "4")
    assert code == 0
    assert said.startswith("seed 4: 10 conversations, ")
    assert said.endswith("no findings\n")


def test_something_found(tmp_path: Path) -> None:
    code, said, _ = fuzz("--run", command("size"), "--count", "10", "--seed", "1", "--json", "--captures", str(tmp_path))
    found, summary = (json.loads(line) for line in said.splitlines())
    assert code == 1
    assert (found["kind"], found["last"], found["messages"]) == ("wrong reply", "GET_VRING_BASE", 1)
    assert any(open_capture(found["capture"]))
    assert (summary["conversations"], summary["findings"]) == (10, 1)
    assert summary["covered"]["SET_VRING_ADDR"]["as it should be"] > 0


def test_an_interrupt_ends_it_with_the_summary(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    line = words(VHU, "fuzz", path, "--run", command("size"), "--time", "600", "--seed", "1")
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()) as process:
        assert process.stdout
        first = process.stdout.readline()
        process.send_signal(signal.SIGINT)
        rest, said = process.communicate(timeout=DEADLINE)
    assert first.startswith("wrong reply: ")
    assert "1 finding\n" in rest
    assert "interrupted" in one_line(said)
    assert process.returncode == 1
    assert not is_listened_on(path)


def test_a_capture_that_has_no_room_ends_it_with_the_summary(tmp_path: Path) -> None:
    (tmp_path / "wrong-reply-GET_VRING_BASE.pcapng").symlink_to("/dev/full")
    code, said, complaint = fuzz("--run", command("size"), "--count", "10", "--seed", "1", "--captures", str(tmp_path))
    assert code == 2
    assert said.startswith("seed 1: ")
    line = one_line(complaint)
    assert f"cannot write the capture {tmp_path}/wrong-reply-GET_VRING_BASE.pcapng: No space left on device" in line
    assert line.endswith("; try: another --captures DIR")


def test_what_is_no_command_line_is_usage() -> None:
    code, said, complaint = fuzz("--run", "a 'b")
    assert (code, said) == (2, "")
    assert "is no command line: No closing quotation" in one_line(complaint)
