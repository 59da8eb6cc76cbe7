"""`vhu check front-end`: what it prints, writes and ends with."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from vhostuser.conformance.front_profiles import FRONT_END_PROFILES
from vhostuser.trace.capture import open_capture
from vhostuser.trace.event import Message

from .programs import SECONDS, VHU, environment, one_line, words

OURS = shlex.join(words(VHU, "attach", "{socket}"))
DIES = shlex.join([
    *(sys.executable, "-I", "-S", "-c"),
    "import socket,os,sys;s=socket.socket(socket.AF_UNIX);s.connect(sys.argv[1]);"
    "s.send(bytes([1,0,0,0,1,0,0,0,0,0,0,0]));d=s.recv(20);s.recv(1);(len(d)==20) or os.abort()",
    "{socket}",
])  # fmt: skip
"""A front-end that asks for the features, and dies if it gets none."""


def check(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = words(VHU, "check", "front-end", *arguments)
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=4 * SECONDS,
        check=False,
        env=environment(),
        stdin=subprocess.DEVNULL,
    )


def test_the_rules_are_listed_by_level_and_section() -> None:
    done = check("--list", "--section", "shmem_map", "--rule", "^the_.*page")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        "MUST   VHOST_USER_BACKEND_SHMEM_MAP: the_first_page_can_be_mapped",
        "MUST   VHOST_USER_BACKEND_SHMEM_MAP: the_last_page_can_be_mapped",
    ]


def test_ours_keeps_rules_and_the_end_says_so() -> None:
    done = check("--run", OURS, "--rule", "^unmapping_twice|^the_first_page", "--seed", "3", "-v")
    assert (done.returncode, done.stderr) == (0, "")
    first, *kept, last = done.stdout.splitlines()
    assert first.startswith("protocol features BACKEND_REQ BACKEND_SEND_FD CONFIG ")
    assert first.endswith("1 rings started; asks for regions")
    assert [line.split()[0] for line in kept if line.startswith(" ")] == ["kept"] * 2
    assert last == "2 rules: 2 kept"


def test_a_crash_is_told_counted_captured_and_reported(tmp_path: Path) -> None:
    rule = "a_back_end_that_goes_instead_of_answering_is_survived"
    done = check(
        *("--run", DIES, "--rule", f"^{rule}|^the_first_page", "--json"),
        *("--junit", tmp_path / "report.xml", "--captures", tmp_path / "captures"),
    )
    assert (done.returncode, done.stderr) == (1, "")  # whatever the level of its rule
    told: list[dict[str, Any]] = [json.loads(line) for line in done.stdout.splitlines()]
    found = {each["rule"]: each for each in told}
    assert found[rule]["result"] == "crashed"
    assert found[rule]["got"] == "killed by SIGABRT"
    assert found["the_first_page_can_be_mapped"]["result"] == "skipped"
    assert [path.name for path in (tmp_path / "captures").iterdir()] == [f"{rule}.pcapng"]
    events = list(open_capture(tmp_path / "captures" / f"{rule}.pcapng"))
    assert [event.request for event in events if isinstance(event, Message)] == [1]
    suite = ElementTree.parse(tmp_path / "report.xml").getroot()
    assert (suite.get("tests"), suite.get("failures"), suite.get("skipped")) == ("2", "1", "1")
    assert [case.get("name") for case in suite if case.find("failure") is not None] == [rule]


def test_a_must_that_is_not_kept_makes_the_exit_status_1() -> None:
    command = DIES.replace("bytes([1,0,0,0,1", "bytes([1,0,0,0,5")
    done = check("--run", command, "--rule", "^requests_have_version_1")
    assert done.returncode == 1
    assert "\nHeader\n  broken  MUST   requests_have_version_1_and_no_reply_flag\n" in done.stdout
    assert "    expected  GET_FEATURES with version 1 and without reply flag\n    got       flags 0x5\n" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        ([], 2, "there is no front-end to check"),
        (["--list", "--rule", "["], 2, "is no pattern"),
        (["--list", "--rule", "nothing at all"], 2, "no rule's name matches 'nothing at all'"),
        (["--listen", "/nonexistent/s"], 3, "cannot listen on /nonexistent/s"),
        (["--run", "false"], 3, "false ended (exit status 1) without having connected"),
        (["--profile", "nobody", "--list"], 2, "invalid choice"),
    ],
)
def test_what_can_not_be_done_is_one_line(arguments: list[str], code: int, says: str) -> None:
    done = check(*arguments)
    assert done.returncode == code
    assert says in one_line(done.stderr)


def test_what_a_profile_knows_is_no_failure(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    from vhostuser.cli import check_front

    known = {"requests_have_version_1_and_no_reply_flag": "it always does that", "the_question_has_no_payload": "why"}
    monkeypatch.setitem(FRONT_END_PROFILES, "strict", known)
    monkeypatch.setattr(check_front, "on_end", lambda stop: None)
    command = DIES.replace("bytes([1,0,0,0,1", "bytes([1,0,0,0,5")
    run: Callable[[list[str]], int] = check_front.check_front
    assert run(["--run", command, "--profile", "strict", "--rule", "^requests_have_version_1"]) == 0
    assert "1 rule: 1 known" in capfd.readouterr().out
    assert run(["--run", DIES, "--profile", "strict", "--rule", "^requests_have_version_1"]) == 1
    assert "1 rule: 1 fixed" in capfd.readouterr().out
