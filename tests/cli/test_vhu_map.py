"""`vhu map`: of captures, and of a `vhu-shm` that is there."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from tests.trace.building import Wire
from vhostuser.trace.capture import create_capture
from vhostuser.trace.event import Event, FdNote, Remarkable

from .programs import PAGE, SHM, one_line, run, serving

NOTES = FdNote(8, "file", "/srv/\x1b[2Jnotes", dev=1, ino=99)


def capture(path: Path, *more: Event, wire: Wire) -> Path:
    """A capture of a session that mapped two files, took one away and was refused a third."""
    writer = create_capture(path)
    first = [*wire.agreed(), *wire.region(64 << 20), *wire.map(0, 16 << 20), *wire.map(32 << 20, 8 << 20, fd=NOTES)]
    for event in [*first, *wire.map(33 << 20, 4096, status=22), *wire.unmap(0, 16 << 20), *more]:
        writer.write(event)
    writer.close()
    return path


def shown(path: Path, *options: str) -> list[str]:
    done = run("vhostuser", "map", path, *options)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


def in_json(path: Path, *options: str) -> dict[str, Any]:
    (line,) = shown(path, "--json", *options)
    found: dict[str, Any] = json.loads(line)
    return found


def offsets(found: dict[str, Any]) -> list[int]:
    return [each["shm_offset"] for region in found["regions"] for each in region["mappings"]]


@pytest.mark.parametrize("suffix", ["pcapng", "jsonl"])
def test_the_end_of_a_capture_is_shown_before_its_connections_closed(place: Path, suffix: str) -> None:
    wire = Wire()
    path = capture(place / f"c.{suffix}", wire.remark(Remarkable.CLOSED), wire=wire)
    title, heading, bar, mapping = shown(path)
    assert title == f"c.{suffix} after 0.0000 s; 1 refused until then"
    assert heading == "connection 0, region 0: 64 MiB, 1 mapping, 8 MiB mapped (12 %)"
    assert bar == "  |" + 30 * "." + 8 * "a" + 22 * "." + "| 64 MiB"
    assert mapping == r"  a 0x2000000+0x800000 ro /srv/\x1b[2Jnotes ino 99 from 0x0"


def test_a_connection_that_closed_before_another_one_went_on_is_gone(place: Path) -> None:
    wire, second = Wire(), Wire(1)
    path = capture(place / "c.jsonl", wire.remark(Remarkable.CLOSED), *second.agreed(), *second.map(0, 0x1000), wire=wire)
    assert [(each["connection"], each["shm_offset"]) for each in _mappings(in_json(path))] == [(1, 0)]


def _mappings(found: dict[str, Any]) -> Sequence[dict[str, Any]]:
    return [each | {"connection": region["connection"]} for region in found["regions"] for each in region["mappings"]]


@pytest.mark.parametrize(("at", "mapped"), [("0", []), ("0.00001", [0]), ("0.000012", [0, 32 << 20]), ("9", [32 << 20])])
def test_a_moment_of_a_capture(place: Path, at: str, mapped: list[int]) -> None:
    path = capture(place / "c.jsonl", wire=Wire())
    assert offsets(in_json(path, "--at", at)) == mapped


def test_the_object_says_what_each_mapping_is(place: Path) -> None:
    found = in_json(capture(place / "c.jsonl", wire=Wire()))
    (region,) = found["regions"]
    (mapping,) = region.pop("mappings")
    assert region == {"connection": 0, "shmid": 0, "size": 64 << 20, "sized": True, "mapped": 8 << 20}
    assert found["refused"] == 1
    assert (mapping["shm_offset"], mapping["len"], mapping["writable"]) == (32 << 20, 8 << 20, False)
    assert (mapping["fd"]["path"], mapping["fd"]["ino"]) == (NOTES.path, 99)


def test_the_picture_is_well_formed(place: Path) -> None:
    root = ElementTree.fromstring("\n".join(shown(capture(place / "c.jsonl", wire=Wire()), "--svg")))
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert "\x1b" not in "".join(root.itertext())


def test_a_capture_may_come_on_standard_input(place: Path) -> None:
    text = capture(place / "c.jsonl", wire=Wire()).read_text()
    done = run("vhostuser", "map", "-", "--json", typed=text)
    assert offsets(json.loads(done.stdout)) == [32 << 20]


def test_what_a_back_end_maps_by_itself_is_shown_with_its_files(sock: Path, file: Path, notes: Path) -> None:
    options = ["--region", "0:64K", "--map", f"0:0:{file}", "--map", f"0:32K:{notes}:rw"]
    with serving(sock, *options) as back:
        found = in_json(sock, "--wait", "60")
        assert back.end() == 0
    first, second = _mappings(found)
    assert (first["shm_offset"], first["len"], first["writable"], first["fd"]["path"]) == (0, 2 * PAGE, False, str(file))
    assert (second["shm_offset"], second["len"], second["writable"]) == (32 << 10, PAGE, True)
    assert second["fd"]["ino"] == notes.stat().st_ino
    assert found["t"] is None


def test_a_back_end_that_maps_nothing_has_empty_regions(sock: Path) -> None:
    with serving(sock, "--region", "0:64K", module=SHM) as back:
        title, heading, bar = shown(sock, "--wait", "0.01")
        assert back.end() == 0
    assert title == f"{sock}: what it maps by itself"
    assert heading == "connection 0, region 0: 64 KiB, 0 mappings, 0 bytes mapped (0 %)"
    assert bar.strip("| .") == "64 KiB"


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (["nothing-here"], 1, "there is no nothing-here; try: a back-end's socket, or a capture"),
        (["/dev/null"], 1, "is no capture"),
        (["x", "--at", "-1"], 2, "--at"),
        (["x", "--at", "1e9"], 2, "is no time in seconds"),
        (["x", "--json", "--svg"], 2, "not allowed with"),
    ],
)
def test_errors_are_one_line(options: list[str], code: int, said: str) -> None:
    done = run("vhostuser", "map", *options)
    assert (done.returncode, done.stdout) == (code, "")
    assert said in one_line(done.stderr)


def test_a_socket_has_no_past(sock: Path) -> None:
    with serving(sock, "--region", "0:64K"):
        done = run("vhostuser", "map", sock, "--at", "1")
    assert (done.returncode, one_line(done.stderr)) == (
        2,
        "vhu map: --at is for captures; a socket shows now; try: without --at",
    )


def test_a_back_end_that_is_not_there_is_status_3(place: Path) -> None:
    with serving(place / "s", "--region", "0:64K"):
        pass
    done = run("vhostuser", "map", place / "s")
    assert done.returncode == 3
    assert "connect" in one_line(done.stderr)


def test_a_capture_that_was_cut_off_is_shown_as_far_as_it_goes(place: Path) -> None:
    path = capture(place / "c.pcapng", wire=Wire())
    path.write_bytes(path.read_bytes()[:-7])
    assert len(shown(path)) == 5
