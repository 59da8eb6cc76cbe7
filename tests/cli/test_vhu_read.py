"""`vhu read`: what it shows of captures, what it writes of them, and what it says of those that are wrong."""

from __future__ import annotations

import json
import os
import stat
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from tests.trace.building import BEGAN, Q, Wire
from tests.trace.schema import complaints
from vhostuser.cli import outcome
from vhostuser.cli import read as command
from vhostuser.protocol.payloads import U64
from vhostuser.trace.capture import create_capture, open_capture
from vhostuser.trace.event import Event, FdNote, Message, Remark, Remarkable

from .programs import VHU, one_line, run, vhu, words

HOSTILE = FdNote(8, "file", "/srv/\x1b[2Jnotes\n", ino=99)


def session() -> list[Event]:
    """Two files are mapped, a third is refused, and the connection ends."""
    wire = Wire()
    mapped = [*wire.map(0, 4096), *wire.map(4096, 4096, fd=HOSTILE), *wire.map(0, 4096, status=(1 << 64) - 17)]
    return [*wire.agreed(), *wire.region(1 << 20), *mapped, wire.remark(Remarkable.CLOSED, "the back-end ended it")]


def capture(path: Path, found: Iterable[Event]) -> Path:
    writer = create_capture(path)
    for event in found:
        writer.write(event)
    writer.close()
    return path


@pytest.fixture
def file(place: Path) -> Path:
    return capture(place / "a.pcapng", session())


class Reading:
    """The command, called in this process."""

    def __init__(self, streams: pytest.CaptureFixture[str]) -> None:
        self._streams = streams

    def run(self, *arguments: str | Path) -> tuple[int, str, str]:
        """Exit code, standard output and standard error."""
        words = [str(argument) for argument in arguments]
        try:
            code = outcome.run(command.PROGRAM, lambda: command.read(words))
        except SystemExit as end:
            code = int(end.code or 0)
        return code, *self._streams.readouterr()

    def shown(self, *arguments: str | Path) -> list[str]:
        """The lines of what goes well."""
        code, out, err = self.run(*arguments)
        assert (code, err) == (0, "")
        return out.splitlines()

    def written(self, *arguments: str | Path) -> str:
        """What it says when it writes."""
        code, out, err = self.run(*arguments)
        assert (code, out) == (0, "")
        return one_line(err)


@pytest.fixture
def reading(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Reading:
    monkeypatch.setattr(command, "on_end", lambda stop: None)
    return Reading(capfd)


@pytest.mark.parametrize("suffix", ["pcapng", "jsonl"])
def test_a_line_is_a_request_with_its_reply(reading: Reading, place: Path, suffix: str) -> None:
    lines = reading.shown(capture(place / f"a.{suffix}", session()))
    assert len(lines) == 10
    assert lines[0] == "0.0000 --- connection 0 opened"
    assert "B→F SHMEM_MAP shmid=0 0x0+0x1000 ro fd=7</srv/gamma.bin ino 1234> need_reply = 0 <1.0 µs>" in lines[6]
    assert lines[7].count("\\x1b[2Jnotes\\n") == 1
    assert "(-EEXIST)" in lines[8]
    assert "the back-end ended it" in lines[9]


def test_a_filter_chooses_lines_and_times_stay(reading: Reading, place: Path) -> None:
    wire = Wire()
    late = Message(BEGAN + 2_500_000_000, 0, *_ends(wire))
    path = capture(place / "a.jsonl", [wire.remark(Remarkable.OPENED), late])
    (line,) = reading.shown(path, "-e", "SET_OWNER")
    assert line == "2.5000 F→B SET_OWNER"
    assert reading.shown(path, "-e", "SET_OWNER", "-t") == ["2023-11-14T22:13:22.500000Z F→B SET_OWNER"]


def _ends(wire: Wire) -> tuple[Any, Any, bytes]:
    message = wire.ask(Q.SET_OWNER)
    return message.channel, message.sender, message.data


def test_counts_are_of_what_a_filter_chooses(reading: Reading, file: Path) -> None:
    *_, total, _ = reading.shown(file, "-c", "-e", "SHMEM_MAP")
    assert total.split()[-5:] == ["3", "1", "216", "3", "total"]
    (line,) = reading.shown(file, "-c", "--json")
    rows = {row["request"]: row["calls"] for row in json.loads(line)["requests"]}
    assert rows["SHMEM_MAP"] == 3


def test_json_is_an_object_a_line(reading: Reading, file: Path) -> None:
    found = [json.loads(line) for line in reading.shown(file, "--json", "-e", "refused")]
    assert [(each["msg"], each["refused"], each["reply"]) for each in found] == [("SHMEM_MAP", True, (1 << 64) - 17)]


@pytest.mark.parametrize("name", ["b.jsonl", "b.pcapng"])
def test_all_of_a_capture_is_written_exactly(reading: Reading, file: Path, place: Path, name: str) -> None:
    assert reading.written(file, "-w", place / name) == f"vhu read: wrote {len(session())} events"
    assert list(open_capture(place / name)) == session()


def test_a_part_is_written_with_what_it_takes_to_understand_it(reading: Reading, file: Path, place: Path) -> None:
    reading.written(file, "-e", "refused", "-w", place / "b.pcapng")
    found = list(open_capture(place / "b.pcapng"))
    assert [event for event in session() if event in found] == found, "in their order"
    assert len(found) == len(session()) - 6, "without the sizes and what was not refused"
    assert "(-EEXIST)" in reading.shown(place / "b.pcapng")[-2]


def test_json_lines_are_written_whatever_they_are_called(reading: Reading, file: Path, place: Path) -> None:
    reading.written(file, "--jsonl", place / "lines")
    lines = (place / "lines").read_text().splitlines()
    assert [complaint for line in lines for complaint in complaints(json.loads(line))] == []
    assert len(lines) == len(session())


def test_a_trace_for_perfetto_is_written(reading: Reading, file: Path, place: Path) -> None:
    reading.written(file, "--chrome", place / "trace.json")
    assert stat.S_IMODE((place / "trace.json").stat().st_mode) == 0o600
    names = {each["name"] for each in json.loads((place / "trace.json").read_text())["traceEvents"]}
    assert {"SHMEM_MAP", "SHMEM_MAP, refused", "mapped bytes"} <= names


@pytest.mark.parametrize("options", [["-w", "-"], ["--jsonl", "-"]])
def test_captures_go_through_pipes(file: Path, place: Path, options: list[str]) -> None:
    copy = subprocess.run(words(VHU, "read", str(file), *options), capture_output=True, timeout=50, check=True)
    assert copy.stderr == f"vhu read: wrote {len(session())} events\n".encode()
    (place / "copy").write_bytes(copy.stdout)
    assert list(open_capture(place / "copy")) == session()
    from_pipe = subprocess.run(words(VHU, "read", "-"), input=copy.stdout, capture_output=True, timeout=50, check=True)
    assert len(from_pipe.stdout.splitlines()) == 10


def test_a_trace_goes_to_standard_output(reading: Reading, file: Path) -> None:
    _, out, _ = reading.run(file, "--chrome", "-")
    assert json.loads(out)["displayTimeUnit"] == "ns"


def test_a_reader_that_leaves_ends_it_without_a_word(file: Path) -> None:
    with vhu("read", file) as program:
        assert program.process.stdout
        program.process.stdout.close()
        assert program.end() == 0
        assert program.said == ""


def test_a_capture_that_was_cut_off_is_read_up_to_there(reading: Reading, file: Path, place: Path) -> None:
    whole = len(reading.shown(file))
    file.write_bytes(file.read_bytes()[:-3])
    lines = reading.shown(file)
    assert len(lines) == whole
    assert "the capture ends inside of the block at offset" in lines[-1]
    code, _, err = reading.run(file, "-e", "SHMEM_MAP")
    assert code == 0
    assert "the capture ends inside of the block at offset" in one_line(err)
    reading.written(file, "-w", place / "b.jsonl")
    last = list(open_capture(place / "b.jsonl"))[-1]
    assert isinstance(last, Remark)
    assert last.about is Remarkable.LOST


def test_what_is_wrong_in_the_middle_is_said_after_what_came_before(reading: Reading, file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-4:] = b"\xff" * 4
    file.write_bytes(data)
    code, out, err = reading.run(file)
    assert (code, len(out.splitlines())) == (1, 9)
    assert "does not end with its length" in one_line(err)


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["{place}/none"], 1, "there is no capture {place}/none; try: vhu trace -w FILE.pcapng makes one"),
        (["{place}/none", "-w", "{place}/b.jsonl"], 1, "there is no capture {place}/none; try: vhu trace"),
        (["{place}"], 1, "{place}: Is a directory (EISDIR)"),
        (["{place}/text"], 1, "is no capture (pcapng, or JSON Lines): it begins with 68656c6c"),
        (["{place}/a.pcapng", "-w", "{place}/b.pcap"], 1, "a capture is called .pcapng or .jsonl"),
        (["{place}/a.pcapng", "-w", "{place}/no/b.pcapng"], 1, "{place}/no/b.pcapng: No such file or directory (ENOENT)"),
        (["{place}/a.pcapng", "-w", "{place}/a.pcapng"], 2, "{place}/a.pcapng is the capture itself"),
        (["{place}/a.pcapng", "--chrome", "{place}/a.pcapng"], 2, "is the capture itself"),
        (["{place}/a.pcapng", "--chrome", "/dev/full"], 1, "cannot write /dev/full: No space left on device"),
        (
            ["{place}/a.pcapng", "--jsonl", "/dev/full"],
            1,
            "cannot write the capture /dev/full: No space left on device (ENOSPC)",
        ),
        (["{place}/a.pcapng", "-c", "-w", "{place}/b.jsonl"], 2, "-c, -t and --json are of what is shown"),
        (["{place}/a.pcapng", "--jsonl", "x", "--chrome", "y"], 2, "not allowed with argument"),
        (["/dev/null", "-e", "refused", "-w", "{place}/b.jsonl"], 2, "/dev/null is no file, and with -e it is read twice"),
        (["{place}/a.pcapng", "-e", "len >"], 2, "-e: "),
        ([], 2, "required: FILE"),
    ],
)
def test_what_can_not_be_is_said(
    reading: Reading, file: Path, place: Path, arguments: list[str], code: int, says: str
) -> None:
    (place / "text").write_text("hello")
    found, out, err = reading.run(*(argument.format(place=place) for argument in arguments))
    assert (found, out) == (code, "")
    assert says.format(place=place) in err
    assert list(open_capture(file)) == session(), "the capture is as it was"


def test_a_target_stays_as_it_was_where_there_is_nothing_to_read(place: Path) -> None:
    target = place / "kept.pcapng"
    target.write_bytes(b"an older capture")
    assert run(VHU, "read", place / "missing.pcapng", "-w", target).returncode == 1
    assert target.read_bytes() == b"an older capture"


def test_memory_does_not_grow_with_a_capture(place: Path) -> None:
    """What is answered is forgotten."""
    wire = Wire()
    few, many = (measured(capture(place / f"{n}.pcapng", flood(wire, n))) for n in (100, 5000))
    assert many < few + 4096


def flood(wire: Wire, count: int) -> Iterable[Event]:
    yield from wire.agreed()
    for number in range(count):
        yield wire.ask(Q.GET_FEATURES)
        yield wire.answer(Q.GET_FEATURES, U64(number))


def measured(path: Path) -> int:
    """The most memory that it had, in KiB."""
    with open(os.devnull, "wb") as nothing, subprocess.Popen(words(VHU, "read", path), stdout=nothing) as process:
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return used.ru_maxrss
