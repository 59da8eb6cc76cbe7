"""JSON Lines: exact both ways, as the schema says, and readable to who does not decode."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vhostuser.protocol.framing import request_frame
from vhostuser.protocol.numbers import BackendRequest
from vhostuser.protocol.payloads import Mmap
from vhostuser.protocol.rules import Channel
from vhostuser.protocol.state import Role
from vhostuser.trace.capture_error import CaptureError
from vhostuser.trace.decoded import decoded
from vhostuser.trace.event import Event, Message, Remark, Remarkable
from vhostuser.trace.jsonl import LONGEST, JsonlWriter, read_jsonl
from vhostuser.trace.meaning import understood

from .building import BEGAN, FILE, Wire
from .every import EVERY
from .schema import SCHEMA, complaints
from .strategies import events
from .test_pcapng import sample


def written(found: Iterable[Event]) -> bytes:
    file = io.BytesIO()
    writer = JsonlWriter(file)
    for event in found:
        writer.write(event)
    return file.getvalue()


def read(data: bytes) -> list[Event]:
    return list(read_jsonl(io.BytesIO(data)))


def lines(found: Iterable[Event]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in written(found).splitlines()]


@given(st.lists(events, max_size=8))
def test_every_event_comes_back_as_it_was_and_is_as_the_schema_says(found: list[Event]) -> None:
    assert read(written(found)) == found
    assert [complaint for line in lines(found) for complaint in complaints(line)] == []


def test_every_message_of_the_protocol_comes_back_and_is_as_the_schema_says() -> None:
    assert read(written(EVERY)) == list(EVERY)
    assert [complaint for line in lines(EVERY) for complaint in complaints(line)] == []


def test_every_message_of_the_protocol_is_understood_by_itself() -> None:
    assert [understood(message, 0).fault for message in EVERY] == [""] * len(EVERY)


def test_a_line_is_for_people_and_for_programs() -> None:
    frame = request_frame(BackendRequest.SHMEM_MAP, Mmap(0, 0, 0x2000000, 0x2000000), need_reply=True).pack()
    message = Message(BEGAN + 1_500_000_000, 0, Channel.BACKEND, Role.BACKEND, frame, (FILE,))
    assert lines([Remark(BEGAN, 0, Remarkable.OPENED), message])[1] == {
        "v": 1,
        "t": 1.5,
        "event": "message",
        "at": BEGAN + 1_500_000_000,
        "connection": 0,
        "channel": "back-end",
        "dir": "B>F",
        "whole": True,
        "note": "",
        "msg": "SHMEM_MAP",
        "id": 9,
        "flags": ["need_reply"],
        "size": 40,
        "fields": {"shmid": 0, "fd_offset": 0, "shm_offset": 0x2000000, "len": 0x2000000, "flags": 0},
        "fds": [
            {
                "n": 7,
                "kind": "file",
                "path": "/srv/gamma.bin",
                "dev": 1,
                "ino": 1234,
                "size": 64 << 20,
                "access": "r",
                "seals": [],
            }
        ],
        "raw": frame.hex(),
    }


def test_a_message_that_is_wrong_says_why() -> None:
    wrong = Message(BEGAN, 0, Channel.FRONTEND, Role.FRONTEND, request_frame(2, None).pack())
    (line,) = lines([wrong])
    assert line["fault"] == decoded(wrong, 0).fault == "SET_FEATURES payload size 0 must be 8"


def test_empty_lines_are_passed_over() -> None:
    first, *rest = written(sample()).splitlines(keepends=True)
    assert read(b"\n  \r\n".join([b"", first, *rest]) + b"\n") == sample()


def test_a_capture_that_is_cut_off_anywhere_gives_all_whole_events_and_a_remark() -> None:
    data = written(sample()[-4:])
    ends = [0, *(end + 1 for end in range(len(data)) if data[end : end + 1] == b"\n")]
    for length in range(ends[1], len(data) - 1):
        whole = sum(length >= end for end in ends[1:])
        found = read(data[:length])
        assert found[:whole] == sample()[-4:][:whole]
        if length in ends or length + 1 in ends:
            assert len(found) == sum(length + 1 >= end for end in ends[1:])
            continue
        (lost,) = found[whole:]
        assert isinstance(lost, Remark)
        assert lost.about is Remarkable.LOST
        assert lost.text == f"the capture ends inside of the line at offset {ends[whole]}"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"{", "no JSON"),
        (b"[1]", "the line is a list, must be an object"),
        (b"{}", "version None of the format, this program reads 1"),
        (b'{"v": 2}', "version 2 of the format"),
        (b'{"v": 1}', "there is no event"),
        (b'{"v": 1, "event": "message", "at": 1, "connection": 0}', "there is no channel"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"v": ' + b"1" * 5000 + b"}", "no JSON"),
        (b"\xff", "no JSON"),
    ],
)
def test_what_is_wrong_is_said_and_where(line: bytes, words: str) -> None:
    before = written(sample())
    with pytest.raises(CaptureError, match=f"^line {len(sample()) + 1}, at offset {len(before)}: .*{words}"):
        read(before + line + b"\n" + before)


BUFFER = {"v": 1, "event": "offered", "at": 1, "connection": 0, "queue": 0, "head": 0, "start": ""}


@pytest.mark.parametrize(
    ("buffers", "words"),
    [
        (7, "buffers is 7, must be a list"),
        ([[1, 2]], r"a buffer is not \[address, len, writable\]"),
        ([[1, 2, 3]], "a buffer is not"),
        ([[1, -2, True]], "len is -2, must be a number"),
        (["abc"], "a buffer is not"),
    ],
)
def test_a_buffer_that_is_none_is_said(buffers: object, words: str) -> None:
    line = json.dumps(BUFFER | {"buffers": buffers}).encode()
    with pytest.raises(CaptureError, match=words):
        read(line + b"\n")
    assert complaints(json.loads(line))


@pytest.mark.parametrize("name", SCHEMA["oneOf"][0]["required"])
def test_what_the_schema_requires_the_reader_does_too(name: str) -> None:
    (line,) = lines([Wire().ask(1)])
    for wrong in ({key: value for key, value in line.items() if key != name}, line | {name: 7}):
        assert complaints(wrong)
        with pytest.raises(CaptureError, match=f"there is no {name}|{name} is 7, must be"):
            read(json.dumps(wrong).encode() + b"\n")


def test_a_line_that_never_ends_is_not_read_to_its_end() -> None:
    class Endless(io.BytesIO):
        def readline(self, size: int | None = -1) -> bytes:
            assert size == LONGEST
            return b" " * 10 + b"{" + b" " * (LONGEST - 11)

    with pytest.raises(CaptureError, match="line 1, at offset 0: more than 16777216 bytes"):
        list(read_jsonl(Endless()))


def test_a_line_that_would_be_too_long_is_not_written() -> None:
    with pytest.raises(CaptureError, match="more than a line takes, 16777216"):
        written([Message(BEGAN, 0, Channel.FRONTEND, Role.BACKEND, bytes(LONGEST // 2), whole=False)])


@given(st.data())
def test_flipped_bytes_are_events_or_an_error_but_never_a_crash(data: st.DataObject) -> None:
    content = bytearray(written(sample()))
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    try:
        found = read(bytes(content))
    except CaptureError:
        return
    assert len(found) <= len(sample())
