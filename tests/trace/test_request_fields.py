"""What a request in a ring says, by name: in filters, in JSON, and in captures of JSON Lines."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vhostuser.fuse import structs as s
from vhostuser.fuse.numbers import Opcode
from vhostuser.fuse.rules import RULES
from vhostuser.protocol.payloads import Iotlb
from vhostuser.trace.conversation import Conversation, Item
from vhostuser.trace.event import Event, Offered, Used
from vhostuser.trace.filter import FilterError, parse_filter
from vhostuser.trace.filter_fields import ARGUMENTS
from vhostuser.trace.flat import as_json
from vhostuser.trace.jsonl import JsonlWriter, read_jsonl
from vhostuser.trace.pairing import MOST_ASKED, Pairing
from vhostuser.trace.requests import BLK, FS, KINDS, words_of
from vhostuser.virtio.block import RANGE, BlockRequest

from .building import Q, Wire, items_of
from .schema import complaints
from .strategies import events as any_events
from .test_requests import blk, fuse, offered, used


def session(*found: Event, kind: str | None = None) -> list[Item]:
    """What a conversation makes of these, one microsecond apart, each pair with a head of its own."""
    conversation, items = Conversation(kind=kind), list[Item]()
    for index, event in enumerate(found):
        placed = replace(event, at=index * 1000)
        placed = replace(placed, head=index // 2) if isinstance(placed, Offered | Used) else placed
        items += conversation.take(placed)
    return items


def answer(error: int = 0, body: bytes = b"") -> Used:
    data = s.OutHeader(s.OutHeader.STRUCT.size + len(body), -error, 7).pack() + body
    return replace(used(len(data), data[:128], data[-1:]), after=52_000)


ENTRY = s.EntryOut(*s.EntryOut.STRUCT.unpack(bytes(s.EntryOut.STRUCT.size)))
DISK = session(
    *(blk(BlockRequest.IN, 8, writable=4097), used(4097, b"x", b"\0")),
    *(blk(BlockRequest.OUT, 1 << 40, bytes(512)), used(1, b"\1", b"\1")),
    *(blk(BlockRequest.DISCARD, 0, RANGE.pack(16, 8, 0) + RANGE.pack(99, 1, 1)), used(1, b"\0", b"\0")),
    *(blk(BlockRequest.FLUSH), used(0)),
    *(blk(77), used(1, b"\7", b"\7")),
    kind=BLK,
)
SHARE = session(
    *(fuse(Opcode.LOOKUP, b"file.txt\0"), answer(0, replace(ENTRY, nodeid=5, generation=9).pack())),
    *(fuse(Opcode.READ, s.ReadIn(3, 1 << 32, 4096, 0, 0, 0).pack(), nodeid=2), answer(0, b"x" * 64)),
    *(fuse(Opcode.RENAME, s.RenameIn(4).pack() + b"a\0b\0"), answer(2)),
    *(fuse(Opcode.FORGET, s.ForgetIn(3).pack()), used(0)),
    *(fuse(4000), answer(5000)),
)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("kind==blk", list(range(10))),
        ("type==IN", [0, 1]),
        ("type==OUT and offered", [2]),
        ("type in (OUT, DISCARD) and used", [3, 5]),
        ("type==D*", [4, 5]),
        ("type!=IN and offered", [2, 4, 6, 8]),
        ("type==TYPE_77", [8, 9]),
        ("sector==8", [0, 1]),
        ("sector>=1T", [2, 3]),
        ("sector==99", [4, 5]),
        ("sector==16", [4, 5]),
        ("bytes==4096", [0, 1]),
        ("bytes==512", [2, 3]),
        ("status==OK", [1, 5]),
        ("status!=OK", [3, 9]),
        ("status==IOERR", [3]),
        ('status=="status 7"', [9]),
        ("opcode==READ", []),
    ],
)
def test_a_filter_chooses_requests_of_disks(text: str, found: list[int]) -> None:
    assert [index for index, item in enumerate(DISK) if parse_filter(text).matches(item)] == found


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("kind==fs", list(range(10))),
        ("opcode==LOOKUP", [0, 1]),
        ("opcode==1", [0, 1]),
        ("opcode in (READ, RENAME) and used", [3, 5]),
        ("opcode==RE*", [2, 3, 4, 5]),
        ("opcode==OPCODE_4000", [8, 9]),
        ("nodeid==2", [2, 3]),
        ("nodeid==5", [1]),
        ("generation==9", [1]),
        ("unique==7 and offered", [0, 2, 4, 6, 8]),
        ('name=="file.txt"', [0, 1]),
        ("name==b", [4, 5]),
        ("name==*.txt and used", [1]),
        ("size==4096 and offset>=4G", [2, 3]),
        ("newdir==4", [4, 5]),
        ("nlookup>2", [6, 7]),
        ("status==ENOENT", [5]),
        ("status==OK", [1, 3]),
        ("opcode==READ and latency>50us", [3]),
        ("type==IN", []),
    ],
)
def test_a_filter_chooses_requests_of_shares(text: str, found: list[int]) -> None:
    assert [index for index, item in enumerate(SHARE) if parse_filter(text).matches(item)] == found


def test_a_type_is_also_a_number_of_an_iotlb_message() -> None:
    wire = Wire()
    body = Iotlb(0, 4096, 0, 3, 2)
    (item,) = items_of([wire.ask(Q.IOTLB_MSG, body)])
    assert parse_filter(f"type=={body.type}").matches(item)
    assert not parse_filter("type==OUT").matches(item)


def test_names_are_not_less_than_anything() -> None:
    with pytest.raises(FilterError, match="names are compared"):
        parse_filter("name<3")


def test_every_argument_of_fuse_is_a_field() -> None:
    assert {"fh", "offset", "nlookup", "newdir", "mode", "foffset", "moffset", "max_write"} <= ARGUMENTS.keys() | {"offset"}
    assert not [name for name in ARGUMENTS if name.startswith("padding")]
    assert {"nodeid", "unique"}.isdisjoint(ARGUMENTS)


def flat(item: Item) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(json.dumps(as_json(item)))
    return {
        name: value
        for name, value in found.items()
        if name not in ("v", "t", "at", "connection", "queue", "buffers", "head")
    }


def test_an_object_has_them_too() -> None:
    assert {name: value for name, value in flat(DISK[0]).items() if name != "start"} == {
        "event": "offered",
        "kind": "blk",
        "type": "IN",
        "bytes": 4096,
        "sector": 8,
    }
    assert flat(DISK[3])["status"] == "IOERR"
    assert flat(DISK[4])["ranges"] == [
        {"sector": 16, "sectors": 8, "unmap": False},
        {"sector": 99, "sectors": 1, "unmap": True},
    ]
    found = flat(SHARE[1])
    assert (found["opcode"], found["nodeid"], found["names"], found["status"]) == ("LOOKUP", 1, ["file.txt"], "OK")
    assert (found["answer"]["nodeid"], found["lat_us"]) == (5, 52)


def lines(items: list[Item]) -> tuple[list[dict[str, Any]], list[Event]]:
    """What a capture says of events, and what it gives back."""
    file = io.BytesIO()
    writer = JsonlWriter(file)
    for item in items:
        assert isinstance(item, Offered | Used)
        writer.write(item)
    return [json.loads(line) for line in file.getvalue().splitlines()], list(read_jsonl(io.BytesIO(file.getvalue())))


@pytest.mark.parametrize("items", [DISK, SHARE], ids=["disk", "share"])
def test_a_capture_has_them_and_comes_back_exactly(items: list[Item]) -> None:
    found, again = lines(items)
    assert again == items
    assert [complaint for line in found for complaint in complaints(line)] == []


def test_a_line_of_a_capture_says_what_is_asked_and_answered() -> None:
    found, _ = lines(SHARE)
    assert found[0]["kind"] == found[1]["kind"] == FS
    assert found[2]["fields"] == found[3]["fields"]
    assert found[2]["fields"]["offset"] == 1 << 32
    assert found[5]["answer"] == {"status": "ENOENT"}
    assert found[1]["answer"]["nodeid"] == 5


@given(st.lists(any_events, max_size=8), st.sampled_from([None, *KINDS]))
def test_whatever_a_capture_holds_has_fields_and_is_filtered(found: list[Event], kind: str | None) -> None:
    chosen = [parse_filter(text) for text in ("sector>0", "opcode==READ", "name==a*", "fh==3", "status!=OK", "type==IN")]
    for item in session(*found, kind=kind):
        assert json.dumps(as_json(item))
        assert all(isinstance(each.matches(item), bool) for each in chosen)


@pytest.mark.parametrize("opcode", [*RULES, 0, 1 << 31])
@pytest.mark.parametrize("kind", KINDS)
def test_no_bytes_are_too_few(opcode: int, kind: str) -> None:
    whole = fuse(opcode, b"\xff" * 80).start
    found = [each for end in range(0, len(whole) + 1, 7) for each in (offered(whole[:end]), used(end, whole[:end], b"\xff"))]
    assert all(json.dumps(as_json(item)) for item in session(*found, kind=kind))


def test_what_is_known_of_an_event_is_no_part_of_it() -> None:
    first, second = blk(BlockRequest.IN), used(1)
    known = Pairing()
    assert (known.of(first), known.of(second)) == (first, second)


def test_an_answer_belongs_to_the_request_that_was_offered_when_it_says() -> None:
    """The same head may be offered anew before it is told that it was given back."""
    first = replace(fuse(Opcode.OPEN), at=100)
    second = replace(fuse(Opcode.READ), at=300)
    again = replace(used(0), at=300, after=200)
    orders: list[list[Offered | Used]] = [[first, again, second], [first, second, again]]
    for told in orders:
        known = Pairing()
        found = [each for each in map(known.of, told) if isinstance(each, Used)]
        assert [each.asked for each in found] == [first]
        last = known.of(replace(used(0), at=350, after=50))
        assert isinstance(last, Used)
        assert last.asked == second


def test_an_answer_that_is_another_requests_is_unknown() -> None:
    """A driver that has taken its memory back may have written there before anybody looked."""
    data = s.OutHeader(s.OutHeader.STRUCT.size, 0, 8).pack()
    for wrong in (data, bytes(16)):
        _, item = session(fuse(Opcode.FLUSH), used(16, wrong, b"\0"))
        assert isinstance(item, Used)
        assert words_of(item) == "16 bytes, answer unknown"
        assert "status" not in flat(item)


def test_requests_that_are_never_answered_are_forgotten_in_the_end() -> None:
    known = Pairing()
    for head in range(MOST_ASKED + 5):
        known.of(replace(blk(BlockRequest.FLUSH), head=head))
    assert len(known._asked) == MOST_ASKED
