"""`vhu doctor`: a finding for each thing, a fix for each red line, and never a traceback."""

from __future__ import annotations

import errno
import json
import os
import resource
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from vhostuser import accelerated
from vhostuser.cli import checks
from vhostuser.cli.checks import CHECKS, Finding, examine
from vhostuser.cli.doctor import state

from .programs import VHU, run


def test_without_qemu_it_fails_and_says_how_to_get_one(place: Path) -> None:
    done = run(VHU, "doctor", VHOSTUSER_CACHE=str(place))
    assert (done.returncode, done.stderr) == (1, "")
    lines = done.stdout.splitlines()
    at = lines.index(f"bad  qemu           no QEMU >= 11.1 in {place / 'vm'}")
    assert lines[at + 1].strip() == "try: vhu vm fetch"
    assert sum(line.startswith(("good", "weak", "bad")) for line in lines) == len(CHECKS)
    assert sum(not line.startswith("good") for line in lines) == 2 * sum(line.startswith(("weak", "bad")) for line in lines)


def test_as_json_each_finding_has_a_state_and_all_but_the_good_a_fix(place: Path) -> None:
    done = run(VHU, "doctor", "--json", VHOSTUSER_CACHE=str(place))
    found = json.loads(done.stdout)
    assert [each["name"] for each in found] == list(CHECKS)
    assert all(("fix" in each) == (each["state"] != "good") for each in found)
    states = {each["name"]: each["state"] for each in found}
    assert states["compiled half"] == ("good" if accelerated else "weak")
    assert states["memfd"] == "good"


@pytest.mark.parametrize("name", ["qemu", "kvm", "kernel"])
@pytest.mark.parametrize("error", [OSError(errno.EACCES, "no"), subprocess.TimeoutExpired("qemu", 1), ValueError("what?")])
def test_a_check_that_can_not_be_made_is_a_finding(monkeypatch: pytest.MonkeyPatch, name: str, error: Exception) -> None:
    def fail() -> Finding:
        raise error

    only: dict[str, Callable[[], Finding]] = {name: fail}
    monkeypatch.setattr(checks, "CHECKS", only)
    (found,) = examine()
    assert (found.name, state(found)) == (name, "weak")
    assert found.text == f"it can't be checked: {error}"


@pytest.mark.parametrize(("release", "well"), [("5.5.99-x", False), ("5.6", True), ("6.18.44-fc", True), ("10.0+", True)])
def test_an_old_kernel_is_told(monkeypatch: pytest.MonkeyPatch, release: str, well: bool) -> None:
    monkeypatch.setattr("platform.release", lambda: release)
    found = checks.check_kernel()
    assert (found.well, found.needed) == (well, True)


@pytest.mark.parametrize(("hard", "well"), [(4095, False), (4096, True), (resource.RLIM_INFINITY, True)])
def test_what_counts_is_how_far_the_limit_may_be_raised(monkeypatch: pytest.MonkeyPatch, hard: int, well: bool) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, hard))
    assert checks.check_files().well == well


def test_no_memfd_is_told_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str, flags: int) -> int:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(os, "memfd_create", refuse)
    found = checks.check_memfd()
    assert (state(found), found.text) == ("bad", "memfd_create fails: Function not implemented")


def test_no_kvm_device_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    found = checks.check_kvm()
    assert (state(found), found.text) == ("weak", "/dev/kvm is not there, or not for you")
