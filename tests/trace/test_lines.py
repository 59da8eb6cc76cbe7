"""One line an item, as strace would show it; plain and bounded, whatever a peer sent."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vhostuser.protocol.layout import Payload
from vhostuser.protocol.numbers import FrontendRequest
from vhostuser.protocol.payloads import U64, Config, Mmap, VringState
from vhostuser.protocol.rules import Channel
from vhostuser.protocol.state import Role
from vhostuser.trace.event import Buffer, Event, FdNote, Message, Offered, Remark, Remarkable, Used
from vhostuser.trace.lines import Lines, as_json, duration

from .building import BEGAN, FILE, B, Q, Wire, items_of

REFUSED = (1 << 64) - 22
LONGEST_LINE = 10_000


def lines_of(*events: Event, colour: bool = False, absolute: bool = False) -> list[str]:
    lines = Lines(colour=colour, absolute=absolute)
    return [line for item in items_of(events) if (line := lines.line(item)) is not None]


def last(*events: Event, colour: bool = False) -> str:
    """The last line, without its time."""
    return lines_of(*events, colour=colour)[-1].partition(" ")[2]


def sent(data: bytes, *, whole: bool = True, note: str = "", fds: tuple[FdNote, ...] = ()) -> Message:
    return Message(BEGAN, 0, Channel.BACKEND, Role.BACKEND, data, fds, whole, note)


def test_a_mapping_is_on_one_line_with_its_answer_and_how_long_that_took() -> None:
    wire = Wire()
    line = last(*wire.agreed(), *wire.map(0x2000000, 0x2000000))
    assert line == "B→F SHMEM_MAP shmid=0 0x2000000+0x2000000 ro fd=7</srv/gamma.bin ino 1234> need_reply = 0 <1.0 µs>"


def test_times_count_from_the_first_item() -> None:
    wire = Wire()
    lines = lines_of(*wire.agreed(), Remark(BEGAN + 1_500_001_000, 0, Remarkable.NOTE, "later"))
    assert (lines[0], lines[-1]) == ("0.0000 --- connection 0 opened", "1.5000 --- connection 0 note: later")


def test_absolute_times_are_the_day_and_time_in_utc() -> None:
    assert lines_of(Remark(BEGAN + 1000, 0, Remarkable.OPENED), absolute=True) == [
        "2023-11-14T22:13:20.000001Z --- connection 0 opened"
    ]
    assert lines_of(Remark(1 << 62, 0, Remarkable.OPENED), absolute=True)[0].endswith("opened")


@pytest.mark.parametrize(
    ("body", "shown"),
    [
        (Mmap(3, 0x1000, 0, 0x1000, 1), "SHMEM_MAP shmid=3 0x0+0x1000 rw fd_offset=0x1000 "),
        (Mmap(0, 0, 0, 0x1000, 6), "SHMEM_MAP shmid=0 0x0+0x1000 ro flags=0x6 "),
    ],
)
def test_what_is_unusual_about_a_mapping_is_shown(body: Payload, shown: str) -> None:
    wire = Wire()
    assert shown in last(*wire.agreed(), wire.call(B.SHMEM_MAP, body, FILE))


@pytest.mark.parametrize(
    ("request_", "body", "shown"),
    [
        (Q.SET_VRING_KICK, U64(3), "SET_VRING_KICK index=3"),
        (Q.SET_VRING_CALL, U64(0x102), "SET_VRING_CALL index=2 no fd"),
        (Q.SET_VRING_ERR, U64(0x1000), "SET_VRING_ERR 0x1000"),
        (Q.SET_STATUS, U64(0x407), "SET_STATUS 0x407 {ACKNOWLEDGE DRIVER DRIVER_OK BIT_10}"),
        (Q.SET_STATUS, U64(0), "SET_STATUS 0x0 {}"),
        (Q.SET_VRING_NUM, VringState(1, 256), "SET_VRING_NUM index=1 num=256"),
        (Q.SET_FEATURES, U64(1 << 32), "SET_FEATURES 0x100000000 {VERSION_1}"),
        (Q.SET_CONFIG, Config(0, 2, 1, b"\x01\x02"), "SET_CONFIG offset=0 size=2 flags=0x1 payload=0102"),
    ],
)
def test_payloads_are_in_words(request_: FrontendRequest, body: Payload, shown: str) -> None:
    assert last(Wire().ask(request_, body)) == f"F→B {shown}"


def test_a_reply_of_its_own_is_in_words_too() -> None:
    wire = Wire()
    events = [wire.ask(Q.GET_VRING_BASE, VringState(1, 0)), wire.answer(Q.GET_VRING_BASE, VringState(1, 7))]
    assert last(*events) == "F→B GET_VRING_BASE index=1 num=0 = index=1 num=7 <1.0 µs>"


def test_the_fd_of_a_reply_is_shown() -> None:
    wire = Wire()
    asked, reply = wire.ask(Q.POSTCOPY_ADVISE), wire.answer(Q.POSTCOPY_ADVISE)
    noted = Message(reply.at, 0, reply.channel, reply.sender, reply.data, (FdNote(9, "other", "anon_inode:[userfaultfd]"),))
    assert last(asked, noted) == "F→B POSTCOPY_ADVISE = fd=9<other anon_inode:[userfaultfd]> <1.0 µs>"


def test_a_refusal_has_its_number_and_its_errno_and_is_red() -> None:
    wire = Wire()
    events = [*wire.agreed(), *wire.map(0, 0x1000, status=REFUSED)]
    assert f"need_reply = {REFUSED} (-EINVAL) <" in last(*events)
    assert f"\033[31m{REFUSED} (-EINVAL)\033[0m" in last(*events, colour=True)
    assert "need_reply = 7 <" in last(*wire.agreed(), *wire.map(0, 0x1000, status=7))


def test_an_empty_answer_to_get_config_is_a_refusal() -> None:
    wire = Wire()
    ask, no = wire.ask(Q.GET_CONFIG, Config(0, 4, 0, bytes(4))), wire.answer(Q.GET_CONFIG)
    assert last(ask, no) == "F→B GET_CONFIG offset=0 size=4 flags=0x0 = refused: an empty payload <1.0 µs>"


def test_a_request_without_reply_says_how_long_it_waited() -> None:
    wire = Wire()
    agreed, asked = wire.agreed(), wire.map(0, 0x1000)[0]
    closed = Remark(asked.at + 5_000_000_000, 0, Remarkable.CLOSED)
    lines = lines_of(*agreed, asked, closed)
    assert lines[-2].endswith("need_reply = ? <no reply in 5.0 s>")
    assert lines[-1].endswith("connection 0 closed")
    assert last(*agreed, asked).endswith("= ? <no reply in 0 ns>")


def test_a_reply_that_answers_nothing_says_so() -> None:
    assert last(Wire().say(B.SHMEM_MAP)) == "F→B SHMEM_MAP reply 0x0 answers no request"


def test_a_malformed_message_is_shown_with_its_bytes_and_the_fault() -> None:
    line = last(sent((9).to_bytes(4, "little") + (1).to_bytes(4, "little") + (3).to_bytes(4, "little") + b"abc"))
    assert line.startswith("B→F SHMEM_MAP 616263 malformed: SHMEM_MAP")
    assert "\033[31mmalformed" in last(sent(bytes(12)), colour=True)


def test_an_unknown_request_is_shown_by_its_number() -> None:
    header = b"".join(value.to_bytes(4, "little") for value in (77, 1, 0))
    assert last(sent(header)) == "B→F request 77 malformed: request 77 is unknown on the back-end channel"


def test_bytes_that_are_no_message_are_cut() -> None:
    line = last(sent(bytes(range(256)), whole=False))
    assert line.startswith("B→F bytes 000102030405")
    assert "1f... (256 bytes) malformed: 256 bytes that are no message" in line


def test_what_was_done_to_a_message_is_shown() -> None:
    header = b"".join(value.to_bytes(4, "little") for value in (2, 1, 0))
    assert last(sent(header, note="delayed 10 ms")).endswith("[delayed 10 ms]")


def test_only_the_first_connection_has_no_number() -> None:
    assert lines_of(Wire(4).ask(Q.SET_OWNER)) == ["0.0000 #4 F→B SET_OWNER"]


def test_fds_show_what_they_are() -> None:
    fds = (
        FdNote(3, "memfd", "/memfd:ram (deleted)", ino=5, seals=("shrink", "seal")),
        FdNote(4, "eventfd", "anon_inode:[eventfd]"),
        FdNote(5, "socket", "socket:[1234]"),
        FdNote(6, "other"),
    )
    header = b"".join(value.to_bytes(4, "little") for value in (3, 1, 0))
    line = last(sent(header, fds=fds))
    for shown in (
        "fd=3</memfd:ram (deleted) ino 5 sealed shrink,seal>",
        "fd=4<anon_inode:[eventfd]>",
        "fd=5<socket:[1234]>",
        "fd=6<other>",
    ):
        assert shown in line


def test_requests_of_a_ring_and_their_completions() -> None:
    offered = Offered(BEGAN, 0, 1, 3, (Buffer(0x1000, 16, False), Buffer(0x2000, 513, True)), b"\x01\x02")
    used = Used(BEGAN, 0, 1, 3, 513, b"ab", b"\0", 52_000)
    assert lines_of(offered, used) == [
        "0.0000 queue 1 → head=3 16 bytes to read, 513 to write 0102",
        "0.0000 queue 1 ← head=3 513 bytes 6162... <52 µs>",
    ]


def test_a_request_of_a_disk_is_in_words_with_its_answer() -> None:
    header = bytes(8) + (8).to_bytes(8, "little")
    offered = Offered(BEGAN, 0, 0, 3, (Buffer(0x1000, 16, False), Buffer(0x2000, 513, True)), header)
    lines = lines_of(offered, Used(BEGAN, 0, 0, 3, 513, b"ab", b"\0"))
    assert [("sector" in lines[0]), ("OK" in lines[1])] == [True, True]


@pytest.mark.parametrize(
    ("nanoseconds", "shown"),
    [(0, "0 ns"), (999, "999 ns"), (1000, "1.0 µs"), (31_400, "31 µs"), (999_999, "1.0 ms"), (5_000_000_000, "5.0 s")],
)
def test_durations(nanoseconds: int, shown: str) -> None:
    assert duration(nanoseconds) == shown


HOSTILE = "\x1b]0;owned\x07\x1b[2J\r\n\u202e/tmp/\udcff"


def test_nothing_that_a_peer_sends_reaches_the_terminal_unescaped() -> None:
    hostile = FdNote(7, "file", HOSTILE, ino=1)
    wire = Wire()
    events = [
        *wire.agreed(),
        *wire.map(0, 0x1000, fd=hostile),
        Remark(BEGAN, 0, Remarkable.BROKEN, HOSTILE),
        sent(bytes(40), note=HOSTILE),
    ]
    for line in lines_of(*events, colour=True):
        assert re.sub("\033\\[[0-9]+m", "", line).isprintable()


def test_a_line_is_bounded() -> None:
    fds = tuple(FdNote(number, "file", "/x" * 2000) for number in range(253))
    header = b"".join(value.to_bytes(4, "little") for value in (26, 1, 4096))
    assert len(last(sent(header + bytes(4096), fds=fds, note="n" * 5000))) < LONGEST_LINE
    assert len(last(Remark(BEGAN, 0, Remarkable.NOTE, "t" * 100_000))) < LONGEST_LINE


def test_the_json_object_is_flat_and_by_the_specifications_names() -> None:
    wire = Wire()
    item = items_of([*wire.agreed(), *wire.map(0x2000000, 0x2000000)])[-1]
    assert as_json(item, began=BEGAN) == {
        "v": 1,
        "t": 8e-06,
        "at": BEGAN + 8000,
        "connection": 0,
        "index": 7,
        "dir": "B>F",
        "channel": "back-end",
        "msg": "SHMEM_MAP",
        "id": 9,
        "flags": ["need_reply"],
        "size": 40,
        "shmid": 0,
        "fd_offset": 0,
        "shm_offset": 33554432,
        "len": 33554432,
        "payload_flags": 0,
        "writable": False,
        "fds": [
            {
                "n": 7,
                "kind": "file",
                "path": "/srv/gamma.bin",
                "dev": 1,
                "ino": 1234,
                "size": 64 << 20,
                "access": "r",
            }
        ],
        "reply": 0,
        "lat_us": 1.0,
    }


def test_what_went_wrong_is_in_the_json_object() -> None:
    wire = Wire()
    agreed = wire.agreed()
    refused = as_json(items_of([*agreed, *wire.map(0, 0x1000, status=REFUSED)])[-1])
    assert (refused["refused"], refused["reply"]) == (True, REFUSED)
    alone = as_json(items_of([*agreed, wire.map(0, 0x1000)[0]])[-1])
    assert (alone["unanswered"], alone["waited_us"], "reply" in alone) == (True, 0, False)
    assert as_json(items_of([wire.say(B.SHMEM_MAP)])[0])["orphan"] is True
    odd = as_json(items_of([sent(b"\x09\0\0\0\x31\0\0\0\0\0\0\0", note="changed")])[0])
    assert (odd["flags"], odd["notes"], odd["data"]) == (["0x31"], ["changed"], "090000003100000000000000")
    assert odd["faults"]


def test_a_reply_of_its_own_is_its_fields_or_its_number() -> None:
    wire = Wire()
    base = items_of([wire.ask(Q.GET_VRING_BASE, VringState(1, 0)), wire.answer(Q.GET_VRING_BASE, VringState(1, 7))])[0]
    features = items_of([wire.ask(Q.GET_FEATURES), wire.answer(Q.GET_FEATURES, U64(5))])[0]
    assert as_json(base)["reply"] == {"index": 1, "num": 7}
    assert as_json(features)["reply"] == 5


@given(
    st.lists(
        st.tuples(
            st.sampled_from(list(Channel)),
            st.sampled_from(list(Role)),
            st.binary(max_size=80)
            | st.builds(
                lambda n, p: bytes([n, 0, 0, 0, 1, 0, 0, 0, len(p), 0, 0, 0]) + p, st.integers(0, 50), st.binary(max_size=60)
            ),
            st.booleans(),
            st.text(max_size=20),
        ),
        max_size=6,
    )
)
def test_any_bytes_become_plain_lines_and_json(pieces: list[tuple[Channel, Role, bytes, bool, str]]) -> None:
    events = [
        Message(BEGAN + n, 0, channel, sender, data, (FdNote(n, "file", text),), whole and len(data) >= 12, text)
        for n, (channel, sender, data, whole, text) in enumerate(pieces)
    ]
    assert all(line.isprintable() for line in lines_of(*events))
    for item in items_of(events):
        assert json.loads(json.dumps(as_json(item)))["v"] == 1
