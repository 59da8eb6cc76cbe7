"""`--inject`: each action, on the messages that it is meant for, between two real ends; and rules that mean nothing."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from vhostuser.protocol.numbers import BackendRequest, FrontendRequest, ProtocolFeature
from vhostuser.protocol.payloads import U64, Config, Mmap, VringState
from vhostuser.protocol.state import Role
from vhostuser.testing import DEADLINE, memory_file, message
from vhostuser.trace.event import Remarkable
from vhostuser.trace.inject import Injector, RuleError, parse_rule

from .between import Between
from .test_proxy_messages import MAP, NUM, inodes, opened, took

Q, B = FrontendRequest, BackendRequest
ANSWER = message(Q.SET_VRING_NUM, U64(0), flags=5)
FEATURES = message(Q.GET_FEATURES)
NEED_REPLY = 9


@contextmanager
def injecting(*rules: str) -> Iterator[Between]:
    with Between(alter=Injector(parse_rule(rule) for rule in rules)) as between:
        yield between


def notes(between: Between) -> list[str]:
    between.settle()
    return [told.note for told in between.messages]


def test_what_is_delayed_comes_later_and_holds_up_nothing_else() -> None:
    with injecting("delay=60ms:SET_VRING_NUM") as between:
        ours, theirs = opened(between)
        with ours, theirs:
            began = time.monotonic()
            between.front.send(NUM + FEATURES)
            theirs.send(MAP)
            assert took(ours) == (MAP, [])
            assert took(between.back) == (NUM, [])
            assert time.monotonic() - began >= 0.06
            assert took(between.back) == (FEATURES, [])
        assert notes(between).count("delayed 60ms") == 1


def test_what_is_dropped_does_not_arrive_and_its_fds_are_closed() -> None:
    with injecting("drop:SET_VRING_KICK") as between, memory_file() as file:
        between.front.send(message(Q.SET_VRING_KICK, U64(0)), [file])
        between.front.send(NUM)
        assert took(between.back) == (NUM, [])
        assert notes(between) == ["dropped", ""]
        assert between.messages[0].fds[0].ino == inodes([file])[0]


def test_a_back_end_channel_that_is_dropped_is_gone() -> None:
    with injecting("drop:SET_BACKEND_REQ_FD") as between:
        ours, theirs = socket.socketpair()
        with ours:
            with theirs:
                between.front.send(message(Q.SET_BACKEND_REQ_FD), [theirs])
            assert ours.recv(1) == b""


def test_what_is_refused_is_answered_in_the_peers_stead() -> None:
    with injecting("refuse=12:SHMEM_MAP") as between, memory_file() as file:
        ours, theirs = opened(between)
        with ours, theirs:
            theirs.send(MAP, [file])
            assert took(theirs) == (message(B.SHMEM_MAP, U64(12), flags=5), [])
            unmap = message(B.SHMEM_UNMAP, Mmap(0, 0, 0, 4096), flags=NEED_REPLY)
            theirs.send(unmap)
            assert took(ours) == (unmap, [])
        assert notes(between)[1:3] == ["refused with 12", "answered in its stead"]
        assert between.messages[2].sender is Role.FRONTEND


def test_who_asks_for_no_answer_gets_none() -> None:
    with injecting("refuse:SET_VRING_NUM") as between:
        between.front.send(message(Q.SET_VRING_NUM, VringState(0, 64)) + FEATURES)
        assert took(between.back) == (FEATURES, [])
        between.back.send(ANSWER)
        assert took(between.front) == (ANSWER, [])


def test_answers_that_nobody_takes_hold_up_the_requests() -> None:
    """Nothing piles up in the proxy."""
    with injecting("refuse:SET_VRING_NUM") as between:
        between.front.socket.setblocking(False)
        sent = 0
        while sent < 1 << 16 and fits(between, NUM):
            sent += 1
        assert 0 < sent < 1 << 16
        between.front.socket.setblocking(True)
        for _ in range(sent):
            assert took(between.front) == (message(Q.SET_VRING_NUM, U64(1), flags=5), [])


def fits(between: Between, data: bytes) -> bool:
    """There was room for this, once the proxy had come to rest."""
    for _ in range(2):
        try:
            return between.front.socket.send(data) == len(data)
        except BlockingIOError:
            between.settle()
    return False


@pytest.mark.parametrize(
    ("rule", "changed", "note"),
    [
        ("corrupt=num=0x80", VringState(0, 128), "changed: num 0x40 to 0x80"),
        ("corrupt=index^0xff", VringState(255, 64), "changed: index 0x0 to 0xff"),
        ("corrupt=num=0x100000001", VringState(0, 1), "changed: num 0x40 to 0x1"),
        ("corrupt=@16=7", VringState(0, 7), "changed: @16 0x40 to 0x7"),
    ],
)
def test_a_field_is_changed_and_the_capture_has_what_came(rule: str, changed: VringState, note: str) -> None:
    with injecting(rule) as between:
        between.front.send(NUM)
        assert took(between.back) == (message(Q.SET_VRING_NUM, changed, flags=NEED_REPLY), [])
        assert notes(between) == [note]
        assert between.messages[0].data == NUM


@pytest.mark.parametrize(("field", "at"), [("request", 0), ("flags", 4), ("size", 8)])
def test_a_header_is_changed(field: str, at: int) -> None:
    with injecting(f"corrupt=header.{field}=77") as between:
        between.front.send(NUM)
        between.settle()
        assert between.back.socket.recv(100) == NUM[:at] + (77).to_bytes(4, "little") + NUM[at + 4 :]


def test_a_message_without_the_field_is_left_alone() -> None:
    with injecting("corrupt=num=1", "corrupt=@4000=1") as between:
        between.front.send(FEATURES + message(999, b"12345678"))
        assert [took(between.back)[0] for _ in range(2)] == [FEATURES, message(999, b"12345678")]
        assert notes(between) == ["", ""]


@pytest.mark.parametrize("size", [0, 1, 12, 19])
def test_what_is_truncated_arrives_up_to_there(size: int) -> None:
    with injecting(f"truncate={size}:SET_VRING_NUM") as between:
        between.front.send(NUM + FEATURES)
        between.settle()
        assert between.back.socket.recv(100) == NUM[:size] + FEATURES
        assert notes(between)[0] == f"truncated to {size} of 20 bytes"


def test_close_ends_the_connection_and_the_message_does_not_arrive() -> None:
    with injecting("close:SET_VRING_NUM:2") as between:
        between.front.send(NUM + NUM + FEATURES)
        assert took(between.back) == (NUM, [])
        between.back.closes()
        between.front.closes()
        between.join()
        assert between.remarks(Remarkable.CLOSED) == ["the tracer ended it: closed here"]


def test_replies_are_meant_only_where_it_says_so() -> None:
    with injecting("drop@reply:GET_CONFIG") as between:
        config = message(Q.GET_CONFIG, Config(0, 1, 0, b"x"))
        between.front.send(config)
        assert took(between.back) == (config, [])
        between.back.send(message(Q.GET_CONFIG, Config(0, 1, 0, b"y"), flags=5) + ANSWER)
        assert took(between.front) == (ANSWER, [])


@pytest.mark.parametrize(
    ("count", "done"),
    [("", [1, 1, 1, 1, 1, 1]), (":3", [0, 0, 1, 0, 0, 0]), (":4+", [0, 0, 0, 1, 1, 1]), (":/2", [0, 1, 0, 1, 0, 1])],
)
def test_the_count_says_which_of_those_that_match(count: str, done: list[int]) -> None:
    rule = parse_rule(f"corrupt=num=9:num==64{count}")
    with Between(alter=Injector([rule])) as between:
        for _ in done:
            between.front.send(FEATURES + NUM)
        arrived = [took(between.back)[0] for _ in done * 2]
        assert [VringState.unpack(data[12:]).num == 9 for data in arrived if data != FEATURES] == done
        assert rule.done == sum(done)


def test_one_rule_sees_what_the_one_before_made() -> None:
    with injecting("corrupt=num=3", "corrupt=num^1", "delay=1ms") as between:
        between.front.send(NUM)
        assert took(between.back)[0] == message(Q.SET_VRING_NUM, VringState(0, 2), flags=NEED_REPLY)
        assert notes(between) == ["changed: num 0x40 to 0x3, changed: num 0x3 to 0x2, delayed 1ms"]


def test_bytes_that_are_no_message_are_nobodys_business() -> None:
    with injecting("drop") as between:
        between.front.send(message(1, flags=2) + NUM)
        assert between.back.socket.recv(12) == message(1, flags=2)
        assert between.back.socket.recv(20) == NUM


@pytest.mark.parametrize(
    ("text", "reason", "marked"),
    [
        ("dely=1ms", "there is no action 'dely'; did you mean delay?", "dely"),
        ("", "there is no action ''; there are delay, drop, refuse, corrupt, truncate, close", ""),
        ("DROP", "expected ACTION[=VALUE][@reply][:FILTER[:COUNT]]", "DROP"),
        ("delay", "expected a time up to an hour, such as delay=10ms", ""),
        ("delay=10", "expected a time up to an hour, such as delay=10ms", "10"),
        ("delay=2000000s", "expected a time up to an hour, such as delay=10ms", "2000000s"),
        ("drop=1", "drop takes no value", "1"),
        ("close=1:SHMEM_MAP", "close takes no value", "1"),
        ("refuse=0", "expected a status that is not 0, such as refuse=12", "0"),
        ("refuse=-1", "expected a number, decimal or 0x hexadecimal", "-1"),
        ("refuse=0x1ffffffffffffffff", "expected a number, decimal or 0x hexadecimal", "0x1ffffffffffffffff"),
        ("refuse@reply", "a reply can't be refused, only a request", "@reply"),
        ("truncate", "expected a number, decimal or 0x hexadecimal", ""),
        ("corrupt=len", "expected a field and a number, such as corrupt=len=0 or corrupt=len^1", "len"),
        ("corrupt=lem=1:SHMEM_MAP", "no message has a field 'lem'; did you mean len?", "lem"),
        ("corrupt=len=many", "expected a number, decimal or 0x hexadecimal", "many"),
        ("drop:SHMEM_MAP:0", "expected a count: 3, 3+ or /3", "0"),
        ("drop:SHMEM_MAP:often", "expected a count: 3, 3+ or /3", "often"),
        ("drop:SHMEM_MAP:/3+", "expected a count: 3, 3+ or /3", "/3+"),
        ("drop:SHMEM_MAX:3", "there is no request or word 'SHMEM_MAX'; did you mean SHMEM_MAP?", "SHMEM_MAX"),
    ],
)
def test_a_rule_that_means_nothing_is_shown_with_its_place(text: str, reason: str, marked: str) -> None:
    with pytest.raises(RuleError) as caught:
        parse_rule(text)
    assert caught.value.reason == reason
    shown, below = caught.value.underlined
    assert shown == text
    assert text[below.index("^") : below.rindex("^") + 1] == marked or (not marked and below.count("^") == 1)


def test_a_rule_may_ask_what_is_behind_an_fd() -> None:
    with injecting("refuse=13:path==*vhostuser-testing* and fds==1") as between, memory_file() as file:
        kick = message(Q.SET_VRING_KICK, U64(0), flags=NEED_REPLY)
        between.front.send(kick)
        assert took(between.back) == (kick, [])
        between.front.send(kick, [file])
        assert took(between.front) == (message(Q.SET_VRING_KICK, U64(13), flags=5), [])


def test_a_filter_may_have_colons_of_its_own() -> None:
    assert parse_rule('drop:path=="/a:b"').matched == 0
    assert parse_rule('drop:path=="/a:b":3').done == 0


def replies_of(between: Between, count: int) -> list[int]:
    """The statuses of so many acknowledgements, in the order in which the front-end gets them."""
    return [int.from_bytes(between.front.receive().payload, "little") for _ in range(count)]


def test_a_refusal_waits_for_the_replies_that_are_owed_before_it() -> None:
    with injecting("refuse=12:SET_VRING_NUM:3") as between:
        agreed = message(Q.SET_PROTOCOL_FEATURES, U64(1 << ProtocolFeature.REPLY_ACK))
        between.front.send(agreed + 3 * message(Q.SET_VRING_NUM, VringState(0, 8), flags=NEED_REPLY))
        for _ in range(3):
            between.back.receive()
        between.back.send(ANSWER + ANSWER)
        assert replies_of(between, 3) == [0, 0, 12]


def test_a_refusal_while_the_way_back_is_full_stops_nothing() -> None:
    filling = message(Q.GET_FEATURES, bytes(4000), flags=5)
    with injecting("refuse=12:SET_VRING_NUM") as between:
        between.back.socket.setblocking(False)
        sent = 0
        with contextlib.suppress(BlockingIOError):
            while True:
                sent += between.back.socket.send(filling[sent % len(filling) :])
        between.front.send(message(Q.SET_VRING_NUM, VringState(0, 8), flags=NEED_REPLY))
        between.back.socket.setblocking(True)
        rest = filling[sent % len(filling) :] if sent % len(filling) else b""
        writer = threading.Thread(target=between.back.send, args=(rest,))
        writer.start()
        whole = (sent + len(rest)) // len(filling)
        came = [between.front.receive() for _ in range(whole + 1)]
        writer.join(DEADLINE)
    assert sorted(len(frame.payload) for frame in came) == [8, *[4000] * whole]
