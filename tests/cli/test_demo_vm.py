"""The second act of `vhu demo` without a guest, and its proofs with one that lies. With a real one: tests/vm/."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vhostuser.cli import demo_vm
from vhostuser.cli.demo_stage import Stage
from vhostuser.cli.demo_vm import Shell
from vhostuser.cli.outcome import CommandError

from .programs import VHU, one_line, run

NAME = "a 'film'"
CONTENT = b"what is in it" * 1000


@pytest.fixture
def film(tmp_path: Path) -> Path:
    path = tmp_path / NAME
    path.write_bytes(CONTENT)
    return path


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("missing", "missing: No such file or directory (ENOENT)"),
        (".", "--file .: it is no regular file with something in it; try: another FILE"),
        ("empty", "--file empty: it is no regular file with something in it; try: another FILE"),
        ("a\nb", "--file a\\nb: its name can't be typed; try: another FILE"),
        ("good", "--file good: it takes a VM to show it; try: vhu vm fetch"),
    ],
)
def test_a_file_that_can_not_be_shown_is_refused_before_anything_is(tmp_path: Path, name: str, said: str) -> None:
    (tmp_path / "empty").touch()
    (tmp_path / "good").write_bytes(b"x")
    done = run(VHU, "demo", "--file", name, cwd=tmp_path, VHOSTUSER_CACHE=str(tmp_path / "none"))
    assert (done.returncode, done.stdout) == (1, "")
    assert one_line(done.stderr).endswith(said)


def guest(cached: tuple[int, int], content: bytes) -> Shell:
    """A guest that says so much is cached, and that this is in the file."""
    answers = iter(cached)

    def shell(command: str) -> str:
        if "meminfo" in command:
            return f"MemFree: 1 kB\nCached:   {next(answers)} kB\nSwapCached: 7 kB"
        assert command == "sha256sum < '/read/a '\"'\"'film'\"'\"''"
        return f"{hashlib.sha256(content).hexdigest()}  -"

    return shell


def test_the_hash_is_the_hosts_and_nothing_is_cached(film: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    stage = Stage(tmp_path)
    demo_vm._hashed(stage, guest((2000, 2040), CONTENT), film)
    assert stage.proofs == 2
    assert "ok the guest's page cache grew by 40 KiB" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("lie", "said"),
    [
        (guest((0, 0), CONTENT[1:]), "its SHA-256 there is the host's"),
        (guest((2000, 3024), CONTENT), "page cache grew by 1024 KiB"),
    ],
)
def test_another_hash_or_a_cache_is_noticed(film: Path, tmp_path: Path, lie: Shell, said: str) -> None:
    with pytest.raises(CommandError, match=said):
        demo_vm._hashed(Stage(tmp_path), lie, film)


@pytest.mark.parametrize(("at", "holds"), [(demo_vm.STORED_AT, True), (0, False), (None, False)])
def test_what_the_guest_stores_has_to_be_just_there(tmp_path: Path, at: int | None, holds: bool) -> None:
    notes = tmp_path / demo_vm.NOTES
    notes.write_bytes(bytes(demo_vm.NOTES_SIZE))

    def shell(command: str) -> str:
        assert command.startswith("ln -sf /write/notes.raw /dev/mem && devmem 4096 64 0x")
        number = int(command.rpartition(" ")[2], 16)
        if at is not None:
            with notes.open("r+b") as file:
                os.pwrite(file.fileno(), number.to_bytes(8, "little"), at)
        return ""

    stage = Stage(tmp_path)
    if holds:
        demo_vm._stored(stage, shell, notes)
        assert stage.proofs == 1
    else:
        with pytest.raises(CommandError, match="has them at 4096"):
            demo_vm._stored(stage, shell, notes)


class Counts:
    """Stands for a daemon that has ended."""

    def __init__(self, **requests: int) -> None:
        self.requests = lambda: requests


@pytest.mark.parametrize(
    ("requests", "holds"), [({"SETUPMAPPING": 3}, True), ({"SETUPMAPPING": 3, "READ": 1}, False), ({"LOOKUP": 1}, False)]
)
def test_the_bytes_went_through_the_window_or_the_proof_fails(
    tmp_path: Path, film: Path, requests: dict[str, int], holds: bool
) -> None:
    stage, daemon = Stage(tmp_path), Counts(**requests)
    counted: Callable[..., Any] = demo_vm._counted
    if holds:
        counted(stage, daemon, film, "READ")
        assert stage.proofs == 1
    else:
        with pytest.raises(CommandError, match="FUSE_READ"):
            counted(stage, daemon, film, "READ")


def test_a_daemon_that_fails_is_quoted(tmp_path: Path) -> None:
    with demo_vm.Daemon(tmp_path, tmp_path / "missing", "read") as daemon, pytest.raises(CommandError, match="ended with 1"):
        daemon.requests()
