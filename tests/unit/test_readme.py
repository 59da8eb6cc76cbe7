"""Every command and snippet of the README does what it says there. Those with QEMU are in tests/vm/."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from vhostuser.vm.tree import is_fetched

TOP: Final = Path(__file__).resolve().parents[2]
README: Final = (TOP / "README.md").read_text()
BLOCKS: Final = re.findall(r"^```(\w+)\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
SECONDS: Final = 50
MINUTES: Final = 300


def block(language: str, having: str) -> str:
    """The one block in that language with these words in it."""
    found = [text for kind, text in BLOCKS if kind == language and having in text]
    assert len(found) == 1, f"{len(found)} blocks have {having!r}"
    return str(found[0])


def environment(**more: str) -> dict[str, str]:
    """As a user has it: our programs first in the path, nothing of pytest."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "COV"))}
    return kept | {"PATH": f"{Path(sys.executable).parent}:{kept.get('PATH', os.defpath)}", "MAKEFLAGS": ""} | more


def shell(command: str, where: Path, *, seconds: float = SECONDS, **more: str) -> str:
    """What a command prints; it must succeed."""
    words = ["sh", "-euc", command]
    done = subprocess.run(
        words, cwd=where, env=environment(**more), capture_output=True, text=True, timeout=seconds, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """A short path: sockets go there."""
    for name, having in (("gallery.py", "class Gallery"), ("visitor.py", "Frontend.connect")):
        (tmp_path / name).write_text(block("python", having))
    yield tmp_path
    shutil.rmtree(tmp_path)


def test_the_device_of_ten_lines_and_its_visitor(place: Path) -> None:
    commands = block("sh", "gallery.py").replace("python ", "python -W error ")
    said = shell(commands, place)
    mapping = "Mapping(shm_offset=4194304, len=2097152, fd_offset=0, writable=False)"
    assert said.splitlines() == [f"{64 << 20} ({mapping},)", repr(bytes(16))]


def test_every_snippet_is_run_here() -> None:
    assert {text for kind, text in BLOCKS if kind == "python"} == {
        block("python", "class Gallery"),
        block("python", "Frontend.connect"),
    }
    known = ("make demo", "gallery.py", "vhu explain", "vhu trace", "vhu vm run", "vhu-fs --socket", "config_size=64")
    assert {text for kind, text in BLOCKS if kind == "sh"} == {block("sh", having) for having in known}


def test_the_picture_is_what_the_demo_prints(tmp_path: Path) -> None:
    printed = re.sub(r"[+-]\d+ KiB", "+0 KiB", shell("vhu demo", tmp_path, VHOSTUSER_CACHE=str(tmp_path))).splitlines()
    shown = block("text", "RssAnon").splitlines()
    assert len(shown) == 10
    places = [next((at for at, line in enumerate(printed) if line.startswith(wanted)), -1) for wanted in shown]
    assert -1 not in places, shown[places.index(-1)]
    order = [at for wanted, at in zip(shown, places, strict=True) if "|" not in wanted]
    assert order == sorted(order)


def test_the_tools_work_together_as_shown(tmp_path: Path) -> None:
    truncate, shm, attach, info, explain = (line.split("#")[0].strip() for line in block("sh", "vhu explain").splitlines())
    wait = "until test -S shm.sock; do sleep 0.02; done"
    again = f"{truncate}; {shm} pid=$!; {wait}; {info}; echo quit | {attach}; {explain}; kill $pid; wait $pid"
    said = shell(again, tmp_path)
    assert "SHMEM" in said
    assert '"event": "ready"' in said
    assert f'"regions": {{"0": {64 << 20}}}' in said


def test_a_connection_is_seen_as_shown(tmp_path: Path) -> None:
    (tmp_path / "photo.raw").write_bytes(bytes(16 << 20))
    shm, *rest = (line.split("    #")[0].strip() for line in block("sh", "vhu trace").splitlines())
    wait = "pid=$!; until test -S shm.sock; do sleep 0.02; done"
    said = shell("\n".join([shm, wait, *rest, "wait $pid"]), tmp_path)
    lines = [line for line in said.splitlines() if "SHMEM_MAP" in line]
    assert [_of_this_run(line) for line in lines] == 2 * [_of_this_run(block("text", "need_reply").strip())], said
    assert (tmp_path / "session.html").read_text().startswith("<!doctype html>")


def _of_this_run(line: str) -> str:
    """A line without what is another in each run."""
    line = re.sub(r"^[\d.]+|<[\d.]+ [µm]s>", "T", line)
    return re.sub(r"fd=\d+</\S*/photo.raw ino \d+>", "FD", line)


@pytest.mark.parametrize("target", re.findall(r"^make (\w+)", README + (TOP / "CONTRIBUTING.md").read_text(), re.MULTILINE))
def test_make_has_the_targets_that_are_named(target: str) -> None:
    assert f"make {target} " in shell("make help", TOP)


@pytest.mark.timeout(MINUTES)
def test_make_demo_and_make_test_do_what_they_say() -> None:
    """A part of the suite stands for it: this test is in the suite."""
    if not (TOP / ".venv/.ready").exists():
        pytest.skip("run the suite by `make test`")
    assert f"{29 if is_fetched() else 23} proofs hold" in shell("make demo", TOP, seconds=MINUTES / 2)
    few = shell("make test", TOP, seconds=MINUTES / 2, PYTEST_ADDOPTS="tests/unit/test_layers.py -k at_the_top")
    assert few.count(" passed") == 2


def test_the_links_lead_somewhere() -> None:
    assert all((TOP / link).exists() for link in re.findall(r"\]\(([\w./]+)\)", README))
