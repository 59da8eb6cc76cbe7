"""`vhu report`: where the page goes, and what is said when there is none."""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path

import pytest

from tests.report.scene import session
from vhostuser.trace.capture import create_capture

from .programs import VHU, one_line, run


@pytest.fixture(params=["pcapng", "jsonl"])
def capture(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return captured(tmp_path / f"session.{request.param}")


def captured(place: Path) -> Path:
    """The capture of a session."""
    writer = create_capture(place)
    for event in session():
        writer.write(event)
    writer.close()
    return place


def test_writes_a_page_of_either_format(capture: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    done = run(VHU, "report", capture, "-o", page)
    assert (done.returncode, done.stdout) == (0, "")
    assert one_line(done.stderr) == f"vhu report: wrote {page}; open it: xdg-open {page}"
    text = page.read_text()
    assert text.startswith("<!doctype html>")
    assert "/srv/pictures/photo.raw" in text
    assert sorted(each.name for each in tmp_path.iterdir()) == sorted([page.name, capture.name])


def test_a_new_page_is_its_owner_s_alone_and_one_that_is_there_keeps_its_rights(capture: Path, tmp_path: Path) -> None:
    page, old = tmp_path / "page.html", tmp_path / "old.html"
    old.touch()
    old.chmod(0o640)
    for place in (page, old):
        assert run(VHU, "report", capture, "-o", place).returncode == 0
    assert [stat.S_IMODE(place.stat().st_mode) for place in (page, old)] == [0o600, 0o640]


def test_writes_beside_the_capture_by_default(capture: Path) -> None:
    assert run(VHU, "report", capture).returncode == 0
    assert capture.with_suffix(".html").exists()


def test_writes_to_standard_output(capture: Path) -> None:
    done = run(VHU, "report", capture, "-o", "-")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("<!doctype html>")
    assert done.stdout.rstrip().endswith("</html>")


def test_reads_standard_input(tmp_path: Path) -> None:
    capture = captured(tmp_path / "session.jsonl")
    page = tmp_path / "page.html"
    assert run(VHU, "report", "-", "-o", page, typed=capture.read_text()).returncode == 0
    assert page.exists()


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["none.pcapng"], 1, "there is no capture none.pcapng; try: vhu trace -w FILE.pcapng makes one"),
        (["-"], 2, "a page of standard input needs a name; try: -o report.html"),
        (["made.txt", "-o", "made.txt"], 2, "made.txt is the capture itself; try: another name with -o"),
        (["made.txt"], 1, "made.txt is no capture (pcapng, or JSON Lines): it begins with 68656c6c"),
        (["made.jsonl", "-o", "none/page.html"], 1, "cannot write none/page.html: "),
        ([], 2, "the following arguments are required: FILE; try: vhu report --help"),
    ],
)
def test_says_what_is_wrong(words: list[str], code: int, said: str, tmp_path: Path) -> None:
    (tmp_path / "made.txt").write_text("hello")
    (tmp_path / "made.jsonl").write_text("{}\n")
    done = run(VHU, "report", *words, cwd=tmp_path)
    assert done.returncode == code
    assert one_line(done.stderr).startswith(f"vhu report: {said}")


def test_what_is_no_file_or_a_link_stays_what_it_is(capture: Path, tmp_path: Path) -> None:
    pipe, link, target = tmp_path / "pipe", tmp_path / "link.html", tmp_path / "target.html"
    os.mkfifo(pipe)
    link.symlink_to(target)
    taken: list[str] = []
    reader = threading.Thread(target=lambda: taken.append(pipe.read_text()))
    reader.start()
    assert run(VHU, "report", capture, "-o", link).returncode == 0
    assert run(VHU, "report", capture, "-o", pipe).returncode == 0
    reader.join()
    assert taken == [target.read_text()]
    assert pipe.is_fifo()
    assert link.is_symlink()
    assert target.read_text().startswith("<!doctype html>")


def test_a_page_that_is_there_stays_until_the_new_one_is_whole(tmp_path: Path) -> None:
    (tmp_path / "broken.jsonl").write_text('{"v":1}\n{"v":1}\n')
    page = tmp_path / "page.html"
    page.write_text("the old one")
    done = run(VHU, "report", tmp_path / "broken.jsonl", "-o", page)
    assert done.returncode == 1
    assert "line 1" in one_line(done.stderr)
    assert page.read_text() == "the old one"
    assert len(list(tmp_path.iterdir())) == 2
