"""pcapng: exact both ways, whoever wrote it; what is cut off is readable up to there, and what is wrong is said."""

from __future__ import annotations

import contextlib
import errno
import io
import struct
from collections.abc import Iterable
from dataclasses import replace
from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vhostuser.protocol.rules import Channel
from vhostuser.protocol.state import Role
from vhostuser.trace.blocks import (
    COMMENT,
    INTERFACE,
    LARGEST_BLOCK,
    PACKET,
    SECTION,
    Block,
    pack_block,
    pack_section,
    read_blocks,
)
from vhostuser.trace.capture_error import CaptureError
from vhostuser.trace.event import Buffer, Event, Message, Offered, Remark, Remarkable
from vhostuser.trace.exported import LARGEST_DATA, PIECE
from vhostuser.trace.pcapng import PcapngWriter, read_pcapng

from .building import BEGAN, FILE, Wire
from .every import EVERY
from .strategies import events

IF_TSRESOL, IF_TSOFFSET = 9, 14
NAME = b"\x00\x0c\x00\x0cvhostuser\x00\x00\x00\x00\x00\x00\x00"
"""What stands before a message of the main channel."""
OUTBOUND = (2, struct.pack("<I", 2))
MOST_AT_ONCE = 1 << 16


def written(found: Iterable[Event]) -> bytes:
    file = io.BytesIO()
    writer = PcapngWriter(file)
    for event in found:
        writer.write(event)
    return file.getvalue()


def read(data: bytes) -> list[Event]:
    return list(read_pcapng(io.BytesIO(data)))


def blocks(data: bytes) -> list[Block]:
    return list(read_blocks(io.BytesIO(data)))


@cache
def sample() -> list[Event]:
    """A short conversation with all that a capture may hold."""
    wire = Wire()
    broken = Message(wire.now(), 3, Channel.BACKEND, Role.FRONTEND, b"xyz", (), whole=False, note="cut")
    offered = Offered(wire.now(), 1, 2, 3, (Buffer(4096, 16, writable=False),), b"start")
    return [*wire.agreed(), *wire.map(0, 4096), wire.remark(Remarkable.NOTE, "late ☃"), broken, offered]


def interface(*options: tuple[int, bytes], link_type: int = 252) -> bytes:
    return pack_block(INTERFACE, struct.pack("<HHI", link_type, 0, 0), list(options))


def packet(
    data: bytes, *options: tuple[int, bytes], ticks: int = 0, number: int = 0, captured: int | None = None, more: int = 0
) -> bytes:
    kept = len(data) if captured is None else captured
    head = struct.pack("<IIIII", number, ticks >> 32, ticks & 0xFFFFFFFF, kept, len(data) + more)
    return pack_block(PACKET, head + data + bytes(-len(data) % 4), list(options))


@given(st.lists(events, max_size=8))
def test_every_event_comes_back_as_it_was(found: list[Event]) -> None:
    assert read(written(found)) == found


def test_every_message_of_the_protocol_comes_back_as_it_was() -> None:
    assert read(written(EVERY)) == list(EVERY)


@pytest.mark.parametrize("size", [0, 1, LARGEST_DATA - 1, LARGEST_DATA, LARGEST_DATA + 1, 1_000_000])
def test_bytes_of_any_size_come_back_as_they_were(size: int) -> None:
    found = Message(BEGAN, 0, Channel.FRONTEND, Role.BACKEND, bytes(size), whole=False)
    data = written([found, *sample()])
    assert read(data) == [found, *sample()]
    assert max(len(block.body) for block in blocks(data)) < 1 << 18, "Wireshark takes no larger packet"


@pytest.mark.parametrize("length", [0, 100, PIECE - 90, PIECE, 3 * PIECE])
def test_remarks_of_any_length_come_back_as_they_were(length: int) -> None:
    for grown in range(length, length + 70):
        found = replace(Wire().ask(1), fds=(FILE,) * 2, note="x" * grown)
        assert read(written([found])) == [found]


def test_as_many_fds_as_a_message_may_have_come_back() -> None:
    fds = tuple(replace(FILE, number=n, path="/" + "\udcff☃" * 2000) for n in range(253))
    found = replace(Wire().ask(5), fds=fds)
    assert read(written([found])) == [found]


def test_a_request_of_as_many_buffers_as_a_ring_has_comes_back() -> None:
    found = Offered(BEGAN, 0, 0, 0, tuple(Buffer(n << 32, n, writable=bool(n % 2)) for n in range(32768)))
    assert read(written([found, *sample()])) == [found, *sample()]


@pytest.mark.parametrize("size", [LARGEST_BLOCK // 2, LARGEST_BLOCK])
def test_what_is_more_than_a_capture_takes_is_refused(size: int) -> None:
    with pytest.raises(CaptureError, match="more than a capture takes, 16777216"):
        written([Message(BEGAN, 0, Channel.FRONTEND, Role.BACKEND, bytes(size))])


@pytest.mark.parametrize("change", [{"at": -1}, {"at": 1 << 64}, {"connection": 1 << 32}, {"connection": -1}])
def test_a_number_that_has_no_place_is_refused(change: dict[str, int]) -> None:
    with pytest.raises(CaptureError, match="has no place in a pcapng"):
        written([replace(Wire().ask(1), **change)])  # type: ignore[arg-type]  # both are numbers


class Recording(io.BytesIO):
    """A file that remembers what it was asked for, and may take little at a time."""

    def __init__(self, data: bytes = b"", *, takes: int = 1 << 30) -> None:
        super().__init__(data)
        self.calls: list[int] = []
        self.takes = takes

    def read(self, size: int | None = -1) -> bytes:
        self.calls.append(-1 if size is None else size)
        return super().read(size)

    def write(self, data: object) -> int:
        piece = bytes(data)[: self.takes]  # type: ignore[call-overload]  # whatever has bytes
        self.calls.append(len(piece))
        return super().write(piece)


def test_each_event_is_written_whole_in_one_call() -> None:
    file = Recording()
    writer = PcapngWriter(file)
    for event in sample():
        before = len(file.getvalue())
        file.calls.clear()
        writer.write(event)
        block = blocks(file.getvalue())[-1]
        assert file.calls == [len(file.getvalue()) - before]
        assert block.offset == before


def test_a_file_that_takes_little_at_a_time_gets_all() -> None:
    file = Recording(takes=7)
    writer = PcapngWriter(file)
    for event in sample():
        writer.write(event)
    assert read(file.getvalue()) == sample()


class Full(io.BytesIO):
    name = "full.pcapng"

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room = room

    def write(self, data: object) -> int:
        piece = bytes(data)[: self.room]  # type: ignore[call-overload]  # whatever has bytes
        if not piece:
            raise OSError(errno.ENOSPC, "No space left on device")
        self.room -= len(piece)
        return super().write(piece)


def write_all(writer: PcapngWriter) -> None:
    for event in sample():
        writer.write(event)


def test_a_full_disk_is_said_and_what_was_written_can_be_read() -> None:
    file = Full(1000)
    writer = PcapngWriter(file)
    with pytest.raises(CaptureError, match=r"cannot write the capture full.pcapng: No space left on device \(ENOSPC\)"):
        write_all(writer)
    *whole, lost = read(file.getvalue())
    assert whole == sample()[: len(whole)]
    assert len(whole) > 3
    assert isinstance(lost, Remark)
    assert lost.about is Remarkable.LOST


# Who else writes, and what


def test_a_file_in_big_endian_order_is_read() -> None:
    assert read(b"".join(map(swapped, blocks(written(sample()))))) == sample()


def swapped(block: Block) -> bytes:
    """The same block in big-endian byte order."""
    layout = {SECTION: "IHHq", INTERFACE: "HHI", PACKET: "IIIII"}[block.type]
    values = struct.unpack_from("<" + layout, block.body)
    start = struct.calcsize("<" + layout)
    end = start + (values[3] + -values[3] % 4 if block.type == PACKET else 0)
    packed = b"".join(swapped_option(block.type, code, value) for code, value in block.options(end)) + bytes(4)
    body = struct.pack(">" + layout, *values) + block.body[start:end] + packed
    return struct.pack(">II", block.type, len(body) + 12) + body + struct.pack(">I", len(body) + 12)


def swapped_option(type: int, code: int, value: bytes) -> bytes:
    number = type == PACKET and code == 2
    return struct.pack(">HH", code, len(value)) + (value[::-1] if number else value) + bytes(-len(value) % 4)


@pytest.mark.parametrize(
    ("options", "ticks", "at"),
    [
        ([], 1_700_000_000_000_001, 1_700_000_000_000_001_000),
        ([(IF_TSRESOL, b"\x03")], 1_700_000_000_007, 1_700_000_000_007_000_000),
        ([(IF_TSRESOL, b"\x80")], 1_700_000_000, 1_700_000_000_000_000_000),
        ([(IF_TSRESOL, b"\x8a")], 1536, 1_500_000_000),
        ([(IF_TSRESOL, b"\x0c")], 2_000_000_999, 2_000_000),
        ([(IF_TSOFFSET, struct.pack("<q", 1000))], 5, 1_000_000_005_000),
        ([(IF_TSOFFSET, struct.pack("<q", -1))], 1_000_005, 5_000),
    ],
)
def test_clocks_of_any_resolution_are_read(options: list[tuple[int, bytes]], ticks: int, at: int) -> None:
    data = pack_section([]) + interface(*options) + packet(NAME + b"?", OUTBOUND, ticks=ticks)
    (found,) = read(data)
    assert found.at == at


def test_what_others_wrote_between_is_passed_over() -> None:
    first, *rest = (data[block.offset :][: len(block.body) + 12] for data in [written(sample())] for block in blocks(data))
    foreign = [
        pack_block(0x0BAD, b"abcd", [(1, b"comment")]),
        pack_block(4, bytes(4), []),
        pack_block(3, struct.pack("<I", 4) + b"abcd", []),
        interface(link_type=1) + packet(b"ethernet", number=3),
        interface() + packet(b"\x00\x0c\x00\x08whatever\x00\x00\x00\x00data", OUTBOUND, number=4),
    ]
    assert read(first + b"".join(rest[:3]) + b"".join(foreign) + b"".join(rest[3:])) == sample()


def test_comments_of_others_are_not_ours() -> None:
    data = pack_section([]) + interface(*[(IF_TSRESOL, b"\x09")])
    ours = (COMMENT, b'{"vhostuser": 1, "note": "slow"}')
    data += packet(NAME + b"?", (COMMENT, b"look here!"), ours, (COMMENT, b"{"), OUTBOUND, (2988, b"custom"), ticks=BEGAN)
    assert read(data) == [Message(BEGAN, 0, Channel.FRONTEND, Role.FRONTEND, b"?", note="slow")]


def test_two_captures_one_after_the_other_are_one() -> None:
    assert read(written(sample()) * 2) == sample() * 2


def test_a_capture_of_nothing_has_no_events() -> None:
    assert read(written([])) == []
    assert read(pack_section([])) == []


# What is cut off, or wrong


def test_a_capture_that_is_cut_off_anywhere_gives_all_whole_events_and_a_remark() -> None:
    data = written(sample())
    first, *starts = [block.offset for block in blocks(data)][1:]
    ends = [*starts[2:], len(data)]
    for length in range(len(data)):
        if length < first:
            with pytest.raises(CaptureError, match=r"ends inside of the block at offset 0|capture is empty"):
                read(data[:length])
            continue
        whole = sum(length >= end for end in ends[1:])
        found = read(data[:length])
        assert found[:whole] == sample()[:whole]
        if length in (first, *starts):
            assert len(found) == whole
        else:
            (lost,) = found[whole:]
            assert isinstance(lost, Remark)
            assert lost.about is Remarkable.LOST
            assert "the capture ends inside of the block at offset" in lost.text


def test_an_event_of_several_packets_that_is_cut_off_is_no_event() -> None:
    large = Message(BEGAN, 0, Channel.FRONTEND, Role.BACKEND, bytes(LARGEST_DATA), whole=False)
    data = written([*sample(), large])
    *found, lost = read(data[: blocks(data)[-1].offset])
    assert found == sample()
    assert isinstance(lost, Remark)
    assert "ends inside of the last event" in lost.text


HEAD = pack_section([]) + interface()
WRONG = {
    "empty": (b"", "the capture is empty"),
    "another file": (b"\x7fELF" + bytes(60), "no pcapng: it begins with 7f454c46"),
    "another pcap": (bytes.fromhex("d4c3b2a1020004000000000000000000"), "no pcapng"),
    "no byte-order magic": (
        struct.pack("<III", SECTION, 28, 7) + bytes(16),
        "offset 0 has no byte-order magic: 07000000",
    ),
    "another version": (
        struct.pack("<IIIHHqI", SECTION, 28, 0x1A2B3C4D, 2, 0, -1, 28),
        r"block at offset 0 \(type 0xa0d0d0a\): pcapng version 2 is not 1",
    ),
    "a huge length": (HEAD + struct.pack("<III", 6, 0xFFFFFFFC, 0), "offset 48: 4294967292 is no length of one"),
    "a length of nothing": (HEAD + struct.pack("<III", 6, 0, 0), "offset 48: 0 is no length"),
    "a crooked length": (HEAD + struct.pack("<IIIH", 6, 14, 0, 14), "offset 48: 14 is no length"),
    "another length at the end": (
        HEAD + struct.pack("<IIII", 9, 16, 0, 12),
        "it does not end with its length, 16",
    ),
    "no such interface": (HEAD + packet(b"", number=1), "offset 48 .*interface 1 is not described"),
    "a packet that is too long": (HEAD + packet(b"abc", captured=5), "5 bytes of packet pass its end"),
    "a packet that was cut": (HEAD + packet(NAME, OUTBOUND, more=9), "only 20 of 29 bytes were kept"),
    "a short packet block": (HEAD + pack_block(PACKET, bytes(8), []), "its 8 bytes end before the field at 12"),
    "a short interface": (pack_section([]) + pack_block(INTERFACE, b"", []), "its 0 bytes end before the field at 0"),
    "an option that is too long": (
        HEAD + pack_block(PACKET, struct.pack("<IIIII", 0, 0, 0, 20, 20) + NAME + struct.pack("<HH", 1, 9) + bytes(4), []),
        "option 1 of 9 bytes passes its end",
    ),
    "tags without an end": (HEAD + packet(NAME[:-4], OUTBOUND), "the tags before its packet do not end"),
    "no direction": (HEAD + packet(NAME), "its flags do not say which way it went"),
    "two directions": (HEAD + packet(NAME, (2, struct.pack("<I", 3))), "its flags do not say which way it went"),
    "interfaces without end": (pack_section([]) + interface() * 1025, "more than 1024 interfaces"),
    "a wrong clock": (pack_section([]) + interface((IF_TSRESOL, b"")), "its clock is described"),
    "a time that is out of range": (
        pack_section([]) + interface((IF_TSRESOL, b"\x00")) + packet(NAME, OUTBOUND, ticks=1 << 63),
        "is out of range",
    ),
    "a time before all times": (
        pack_section([]) + interface((IF_TSOFFSET, struct.pack("<q", -9))) + packet(NAME, OUTBOUND),
        "its time, -9000000000 ns, is out of range",
    ),
    "a comment that is no JSON": (HEAD + packet(NAME, (COMMENT, b'{"vhostuser": 1,'), OUTBOUND), "offset 48 .*no JSON"),
    "a comment of wrong fds": (
        HEAD + packet(NAME, (COMMENT, b'{"vhostuser": 1, "fds": [{"seals": [], "dev": -1}]}'), OUTBOUND),
        "offset 48 .*dev is -1, must be a number",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_said_and_where(name: str) -> None:
    data, words = WRONG[name]
    with pytest.raises(CaptureError, match=words):
        read(data)


def event_packet(text: bytes) -> bytes:
    return HEAD + packet(b"\x00\x0c\x00\x10vhostuser_event\x00\x00\x00\x00\x00" + text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"", "no JSON"),
        (b"[" * 100_000, "nested too deeply"),
        (b"[]", "the event is a list, must be an object"),
        (b'{"event": "used"}', "there is no at"),
        (b'{"at": 1, "connection": 0}', "there is no event"),
        (b'{"event": "other", "at": 1, "connection": 0}', "event 'other' is none of message, offered, used, remark"),
        (b'{"event": "remark", "at": 1, "connection": 0, "about": "x", "text": ""}', "about is 'x', must be one of opened"),
        (b'{"event": "remark", "at": true, "connection": 0}', "at is True, must be a number from 0"),
        (b'{"event": "remark", "at": NaN, "connection": 0}', "NaN is no number"),
        (b'{"event": "remark", "at": 1e3, "connection": 0}', "at is 1000.0, must be a number"),
        (b'{"event": "remark", "at": 18446744073709551616, "connection": 0}', "at is 18446744073709551616, must be"),
        (b"\xff\xfe", "no JSON"),
    ],
)
def test_an_event_that_is_none_is_said_and_where(text: bytes, words: str) -> None:
    with pytest.raises(CaptureError, match=f"^the block at offset 48 .*{words}"):
        read(event_packet(text))


@given(st.data())
def test_flipped_bytes_are_events_or_an_error_but_never_a_crash(data: st.DataObject) -> None:
    content = bytearray(written(sample()))
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    outcome(bytes(content))


@given(st.binary(max_size=200))
def test_any_bytes_after_a_section_are_events_or_an_error(data: bytes) -> None:
    outcome(HEAD + data)


def outcome(content: bytes) -> None:
    """Read it: bounded pieces, and no more of them than the file has."""
    file = Recording(content)
    with contextlib.suppress(CaptureError):
        assert len(list(read_pcapng(file))) <= len(content)
    assert max(file.calls) <= MOST_AT_ONCE
    assert len(file.calls) <= len(content) + 1
