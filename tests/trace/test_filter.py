"""What a filter's expression means, and what is said about one that means nothing."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from vhostuser.protocol.payloads import U64, Config, MemoryRegion, MemoryTable, Mmap, VringState
from vhostuser.protocol.rules import RULES, Channel
from vhostuser.protocol.state import Role
from vhostuser.trace.conversation import Item
from vhostuser.trace.event import Event, FdNote, Message, Offered, Remarkable, Used
from vhostuser.trace.filter import DEEPEST, LONGEST, FilterError, parse_filter
from vhostuser.trace.filter_fields import NAMED, OWN, WORDS
from vhostuser.trace.filter_help import GRAMMAR

from .building import BEGAN, FEATURES, B, Q, Wire, items_of

EINVAL = (1 << 64) - 22
OTHER = FdNote(9, "memfd", "/memfd:ram (deleted)", ino=77)


def session() -> dict[str, Item]:
    """One item of each kind that filters are asked about, by a short name."""
    wire, second = Wire(), Wire(1)
    table = MemoryTable([MemoryRegion(0, 1 << 20, 0x7000, 0), MemoryRegion(1 << 32, 1 << 30, 0x9000, 0)])
    events: list[Event] = [
        *wire.agreed(),
        *wire.region(64 << 20),
        *wire.map(0x1000, 4 << 20),
        *wire.map(0, 0x1000, shmid=2, status=EINVAL, fd=OTHER),
        wire.call(B.SHMEM_UNMAP, Mmap(0, 0, 0x4000, 0x1000)),
        wire.ask(Q.SET_VRING_KICK, U64(0x101)),
        wire.ask(Q.SET_VRING_NUM, VringState(1, 256)),
        wire.ask(Q.GET_CONFIG, Config(0, 4, 0, bytes(4))),
        wire.answer(Q.GET_CONFIG),
        wire.ask(Q.SET_MEM_TABLE, table),
        Message(wire.now(), 0, Channel.FRONTEND, Role.FRONTEND, b"\x4d\0\0\0\x01\0\0\0\0\0\0\0", note="delayed 10 ms"),
        wire.answer(Q.GET_FEATURES, U64(0)),
        Offered(BEGAN, 0, 1, 3, ()),
        Used(BEGAN, 0, 1, 3, 513, after=52_000),
        second.ask(Q.SET_OWNER),
        wire.remark(Remarkable.BROKEN, "nonsense"),
        wire.remark(Remarkable.CLOSED),
    ]
    names = [
        "opened",
        "features",
        "offer",
        "ack",
        "set features",
        "regions",
        "map",
        "no map",
        "kick",
        "num",
        "config",
        "memory",
    ]
    names += ["unknown", "orphan", "offered", "used", "owner", "broken", "unmap", "closed"]
    items = items_of(events)
    assert len(items) == len(names)
    return dict(zip(names, items, strict=True))


ITEMS = session()
MESSAGES = set(ITEMS) - {"opened", "offered", "used", "broken", "closed"}
MAPS = {"map", "no map"}

TABLE = [
    ("SHMEM_MAP", MAPS),
    ("shmem_map", MAPS),
    ("VHOST_USER_BACKEND_SHMEM_MAP", MAPS),
    ("request==SHMEM_MAP", MAPS),
    ("request = SHMEM_MAP", MAPS),
    ("request in (SHMEM_MAP, SHMEM_UNMAP)", MAPS | {"unmap"}),
    ("SHMEM_*", MAPS | {"unmap"}),
    ("*SHMEM*", MAPS | {"unmap", "regions"}),
    ("SET_VRING_*", {"kick", "num"}),
    ("request!=SHMEM_*", MESSAGES - MAPS - {"unmap"}),
    ("SHMEM_MAP or GET_CONFIG", MAPS | {"config"}),
    ("SHMEM_MAP || GET_CONFIG", MAPS | {"config"}),
    ("request==77", {"unknown"}),
    ("request==9", MAPS),
    ("id==77", {"unknown"}),
    ("channel==back-end", MAPS | {"unmap"}),
    ("channel!=back-end", MESSAGES - MAPS - {"unmap"}),
    ("from==back-end", MAPS | {"unmap", "orphan"}),
    ("to==backend and channel==main and request==SET_OWNER", {"owner"}),
    ("shmid==0", {"map", "unmap"}),
    ("shmid!=0", {"no map"}),
    ("shmid==0 and len>=2M", {"map"}),
    ("shmid==0 && !(len>=2M)", {"unmap"}),
    ("shm_offset<0x1000", {"no map"}),
    ("shm_offset<=0x1000", MAPS),
    ("shm_offset>4K", {"unmap"}),
    ("len in (4M, 1K)", {"map"}),
    ("refused", {"no map", "config"}),
    ("unanswered", {"unmap"}),
    ("malformed", {"unknown"}),
    ("orphan", {"orphan"}),
    ("error", {"no map", "config", "unmap", "unknown", "orphan", "broken"}),
    ("need_reply", MAPS | {"unmap"}),
    ("altered", {"unknown"}),
    ("message", MESSAGES),
    ("remark", {"opened", "broken", "closed"}),
    ("offered or used", {"offered", "used"}),
    ("used==5", set()),
    ("fds>0", MAPS),
    ("fds==0", MESSAGES - MAPS),
    ("path==*.bin", {"map"}),
    ("path=='/memfd:ram (deleted)'", {"no map"}),
    ('path!="/srv/*"', {"no map"}),
    ("ino==77", {"no map"}),
    ("latency==1us", {"features", "offer", "regions", "config"} | MAPS),
    ("latency>1.5us", {"unmap", "used"}),
    ("latency>=52us", {"used"}),
    ("queue==1", {"kick", "num", "offered", "used"}),
    ("queue in (0, 2)", set()),
    ("connection==1", {"owner"}),
    ("connection==0 and remark", {"opened", "broken", "closed"}),
    ("reply==0", {"map"}),
    ("reply==EINVAL", {"no map"}),
    ("reply==-EINVAL", {"no map"}),
    ("reply!=0 and SHMEM_MAP", {"no map"}),
    ("value==0x101", {"kick"}),
    ("num==256 or index==7", {"num"}),
    ("guest_addr==4G", {"memory"}),
    ("num_regions==2", {"memory"}),
    ("num_regions==1 and sizes==64M", {"regions"}),
    ("payload==0000*", {"config"}),
    ("written>512", {"used"}),
    ("head==3", {"offered", "used"}),
    ("event==0", set()),
    ("event==1", {"features"}),
    ("bytes==52", MAPS | {"unmap"}),
    ("time<=1us and message and connection==0", {"features"}),
    ("not message and not remark", {"offered", "used"}),
    ("not not orphan", {"orphan"}),
    ("SHMEM_MAP and refused or orphan", {"no map", "orphan"}),
    ("SHMEM_MAP and (refused or orphan)", {"no map"}),
    ("orphan or SHMEM_MAP and refused", {"no map", "orphan"}),
]


@pytest.mark.parametrize(("text", "expected"), TABLE)
def test_what_an_expression_matches(text: str, expected: set[str]) -> None:
    chosen = parse_filter(text)
    assert {name for name, item in ITEMS.items() if chosen.matches(item)} == expected


@pytest.mark.parametrize("name", sorted({rule.name for rules in RULES.values() for rule in rules.values()}))
def test_every_request_is_known_by_its_bare_name(name: str) -> None:
    assert parse_filter(name).matches(ITEMS["map"]) is (name == "SHMEM_MAP")


@pytest.mark.parametrize(
    ("text", "underlined", "reason"),
    [
        ("", "", "expected a request, a word or a comparison"),
        ("   ", "", "expected a request"),
        ("SHMEM_MAP or reqest==GET_CONFIG", "reqest", "there is no field 'reqest'; did you mean request?"),
        ("SHMEMMAP", "SHMEMMAP", "did you mean SHMEM_MAP?"),
        ("refusd", "refusd", "did you mean refused?"),
        ("request==GET_CONFIGS", "GET_CONFIGS", "did you mean GET_CONFIG?"),
        ("BOGUS_*", "BOGUS_*", "there is no request or word"),
        ("channel==backed", "backed", "expected front-end or back-end, not 'backed'; did you mean back-end?"),
        ("shmid", "", "expected a comparison after shmid"),
        ("shmid==", "", "expected a number such as"),
        ("shmid==x", "x", "expected a number such as 4096, 0x1000 or 4K, not 'x'"),
        ("latency>100", "100", "expected a time such as 100us"),
        ("len>1us", "1us", "expected a number"),
        ("path<a", "<", "names are compared with =="),
        ("(SHMEM_MAP", "(", "this parenthesis is never closed"),
        ("(SHMEM_MAP SHMEM_UNMAP)", "SHMEM_UNMAP", "expected `and`, `or` or )"),
        ("SHMEM_MAP SHMEM_UNMAP", "SHMEM_UNMAP", "expected `and`, `or` or the end"),
        ("SHMEM_MAP)", ")", "expected `and`, `or` or the end"),
        ("and", "and", "expected a request, a word"),
        ("SHMEM_MAP and", "", "expected a request, a word"),
        ("request in SHMEM_MAP", "SHMEM_MAP", "expected ("),
        ("request in (SHMEM_MAP", "", "expected , or )"),
        ("shmid in ()", ")", "expected a number"),
        ("path=='x", "'", "the quotation does not end"),
        ("a $ b", "$", "'$' means nothing here"),
        ("5", "5", "there is no request or word '5'"),
        ("(" * (DEEPEST + 1), "(", f"nested more than {DEEPEST} deep"),
        ("not " * (DEEPEST + 1), "not", f"nested more than {DEEPEST} deep"),
        ("x" * (LONGEST + 1), "x", f"more than {LONGEST}"),
    ],
)
def test_an_error_underlines_its_place_and_says_what_was_expected(text: str, underlined: str, reason: str) -> None:
    with pytest.raises(FilterError) as caught:
        parse_filter(text)
    error = caught.value
    assert reason in str(error)
    shown, marks = error.underlined
    start = len(marks) - len(marks.lstrip())
    assert shown[start : len(marks)].startswith(underlined)
    assert set(marks.strip()) == {"^"}
    assert len(shown) <= 100


def test_an_error_shows_nothing_that_a_terminal_obeys() -> None:
    with pytest.raises(FilterError) as caught:
        parse_filter("SHMEM_MAP and \x1b[2J")
    assert caught.value.underlined[0] == "SHMEM_MAP and ?[2J"
    assert str(caught.value).isprintable()


TOKENS = [
    *("and", "or", "not", "in", "(", ")", ",", "==", "!=", "<", ">", "<=", ">=", "=", "&&", "||", "!", "'", '"', " ", "$"),
    *("SHMEM_MAP", "SHMEM_*", "[z-a]", "*" * 20, "0x10", "4K", "100us", "1s", "EINVAL", "front-end", "time", "'a b'"),
    *[*WORDS, *OWN, *NAMED],
]


@given(st.text(max_size=60) | st.lists(st.sampled_from(TOKENS), max_size=14).map(" ".join))
@example("path==[")
@example("path==[z-a]")
@example("(" * 5000)
@example("!" * 4096)
@example("not(" * 1000)
def test_any_text_is_a_filter_or_an_error(text: str) -> None:
    try:
        chosen = parse_filter(text)
    except FilterError as error:
        said = [str(error), *error.underlined]
    else:
        said = []
        for item in ITEMS.values():
            chosen.matches(item)
    assert all(line.isprintable() for line in said)
    assert not said or said[2].strip(" ^") == ""


@pytest.mark.parametrize("name", [*WORDS, *OWN, *NAMED])
def test_the_help_has_every_word_and_field(name: str) -> None:
    assert f"  {name} " in GRAMMAR.replace("\n", " ")
    assert max(map(len, GRAMMAR.splitlines())) <= 120


def test_features_are_compared_as_numbers() -> None:
    assert parse_filter(f"value=={FEATURES:#x}").matches(ITEMS["ack"])
