"""Captures by name: what is read is recognised, what is written is called what it is, and a killed writer's can be read."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from io import FileIO
from pathlib import Path

import pytest

from vhostuser.protocol.rules import Channel
from vhostuser.protocol.state import Role
from vhostuser.trace import capture
from vhostuser.trace.capture import CaptureError, create_capture, open_capture
from vhostuser.trace.event import Event, Message, Remark, Remarkable
from vhostuser.trace.pcapng import PcapngWriter

from .building import BEGAN
from .test_pcapng import sample

FORMATS = [".pcapng", ".jsonl"]


def fill(path: Path) -> list[Event]:
    writer = create_capture(path)
    for event in sample():
        writer.write(event)
    writer.close()
    return sample()


@pytest.mark.parametrize("suffix", FORMATS)
def test_what_was_written_is_read_whatever_it_is_called_by_then(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    found = fill(path)
    assert list(open_capture(path)) == found
    assert list(open_capture(str(path.rename(tmp_path / "other.name")))) == found


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_new_capture_is_its_owner_s_alone_and_one_that_is_there_keeps_its_rights(tmp_path: Path, suffix: str) -> None:
    new, old = tmp_path / f"new{suffix}", tmp_path / f"old{suffix}"
    old.touch()
    old.chmod(0o664)
    umask = os.umask(0)
    try:
        assert fill(new) == fill(old)
    finally:
        os.umask(umask)
    assert [stat.S_IMODE(path.stat().st_mode) for path in (new, old)] == [0o600, 0o664]


@pytest.mark.parametrize("suffix", FORMATS)
def test_every_event_is_in_the_file_at_once(tmp_path: Path, suffix: str) -> None:
    writer = create_capture(tmp_path / f"a{suffix}")
    for number, event in enumerate(sample(), 1):
        writer.write(event)
        assert list(open_capture(tmp_path / f"a{suffix}")) == sample()[:number]
    writer.close()


def test_a_new_capture_replaces_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "a.pcapng"
    path.write_bytes(b"x" * 100_000)
    found = fill(path)
    assert list(open_capture(path)) == found


@pytest.mark.parametrize("name", ["a", "a.pcap", "pcapng", "a.pcapng.gz", ".pcapng"])
def test_a_name_that_says_no_format_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(CaptureError, match=r"a capture is called \.pcapng or \.jsonl"):
        create_capture(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"\x7fELF", b"\xd4\xc3\xb2\xa1" + bytes(20), b"hello", b"[]"])
def test_another_file_is_said_to_be_none(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.pcapng"
    path.write_bytes(content)
    with pytest.raises(CaptureError, match="is no capture"):
        list(open_capture(path))


def test_a_file_that_is_not_there_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        list(open_capture(tmp_path / "a.pcapng"))
    with pytest.raises(FileNotFoundError):
        create_capture(tmp_path / "no" / "a.pcapng")


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_full_disk_is_said(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    path.symlink_to("/dev/full")
    with pytest.raises(CaptureError, match=rf"cannot write the capture {path}: No space left on device \(ENOSPC\)"):
        fill_and_close(path)


def fill_and_close(path: Path) -> None:
    writer = create_capture(path)
    try:
        for event in sample():
            writer.write(event)
    finally:
        writer.close()


def test_a_pipe_carries_a_capture_and_its_end_is_said(tmp_path: Path) -> None:
    come, go = os.pipe()
    command = [sys.executable, "-c", COPY.format(path=[each for each in sys.path if each])]
    with subprocess.Popen(command, stdin=come, stdout=subprocess.PIPE) as copier, open(go, "wb") as file:
        os.close(come)
        file.write(fill_pipe(tmp_path))
        file.close()
        copied = copier.communicate(timeout=50)[0]
    assert copier.returncode == 0
    (tmp_path / "copy").write_bytes(copied)
    assert list(open_capture(tmp_path / "copy")) == sample()


def fill_pipe(folder: Path) -> bytes:
    fill(folder / "a.pcapng")
    return (folder / "a.pcapng").read_bytes()


COPY = """
import sys
sys.path[:0] = {path!r}
from vhostuser.trace.capture import create_capture, open_capture
writer = create_capture("-")
for event in open_capture("-"):
    writer.write(event)
writer.close()
"""

KILLED = """
import itertools, os, sys
sys.path[:0] = {path!r}
from tests.trace.test_pcapng import sample
from vhostuser.trace.capture import create_capture
writer = create_capture({file!r})
for count in itertools.count(1):
    for event in sample():
        writer.write(event)
    os.write(1, b"x")
"""


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_capture_of_a_killed_tracer_can_be_read(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    script = KILLED.format(path=[each for each in sys.path if each], file=str(path))
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as writer:
        assert writer.stdout
        said = len(os.read(writer.stdout.fileno(), 3))
        writer.send_signal(signal.SIGKILL)
    found = list(open_capture(path))
    if isinstance(found[-1], Remark) and found[-1].about is Remarkable.LOST:
        found.pop()
    rounds = len(found) // len(sample())
    assert rounds >= said
    assert found == (sample() * (rounds + 1))[: len(found)]


def test_a_reader_that_stops_early_leaves_no_file_open(tmp_path: Path) -> None:
    fill(tmp_path / "a.pcapng")
    events = open_capture(tmp_path / "a.pcapng")
    assert next(events) == sample()[0]
    events.close()  # type: ignore[attr-defined]  # it is a generator


def test_the_errors_of_a_capture_are_in_the_tree_of_all() -> None:
    assert issubclass(capture.EndsEarly, CaptureError)


def test_a_pipe_that_does_not_block_is_waited_for(tmp_path: Path) -> None:
    come, go = os.pipe()
    os.set_blocking(go, False)
    large = Message(BEGAN, 0, Channel.FRONTEND, Role.BACKEND, bytes(150_000), whole=False)
    script = "import shutil, sys; shutil.copyfileobj(sys.stdin.buffer, sys.stdout.buffer)"
    command = [sys.executable, "-c", script]
    with (tmp_path / "copy").open("wb") as copy, subprocess.Popen(command, stdin=come, stdout=copy) as reader:
        os.close(come)
        writer = PcapngWriter(FileIO(go, "wb"))
        for _ in range(5):
            writer.write(large)
        writer.close()
        assert reader.wait(50) == 0
    assert list(open_capture(tmp_path / "copy")) == [large] * 5
