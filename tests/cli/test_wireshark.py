"""`vhu wireshark`: what it installs is what tshark loads by itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.trace.building import Wire
from tests.trace.shark import shark_tank
from vhostuser.cli.wireshark import NAME, install
from vhostuser.trace.dissector import dissector

from .programs import VHU, one_line, run


def test_what_is_installed_at_home_is_loaded(tmp_path: Path) -> None:
    wire = Wire()
    with shark_tank() as shark:
        path = shark.capture(wire.map(0, 4096))
        assert "SHMEM_MAP" not in shark.run(path, plain=True)
        done = run(VHU, "wireshark", "install", HOME=str(shark.home))
        assert (done.returncode, done.stderr) == (0, "")
        place = Path(done.stdout.splitlines()[0])
        assert place == shark.home / ".local/lib/wireshark/plugins" / NAME
        assert shark.run(path, plain=True).splitlines()[1].endswith("SHMEM_MAP = 0")


def test_it_goes_where_it_is_told_and_replaces_what_was_there(tmp_path: Path) -> None:
    folder = tmp_path / "made/for/it"
    for _ in range(2):
        assert install(folder) == folder / NAME
        assert [path.name for path in folder.iterdir()] == [NAME]
        assert (folder / NAME).read_text() == dissector()
        (folder / NAME).write_text("old")


def test_it_can_be_shown() -> None:
    done = run(VHU, "wireshark", "show")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == dissector()


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["install", "--dir", "/dev/null"], 1, "cannot write /dev/null/vhostuser.lua: File exists; try: --dir"),
        (["instal"], 2, "invalid choice: 'instal'"),
        ([], 2, "required: action"),
    ],
)
def test_what_can_not_be_is_said(arguments: list[str], code: int, says: str) -> None:
    done = run(VHU, "wireshark", *arguments)
    assert (done.returncode, done.stdout) == (code, "")
    assert says in one_line(done.stderr)
