"""The descriptors by which QEMU's and libvirt's users find a daemon ("Backend program conventions", vhost-user.json)."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest

import vhostuser
from vhostuser.cli import blk, console, fs, rng

DESCRIPTORS = {path.name: path for path in (Path(vhostuser.__file__).parent / "descriptors").iterdir()}
DAEMONS = {"60-vhu-blk.json": blk, "60-vhu-console.json": console, "60-vhu-fs.json": fs, "60-vhu-rng.json": rng}
"""Not `vhu-pmem`: vhost-user.json has no type for it."""
TOP = Path(__file__).parents[2]


def test_each_daemon_has_one() -> None:
    assert set(DESCRIPTORS) == set(DAEMONS)


@pytest.mark.parametrize("name", DAEMONS)
def test_it_says_what_the_daemon_says(name: str) -> None:
    found = json.loads(DESCRIPTORS[name].read_text())
    description, binary = found.pop("description"), found.pop("binary")
    assert description.startswith(DAEMONS[name].PROGRAM + ": ")
    assert found == DAEMONS[name].CAPABILITIES
    assert binary.replace("@bindir@", "/usr/bin") == f"/usr/bin/{DAEMONS[name].PROGRAM}"


@pytest.mark.parametrize("daemon", DAEMONS.values(), ids=lambda daemon: daemon.PROGRAM)
def test_the_daemon_is_a_command_of_the_package(daemon: object) -> None:
    scripts = tomllib.loads((TOP / "pyproject.toml").read_text())["project"]["scripts"]
    assert f"{getattr(daemon, '__name__', '')}:main" == scripts[getattr(daemon, "PROGRAM", "")]
