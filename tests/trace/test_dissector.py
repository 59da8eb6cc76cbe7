"""The Wireshark dissector, in tshark: it sees in every message what this package sees, and its fields can be filtered."""

from __future__ import annotations

import json
import random
import re
import struct
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from vhostuser.protocol.framing import Frame, reply_frame, request_frame
from vhostuser.protocol.numbers import NEED_REPLY, REPLY, VRING_INDEX_MASK, VRING_NO_FD, protocol_feature_names
from vhostuser.protocol.payloads import U64, Config, MemoryRegion, MemoryTable, Mmap, ShmemConfig
from vhostuser.protocol.rules import RULES, Channel, Fds, Reply
from vhostuser.protocol.state import Role
from vhostuser.trace.capture import open_capture
from vhostuser.trace.decoded import Decoded
from vhostuser.trace.dissector import ACK, dissector
from vhostuser.trace.event import Buffer, Event, FdNote, Message, Offered, Remarkable, Used
from vhostuser.trace.exported import LARGEST_DATA
from vhostuser.trace.meaning import TWO_ANSWERS, understood
from vhostuser.virtio.numbers import feature_names

from .building import BEGAN, FILE, Q, Wire
from .every import EVERY
from .shark import Shark, shark_tank
from .test_pcapng import HEAD, NAME, OUTBOUND, packet, sample

Values = dict[str, list[int | str]]
KNOWN = [understood(message, index) for index, message in enumerate(EVERY)]
OWN = {
    *(
        "channel",
        "sender",
        "connection",
        "message",
        "request",
        "flags",
        "size",
        "fds",
        "fd",
        "reply_in",
        "reply_to",
        "latency",
    ),
    *("refused", "malformed"),
}
"""Fields that are no payload's."""


@pytest.fixture(scope="module")
def shark() -> Iterator[Shark]:
    with shark_tank() as found:
        yield found


def expected(known: Decoded) -> Values:
    """What tshark should see in the payload of a message: fields by their full names."""
    assert known.rule
    place = f"vhostuser.{known.rule.name.lower()}"
    values = known.values()
    if is_acknowledgement(known):
        return {ACK: [_plain(values["value"])]}
    found: Values = {}
    for name, value in values.items():
        if isinstance(value, list):
            for region in value:
                for field, number in region.items():
                    found.setdefault(f"{place}.{name}.{field}", []).append(number)
        elif isinstance(value, dict):
            found |= {f"{place}.shmid": [int(shmid) for shmid in value], f"{place}.size": list(value.values())}
        else:
            found[f"{place}.{name}"] = [_plain(value)]
    return found | _parts_of_numbers(known, place)


def is_acknowledgement(known: Decoded) -> bool:
    rule = known.rule
    if rule is None or known.message.asks or not isinstance(known.body, U64):
        return False
    return rule.reply is Reply.ACK or rule.reply in TWO_ANSWERS


def _plain(value: object) -> int | str:
    assert isinstance(value, int | bytes)
    return value.hex() if isinstance(value, bytes) else value


def _parts_of_numbers(known: Decoded, place: str) -> Values:
    """The bits that have names."""
    body, rule = known.body, known.rule
    if isinstance(body, U64) and rule and rule.fds is Fds.UNLESS_NO_FD:
        return {f"{place}.index": [body.value & VRING_INDEX_MASK], f"{place}.no_fd": [int(bool(body.value & VRING_NO_FD))]}
    if isinstance(body, Mmap) and known.name == "SHMEM_MAP":
        return {f"{place}.writable": [int(body.writable)]}
    if isinstance(body, U64) and known.name.endswith("PROTOCOL_FEATURES"):
        return {f"vhostuser.protocol_features.{name.lower()}": [1] for name in protocol_feature_names(body.value)}
    if isinstance(body, U64) and known.name.endswith("_FEATURES"):
        return {f"vhostuser.features.{name.lower()}": [1] for name in feature_names(body.value)}
    return {}


@pytest.fixture(scope="module")
def every(shark: Shark) -> list[Values]:
    """What it shows of EVERY."""
    return packets(shark, EVERY)


def packets(shark: Shark, found: Iterable[Message]) -> list[Values]:
    """All fields of ours that tshark shows of these messages, by full name, from its JSON."""
    seen = json.loads(shark.run(shark.capture(found), "-T", "json"), object_pairs_hook=list)
    return [_fields(each) for each in seen]


def _fields(node: Any) -> Values:
    found: Values = defaultdict(list)

    def walk(pairs: Any) -> None:
        for name, value in pairs:
            if isinstance(value, list) and value and isinstance(value[0], tuple):
                walk(value)
            elif name.startswith("vhostuser."):
                found[name] += [_value(each) for each in (value if isinstance(value, list) else [value])]

    walk(node)
    return dict(found)


def _value(text: str) -> int | str:
    """A value as tshark writes it: a number, bytes with colons, or words."""
    if re.fullmatch(r"0x[0-9a-f]+|\d+", text) and not re.fullmatch(r"0\d+", text):
        return int(text, 0)
    return text.replace(":", "") if re.fullmatch(r"([0-9a-f]{2}:)*[0-9a-f]{2}", text) else text


def payload_fields(found: Values) -> Values:
    return {name: value for name, value in found.items() if name.split(".")[1] not in OWN}


def test_every_field_of_every_message_is_what_we_see(every: list[Values]) -> None:
    for known, seen in zip(KNOWN, every, strict=True):
        assert payload_fields(seen) == expected(known), known


def test_every_header_is_what_we_see(every: list[Values]) -> None:
    for known, seen in zip(KNOWN, every, strict=True):
        message = known.message
        assert (seen["vhostuser.channel"], seen["vhostuser.sender"]) == ([message.channel.value], [message.sender.value])
        assert (seen["vhostuser.message"], seen["vhostuser.request"]) == ([known.name], [message.request])
        assert (seen["vhostuser.flags"], seen["vhostuser.size"]) == ([message.flags], [len(message.payload)])
        assert seen["vhostuser.flags.reply"] == [int(bool(message.flags & REPLY))]
        assert seen["vhostuser.flags.need_reply"] == [int(bool(message.flags & NEED_REPLY))]
        assert seen["vhostuser.fds"] == [len(message.fds)]


def test_every_field_can_be_filtered_and_finds_its_own_messages_only(shark: Shark) -> None:
    holders: dict[str, set[int]] = defaultdict(set)
    for index, known in enumerate(KNOWN):
        for name, values in expected(known).items():
            for value in values:
                holders[f"{name} == {_literal(value)}"].add(index)
    assert len(holders) > 200
    rows = shark.table(shark.capture(EVERY), *holders)
    for column, (filter, indexes) in enumerate(holders.items()):
        assert {index for index, row in enumerate(rows) if row[column]} == indexes, filter


def _literal(value: int | str) -> str:
    return hex(value) if isinstance(value, int) else ":".join(re.findall("..", value)) + ":" * (len(value) == 2)


MAPPED = next(each.body for each in KNOWN if each.name == "SHMEM_MAP" and isinstance(each.body, Mmap))

ACKNOWLEDGED = next(each for each in KNOWN if each.name == "SET_PROTOCOL_FEATURES")
Choice = Callable[[Decoded], bool]


@pytest.mark.parametrize(
    ("filter", "chosen"),
    [
        (f"vhostuser.shmem_map.shm_offset == {MAPPED.shm_offset:#x}", lambda each: each.body is MAPPED),
        ('vhostuser.message == "SHMEM_MAP" && vhostuser.flags.reply == 0', lambda each: each.body is MAPPED),
        ("vhostuser.get_shmem_config.shmid == 255", lambda each: isinstance(each.body, ShmemConfig)),
        (
            "vhostuser.fd.ino == 1234 && vhostuser.protocol_features.reply_ack",
            lambda each: each.name == "SET_PROTOCOL_FEATURES" and each.message.asks,
        ),
        ("vhostuser.malformed", lambda each: False),
    ],
)
def test_display_filters_choose_exactly_the_right_packets(
    shark: Shark, filter: str, chosen: Callable[[Decoded], bool]
) -> None:
    rows = shark.table(shark.capture(EVERY), "frame.number", filter=filter)
    assert [int(number) for (number,) in rows] == [index for index, each in enumerate(KNOWN, 1) if chosen(each)]


def test_no_field_is_declared_that_no_message_has() -> None:
    names = set(re.findall(r'\["(vhostuser\.[\w.]+)"\] = \{\["kind"\]', dissector()))
    bits = {name for name in names if name.split(".")[1] in ("features", "protocol_features")}
    assert names - bits == {name for known in KNOWN for name in expected(known)} - bits


def test_the_requests_of_both_channels_are_all_in_it() -> None:
    assert {(known.message.channel, known.name) for known in KNOWN} == {
        (channel, rule.name) for channel in Channel for rule in RULES[channel].values()
    }


def test_a_line_says_what_a_message_says(shark: Shark) -> None:
    wire = Wire()
    memfd = FdNote(9, "memfd", "/memfd:window (deleted)", ino=77, size=4096)
    events = [
        *wire.agreed(1 << 3 | 1 << 22),
        *wire.region(64 << 20),
        *wire.map(0x2000000, 0x1000, fd=memfd),
        *wire.map(0, 4096, status=(1 << 64) - 22),
        wire.ask(Q.SET_MEM_TABLE, MemoryTable([MemoryRegion(0, 4096, 0x7F0000000000, 0)])),
        wire.ask(Q.GET_CONFIG, Config(0, 2, 0, b"\x01\x02")),
        wire.answer(Q.GET_CONFIG),
        replace(wire.ask(Q.SET_OWNER), note="delayed 10 ms"),
    ]
    assert shark.lines(shark.capture(events)) == [
        "opened",
        "GET_FEATURES",
        "GET_FEATURES = 0x40000000 {PROTOCOL_FEATURES}",
        "GET_PROTOCOL_FEATURES",
        "GET_PROTOCOL_FEATURES = 0x400008 {REPLY_ACK SHMEM}",
        "SET_PROTOCOL_FEATURES 0x400008 {REPLY_ACK SHMEM}",
        "SET_FEATURES 0x40000000 {PROTOCOL_FEATURES}",
        "GET_SHMEM_CONFIG",
        "GET_SHMEM_CONFIG = num_regions=1 sizes={0=0x4000000}",
        "SHMEM_MAP shmid=0 fd_offset=0x0 shm_offset=0x2000000 len=0x1000 flags=0x0"
        " fd=9</memfd:window (deleted) ino 77> need_reply",
        "SHMEM_MAP = 0",
        "SHMEM_MAP shmid=0 fd_offset=0x0 shm_offset=0x0 len=0x1000 flags=0x0 fd=7</srv/gamma.bin ino 1234> need_reply",
        "SHMEM_MAP = -22",
        "SET_MEM_TABLE num_regions=1 regions=[{guest_addr=0x0 size=0x1000 user_addr=0x7f0000000000 mmap_offset=0x0}]",
        "GET_CONFIG offset=0 size=2 flags=0x0 payload=0102",
        "GET_CONFIG = refused",
        "SET_OWNER [delayed 10 ms]",
    ]


def test_what_is_refused_is_marked(shark: Shark) -> None:
    wire = Wire()
    events = [*wire.agreed(), *wire.map(0, 4096), *wire.map(0, 4096, status=(1 << 64) - 17)]
    assert shark.table(shark.capture(events), "frame.number", "_ws.expert.message", filter="vhostuser.refused") == [
        [str(len(events)), "refused with -17"]
    ]


def test_replies_find_their_requests(shark: Shark) -> None:
    one, two = Wire(0), Wire(5)
    events = [
        one.ask(Q.GET_FEATURES),
        two.ask(Q.GET_FEATURES),
        one.ask(Q.GET_QUEUE_NUM),
        one.ask(Q.SET_OWNER),
        *two.map(0, 4096),
        two.answer(Q.GET_FEATURES, U64(1)),
        one.answer(Q.GET_QUEUE_NUM, U64(1)),
        one.answer(Q.GET_QUEUE_NUM, U64(1)),
    ]
    timed = [replace(event, at=BEGAN + 1_000_000_007 * index) for index, event in enumerate(events)]
    rows = shark.table(shark.capture(timed), "vhostuser.connection", *(f"vhostuser.{name}" for name in LINKS))
    assert rows == [
        ["0", "", "", ""],
        ["5", "7", "", ""],
        ["0", "8", "", ""],
        ["0", "", "", ""],
        ["5", "6", "", ""],
        ["5", "", "5", "1.000000007"],
        ["5", "", "2", "5.000000035"],
        ["0", "", "3", "5.000000035"],
        ["0", "", "", ""],
    ]


LINKS = ("reply_in", "reply_to", "latency")


def raw(data: bytes, *, channel: Channel = Channel.FRONTEND, sender: Role = Role.FRONTEND, **more: Any) -> Message:
    return Message(BEGAN, 0, channel, sender, data, **more)


def test_what_is_malformed_is_marked_with_the_reason_that_we_give(shark: Shark) -> None:
    table, config = MemoryTable([MemoryRegion(1, 2, 3, 4)]).pack(), ShmemConfig({1: 2}).pack()
    wrong = [
        raw(request_frame(Q.SET_FEATURES, None).pack()),
        raw(Frame(Q.SET_MEM_TABLE, 1, b"\2" + table[1:]).pack()),
        raw(Frame(Q.SET_MEM_TABLE, 1, table + bytes(1)).pack()),
        raw(Frame(Q.GET_SHMEM_CONFIG, 5, b"\7" + config[1:]).pack(), sender=Role.BACKEND),
        raw(Frame(Q.GET_CONFIG, 1, Config(0, 9, 0, b"12345678").pack()).pack()),
        raw(Frame(Q.GET_CONFIG, 5, bytes(8)).pack(), sender=Role.BACKEND),
        raw(Frame(Q.CREATE_CRYPTO_SESSION, 1, bytes(5000)).pack()),
        raw(request_frame(77, U64(1)).pack()),
        raw(request_frame(11, U64(1)).pack(), channel=Channel.BACKEND, sender=Role.BACKEND),
        raw(struct.pack("<III", 1, 1, 7)),
        raw(bytes(5)),
        raw(b""),
        raw(b"garbage of a stream", whole=False),
    ]
    rows = shark.table(shark.capture(wrong), "_ws.expert.message", filter="vhostuser.malformed")
    assert [message for (message,) in rows] == [understood(message, 0).fault for message in wrong]


def test_flags_that_are_wrong_are_marked(shark: Shark) -> None:
    messages = [raw(Frame(Q.SET_OWNER, flags).pack()) for flags in (0, 2, 3, 0x11, 0xFFFFFFFD, 5, 0xD)]
    rows = shark.table(shark.capture(messages), "_ws.expert.message", filter="vhostuser.malformed")
    assert [message for (message,) in rows] == [understood(message, 0).fault for message in messages]


def test_an_answer_to_an_unknown_request_is_an_acknowledgement(shark: Shark) -> None:
    message = raw(reply_frame(77, U64(3)).pack(), sender=Role.BACKEND)
    (row,) = shark.table(shark.capture([message]), "_ws.col.info", "vhostuser.ack", "_ws.expert.message")
    assert row == ["request 77 = 3", "0x0000000000000003", ""]


def test_fds_and_notes_are_fields(shark: Shark) -> None:
    strange = FdNote(2, "socket", 'so"ck\\et:\n\udcff[1]', access="rw")
    message = replace(Wire().ask(1), fds=(FILE, strange), note="late ☃", connection=3)
    names = ("fds", "fd.number", "fd.kind", "fd.ino", "fd.size", "connection")
    (row,) = shark.table(shark.capture([message]), *(f"vhostuser.{name}" for name in names))
    assert row == ["2", "7;2", "file;socket", "1234;0", "67108864;0", "3"]
    (line,) = shark.lines(shark.capture([message]))
    assert line == r'GET_FEATURES fd=7</srv/gamma.bin ino 1234> fd=2<so"ck\\et:\\n\\udcff[1]> [late ☃]'


def test_what_is_no_message_is_shown_too(shark: Shark) -> None:
    wire = Wire()
    buffers = (Buffer(4096, 16, writable=False), Buffer(1 << 63, 512, writable=True))
    events: list[Event] = [
        wire.remark(Remarkable.CLOSED, 'the "back-end" ended it'),
        Offered(BEGAN, 2, 1, 5, buffers, b"abc"),
        Used(BEGAN, 2, 1, 5, 512, b"", b"\0", 1000),
        raw(bytes(LARGEST_DATA), whole=False),
    ]
    path = shark.capture(events)
    assert shark.lines(path)[:3] == [
        'closed: the "back-end" ended it',
        "queue 1: request 5 offered, 2 buffers",
        "queue 1: request 5 used, 512 bytes written",
    ]
    assert shark.lines(path)[4] == "a piece of an event"
    assert shark.table(path, "frame.number", filter="vhostuser.queue == 1 && vhostuser.written > 100") == [["3"]]


def test_without_the_dissector_the_file_still_opens(shark: Shark) -> None:
    assert len(shark.run(shark.capture(EVERY), plain=True).splitlines()) == len(EVERY)


def test_what_wireshark_saves_is_the_same_capture(shark: Shark) -> None:
    path = shark.capture([*EVERY, *sample()])
    shark.run(path, "-w", str(shark.home / "saved.pcapng"))
    assert list(open_capture(shark.home / "saved.pcapng")) == [*EVERY, *sample()]


def test_no_message_is_too_strange_for_it(shark: Shark) -> None:
    """Flipped, cut and lengthened messages of all kinds: `run` fails if Lua does."""
    chance = random.Random(5)
    strange = [replace(message, data=spoilt(message.data, chance)) for message in EVERY for _ in range(8)]
    shown = shark.run(shark.capture(strange), "-V")
    assert len(re.findall("^Frame ", shown, re.MULTILINE)) == len(strange)
    assert "Lua Error" not in shown


def spoilt(data: bytes, chance: random.Random) -> bytes:
    content = bytearray(data[: chance.choice([len(data), len(data), chance.randrange(len(data) + 1)])])
    for _ in range(chance.randrange(4)):
        if content:
            content[chance.randrange(len(content))] = chance.randrange(256)
    return bytes(content) + bytes(chance.choice([0, 0, 1, 40, 300]))


COMMENTS = [
    '{"vhostuser": 1, "fds": [',
    '{"vhostuser": 1, "fds": 7}',
    '{"vhostuser": 1, "fds": [7, {}, {"n": "x"}, {"n": -1}]}',
    '{"vhostuser": 1, "fds": [{"n": 99999999999999999999, "kind": 5, "path": [], "ino": "", "size": {}}]}',
    '{"vhostuser": 1, "note": {"a": 1}}',
    '{"vhostuser": 1, "note": "\\u12"',
    '{"vhostuser": 1, "whole": "no"}',
    '{"vhostuser": ' + "[" * 5000,
    '{"vhostuser": 1' + "," * 30000,
    '{"vhostuser": 1, "a":: 1}',
    '{"vhostuser":',
    "%s%n",
]


def test_no_comment_is_too_strange_for_it(shark: Shark) -> None:
    data = NAME + request_frame(Q.SET_OWNER).pack()
    path = shark.file(HEAD + b"".join(packet(data, (1, text.encode()), OUTBOUND) for text in COMMENTS), "strange.pcapng")
    assert [line.split()[0] for line in shark.lines(path)] == ["SET_OWNER"] * len(COMMENTS)
    assert "Lua Error" not in shark.run(path, "-V")


def test_no_event_is_too_strange_for_it(shark: Shark) -> None:
    texts = [
        "",
        "[]",
        "{}",
        '{"event": "used"}',
        '{"event": "used", "queue": "x", "head": [], "written": -1}',
        '{"event": []}',
    ]
    name = b"\x00\x0c\x00\x10vhostuser_event\x00\x00\x00\x00\x00"
    path = shark.file(HEAD + b"".join(packet(name + text.encode()) for text in texts), "events.pcapng")
    assert shark.lines(path) == ["a piece of an event"] * len(texts)
    assert "Lua Error" not in shark.run(path, "-V")
