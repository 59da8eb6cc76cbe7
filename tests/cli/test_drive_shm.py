"""`vhu drive shm` and `vhu-shm --file`: parts of files mapped on request, by two programs."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from vhostuser import Frontend
from vhostuser.cli.drive_shm import Part, part
from vhostuser.cli.drive_shm import place as place_named
from vhostuser.drivers.shm import ShmDriver

from .programs import PAGE, SHM, VHU, listening, one_line, run

DOCUMENT: Final = Path(__file__).resolve().parents[2] / "docs" / "vhu-shm.md"
REGION = ("--region", "0:64M")


@pytest.fixture
def at(place: Path, file: Path, notes: Path) -> Iterator[Path]:
    """The socket of a `vhu-shm` with one file at the start and two on request."""
    options = ("--map", f"0:0:{file}", "--file", str(file), "--file", f"{notes}:rw", "--reconnect")
    with listening(place / "s", *REGION, *options):
        yield place / "s"


def test_map_says_what_is_mapped_then(at: Path) -> None:
    done = run(VHU, "drive", "shm", at, "map", "0:1M:4K:0:0x1000")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        "region 0 0x0-0x2000: the file from 0x0 on, read-only",
        "region 0 0x100000-0x101000: the file from 0x1000 on, read-only",
    ]


def test_json_has_every_mapping(at: Path) -> None:
    done = run(VHU, "drive", "shm", at, "map", "0:0x2000:4096:1:rw", "--json")
    first = {"shm_offset": 0, "len": 8192, "fd_offset": 0, "writable": False}
    second = {"shm_offset": 8192, "len": 4096, "fd_offset": 0, "writable": True}
    assert json.loads(done.stdout) == {"shmid": 0, "mappings": [first, second]}


def test_unmap_takes_what_was_mapped_at_the_start(at: Path) -> None:
    assert run(VHU, "drive", "shm", at, "unmap", "0:0:8K").stdout == "region 0: nothing is mapped\n"
    assert run(VHU, "drive", "shm", at, "maps", "0").stdout == "region 0 0x0-0x2000: the file from 0x0 on, read-only\n"


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["map", "0:0:4K:0"], "MAP was answered with INVALID: SHMEM_MAP shm_offset 0x0 + len 0x1000 overlaps"),
        (["map", "0:1M:4K:0:rw"], "MAP was answered with INVALID: request flags 0x1 is WRITABLE, but file 0 is read-only"),
        (["maps", "3"], "MAPPINGS was answered with INVALID: request shmid 0x3 is no region of this device"),
    ],
)
def test_a_no_of_the_device_is_exit_code_1(at: Path, arguments: list[str], text: str) -> None:
    done = run(VHU, "drive", "shm", at, *arguments)
    assert (done.returncode, done.stdout) == (1, "")
    assert text in one_line(done.stderr)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["map", "0:0:4K"], "map PART: '0:0:4K' is not SHMID:OFFSET:LEN:FILE[:FD_OFFSET][:rw]"),
        (["unmap", "0:0"], "unmap PLACE: '0:0' is not SHMID:OFFSET:LEN"),
        (["maps"], "maps takes SHMID"),
        (["remap", "0"], "shm has no action 'remap': there are map, unmap, maps"),
    ],
)
def test_a_wrong_command_line_is_one_line_and_exit_code_2(arguments: list[str], text: str) -> None:
    done = run(VHU, "drive", "shm", "s", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert text in one_line(done.stderr)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("0:0:4K:0", Part(0, 0, 4096)),
        ("255:0x1000:64M:3:rw", Part(255, 4096, 64 << 20, 3, writable=True)),
        ("1:2M:4096:7:8K", Part(1, 2 << 20, 4096, 7, 8192)),
        ("1:2M:4096:7:0:rw", Part(1, 2 << 20, 4096, 7, 0, writable=True)),
    ],
)
def test_a_part_of_a_file_is_named_in_one_word(text: str, wanted: Part) -> None:
    assert part(text) == wanted


@pytest.mark.parametrize("text", ["", ":rw", "0:0:4K", "0:0:4K:0:0:0", "0:0:4X:0", "x:0:4K:0", "0:0:4K:file", "0:0:4K:0:ro"])
def test_what_is_no_part_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not SHMID|is no "):
        part(text)


@pytest.mark.parametrize("text", ["", "0:0", "0:0:4K:0", "0:0:", "0x:0:4K", "-1:0:4K"])
def test_what_is_no_place_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not SHMID|is no "):
        place_named(text)


@pytest.mark.parametrize(
    ("named", "code", "text"),
    [
        ("missing", 1, "cannot open missing: No such file or directory (ENOENT); try: check FILE in --file"),
        (".", 1, "cannot open .: Is a directory (EISDIR); try: check FILE in --file"),
        ("fifo", 1, "cannot map fifo: it is no regular file; try: another FILE in --file"),
        (":rw", 2, "argument --file: ':rw' is not FILE[:rw]"),
    ],
)
def test_a_file_that_can_not_be_offered_is_one_line(place: Path, named: str, code: int, text: str) -> None:
    os.mkfifo(place / "fifo")
    done = run(SHM, "--socket-path", "s", *REGION, "--file", named, cwd=place)
    assert done.returncode == code
    assert text in one_line(done.stderr)
    assert not (place / "s").exists()


def test_the_snippet_of_the_documentation(at: Path, notes: Path) -> None:
    """As it stands there, with the socket of this test."""
    (snippet,) = re.findall(r"^```python\n(.*?)^```", DOCUMENT.read_text(), re.MULTILINE | re.DOTALL)
    notes.write_bytes(bytes(17 * PAGE))
    code = compile(snippet.replace("shm.sock", str(at)), str(DOCUMENT), "exec")
    exec(code, {"Frontend": Frontend, "ShmDriver": ShmDriver})
    assert notes.read_bytes()[PAGE:].startswith(b"to the file")


def test_the_layout_of_a_request_is_in_the_help() -> None:
    shown = run(SHM, "--help").stdout
    assert "A request has 40 bytes" in shown
    assert "le64 fd_offset" in shown
