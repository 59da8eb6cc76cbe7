"""What a session lets through: gates, fds, replies, and whose fault a refusal is, as the specification's rows have it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.legal import ALL, ALL_RULES, READY, F, Q, body_of, frame_of, rule_of, send, session, with_features
from tests.spec_table import REQUESTS, RequestRow
from vhostuser.errors import LocalProtocolError, ProtocolError, RemoteProtocolError
from vhostuser.protocol.framing import Frame, reply_frame, request_frame
from vhostuser.protocol.layout import Payload
from vhostuser.protocol.numbers import MAX_FDS, FrontendRequest, ProtocolFeature, mask
from vhostuser.protocol.payloads import (
    U64,
    Config,
    Inflight,
    MemoryRegion,
    MemoryTable,
    ShmemConfig,
    SingleRegion,
    VringState,
)
from vhostuser.protocol.rules import FRONTEND, RULES, Channel, Gate, Reply, Rule
from vhostuser.protocol.session import ACCESS_PLATFORM, Message, Session
from vhostuser.protocol.state import Owed, Role, State, reply_owed

rules = pytest.mark.parametrize("rule", ALL_RULES, ids=lambda rule: f"{rule.channel.value} {rule.name}")
rows = pytest.mark.parametrize("row", REQUESTS, ids=lambda row: f"{row.channel.value} {row.name}")
GATED = [rule for rule in ALL_RULES if rule.gate is not None]
UNKNOWN = [0, 45, 255, 0x7FFFFFFF, 0xFFFFFFFF]


def receiver(channel: Channel) -> Role:
    return Role.BACKEND if channel is Channel.FRONTEND else Role.FRONTEND


def without(rule: Rule) -> State:
    """READY, but for what gates the rule."""
    if rule.if_offered and isinstance(rule.gate, ProtocolFeature):
        return replace(READY, protocol_offered=ALL & ~(1 << rule.gate))
    if isinstance(rule.gate, ProtocolFeature):
        return replace(READY, protocol_acknowledged=ALL & ~(1 << rule.gate))
    if rule.gate is Gate.PROTOCOL_FEATURES_OFFERED:
        return replace(READY, offered=READY.offered & ~(1 << 30))
    bit = ACCESS_PLATFORM if rule.gate is Gate.IOMMU_PLATFORM else 30
    return replace(READY, acknowledged=READY.acknowledged & ~(1 << bit))


@rules
@pytest.mark.parametrize("need_reply", [False, True])
def test_every_request_is_admitted_when_all_is_negotiated(rule: Rule, need_reply: bool) -> None:
    for role in Role:
        frame = frame_of(rule, need_reply=need_reply)
        message = session(role).admit(rule.channel, frame)
        assert (message.rule, message.fds, message.need_reply) == (rule, frame.fds, need_reply)
        assert (message.body.pack() if message.body else b"") == frame.payload


@pytest.mark.parametrize("rule", GATED, ids=lambda rule: f"{rule.channel.value} {rule.name}")
def test_w29_sh01_a_request_without_its_gate_is_refused_and_leaves_no_trace(rule: Rule) -> None:
    for role, kind in ((receiver(rule.channel), RemoteProtocolError), (Role(rule.channel.value), LocalProtocolError)):
        end = session(role, without(rule))
        before = end.state
        with pytest.raises(kind, match=r"was not (negotiated|offered)") as caught:
            end.admit(rule.channel, frame_of(rule))
        assert end.state is before
        assert (caught.value.request, caught.value.field, caught.value.value) == (rule.name, "request", rule.id)
        assert caught.value.limit
        assert not caught.value.fatal


def test_requests_before_any_negotiation_need_no_gate() -> None:
    end = session(state=State(offered=1 << 30))
    for rule in (rule for rule in FRONTEND.values() if rule.gate is None and rule.payload is None):
        end.admit(Channel.FRONTEND, frame_of(rule))
    end.admit(Channel.FRONTEND, frame_of(FRONTEND[Q.GET_PROTOCOL_FEATURES]))


@rows
@pytest.mark.parametrize("no_fd", [False, True])
@pytest.mark.parametrize("log_shmfd", [False, True])
def test_w12_w14_w15_m02_a_request_brings_the_fds_that_the_text_says(row: RequestRow, no_fd: bool, log_shmfd: bool) -> None:
    rule = RULES[row.channel][row.id]
    state = READY if log_shmfd else replace(READY, protocol_acknowledged=ALL & ~(1 << F.LOG_SHMFD))
    frame = frame_of(rule)
    if "bit 8" in row.fds:
        frame = request_frame(rule.id, U64(0x100 if no_fd else 0))
    if rule.request is Q.SET_LOG_BASE and not log_shmfd:
        frame = request_frame(rule.id, U64(0))
    allowed = row.fd_counts(regions=1, no_fd=no_fd, log_shmfd=log_shmfd)
    for count in (*range(4), 8, MAX_FDS):
        end = session(receiver(row.channel), state)
        if count in allowed:
            end.admit(rule.channel, frame._replace(fds=tuple(range(count))))
            continue
        with pytest.raises(RemoteProtocolError, match=f"came with {count} fds") as caught:
            end.admit(rule.channel, frame._replace(fds=tuple(range(count))))
        assert end.state is state
        assert (caught.value.request, caught.value.field, caught.value.value) == (rule.name, "fds", count)


@rows
def test_w27_w28_which_reply_is_owed(row: RequestRow) -> None:
    rule = RULES[row.channel][row.id]
    for acks in (False, True):
        for postcopy in (False, True):
            features = [F.LOG_SHMFD] * (row.reply() is Reply.OWN_WITH_LOG_SHMFD) + [F.REPLY_ACK] * acks
            state = replace(with_features(READY, *features), postcopy=postcopy)
            own = row.mode == "always" or "LOG_SHMFD" in row.gate_words
            own |= row.mode == "cond" and "LOG_SHMFD" not in row.gate_words and postcopy
            assert reply_owed(rule, state, True) is (Owed.OWN if own else Owed.ACK if acks else Owed.NOTHING)
            assert reply_owed(rule, state, False) is (Owed.OWN if own else Owed.NOTHING)


def test_w27_set_log_base_without_its_feature_is_acknowledged_like_the_others() -> None:
    state = with_features(READY, F.REPLY_ACK)
    assert reply_owed(FRONTEND[Q.SET_LOG_BASE], state, True) is Owed.ACK


@pytest.mark.parametrize("request_id", UNKNOWN)
@pytest.mark.parametrize("channel", list(Channel))
def test_w25_w26_an_unknown_request_is_refused_and_the_connection_lives(channel: Channel, request_id: int) -> None:
    end = session(receiver(channel))
    with pytest.raises(RemoteProtocolError, match=f"request {request_id} is unknown") as caught:
        end.admit(channel, Frame(request_id, 0x9, b"anything"))
    assert (caught.value.value, caught.value.limit, caught.value.fatal) == (request_id, len(RULES[channel]), False)
    assert end.state is READY


@rules
def test_w20_a_request_with_the_reply_flag_ends_the_connection(rule: Rule) -> None:
    end, frame = session(receiver(rule.channel)), frame_of(rule)
    with pytest.raises(RemoteProtocolError, match="reply flag") as caught:
        end.admit(rule.channel, frame._replace(flags=0x5))
    assert caught.value.fatal
    assert (caught.value.field, caught.value.value) == ("flags", 5)
    assert end.state is READY


@rules
def test_a_wrong_request_of_ours_is_our_fault(rule: Rule) -> None:
    end = session(Role(rule.channel.value))
    assert end.error(rule.channel) is LocalProtocolError
    with pytest.raises(LocalProtocolError) as caught:
        end.admit(rule.channel, frame_of(rule)._replace(payload=bytes(4097)))
    assert (caught.value.field, caught.value.value) == ("size", 4097)
    assert end.state is READY


# Replies


def good_reply(rule: Rule) -> Frame[int]:
    return reply_frame(rule.id, body_of(rule.answer), tuple(range(rule.answer_fds[-1])))


OWN = [rule for rule in ALL_RULES if rule.reply is not Reply.ACK]


@pytest.mark.parametrize("rule", OWN, ids=lambda rule: f"{rule.channel.value} {rule.name}")
def test_a_reply_of_its_own_is_taken_in(rule: Rule) -> None:
    frame = good_reply(rule)
    body = session(Role(rule.channel.value)).admit_reply(rule, frame, Owed.OWN)
    assert (body.pack() if body else b"") == frame.payload


@rules
def test_an_acknowledgement_is_one_number_and_no_fd(rule: Rule) -> None:
    end = session(Role(rule.channel.value))
    assert end.admit_reply(rule, reply_frame(rule.id, U64(1)), Owed.ACK) == U64(1)
    with pytest.raises(RemoteProtocolError, match="came with 1 fds") as caught:
        end.admit_reply(rule, reply_frame(rule.id, U64(0), (3,)), Owed.ACK)
    assert caught.value.fatal


@rules
@pytest.mark.parametrize(
    ("field", "change"),
    [("request", {"request": 99}), ("flags", {"flags": 0x1}), ("flags", {"flags": 0xD}), ("flags", {"flags": 0x15})],
)
def test_w22_a_wrong_reply_ends_the_connection(rule: Rule, field: str, change: dict[str, int]) -> None:
    good: Frame[int] = reply_frame(rule.id, U64(0))
    frame = Frame[int](change.get("request", good.request), change.get("flags", good.flags), good.payload)
    with pytest.raises(RemoteProtocolError, match="expected the reply to") as caught:
        session(Role(rule.channel.value)).admit_reply(rule, frame, Owed.ACK)
    assert (caught.value.request, caught.value.field, caught.value.fatal) == (rule.name, field, True)
    assert caught.value.value == next(iter(change.values()))


@pytest.mark.parametrize("size", [0, 4, 7, 9, 16])
@pytest.mark.parametrize("rule", [rule for rule in ALL_RULES if rule not in OWN], ids=lambda rule: rule.name)
def test_w22_an_acknowledgement_of_another_size_ends_the_connection(rule: Rule, size: int) -> None:
    frame: Frame[int] = reply_frame(rule.id)._replace(payload=bytes(size))
    with pytest.raises(RemoteProtocolError, match="payload size") as caught:
        session(Role(rule.channel.value)).admit_reply(rule, frame, Owed.ACK)
    assert caught.value.fatal


def test_w38_an_empty_reply_to_get_config_is_an_honest_no() -> None:
    rule = FRONTEND[Q.GET_CONFIG]
    assert session(Role.FRONTEND).admit_reply(rule, reply_frame(rule.id), Owed.OWN) is None


def region(guest_addr: int, size: int, user_addr: int) -> MemoryRegion:
    return MemoryRegion(guest_addr, size, user_addr, 0)


def single(guest_addr: int, size: int, user_addr: int) -> SingleRegion:
    return SingleRegion(guest_addr, size, user_addr, 0)


TABLE = MemoryTable([region(0, 4096, 0), region(8192, 4096, 8192)])


@pytest.mark.parametrize(
    ("request_", "asked", "answer", "field"),
    [
        (Q.GET_VRING_BASE, VringState(0, 0), VringState(1, 0), "index"),
        (Q.GET_CONFIG, Config(0, 4, 0, bytes(4)), Config(4, 4, 0, bytes(4)), "offset"),
        (Q.GET_INFLIGHT_FD, Inflight(0, 0, 1, 16), Inflight(4096, 0, 2, 16), "num_queues"),
        (Q.GET_INFLIGHT_FD, Inflight(0, 0, 1, 16), Inflight(4096, 0, 1, 8), "queue_size"),
        (Q.SET_MEM_TABLE, TABLE, MemoryTable(TABLE.regions[:1]), "num_regions"),
        (Q.SET_MEM_TABLE, TABLE, MemoryTable([region(0, 4096, 0), region(0, 4096, 8192)]), "guest_addr"),
        (Q.SET_MEM_TABLE, TABLE, MemoryTable([region(0, 8192, 0), region(8192, 4096, 8192)]), "size"),
        (Q.ADD_MEM_REG, single(0, 4096, 0), single(4096, 4096, 0), "guest_addr"),
        (Q.ADD_MEM_REG, single(0, 4096, 0), single(0, 4097, 0), "size"),
    ],
)
def test_w22_a_reply_about_something_else_ends_the_connection(
    request_: FrontendRequest, asked: Payload, answer: Payload, field: str
) -> None:
    with pytest.raises(RemoteProtocolError, match=f"{request_.name} reply {field}") as caught:
        session(Role.FRONTEND).admit_reply(rule_of(request_), reply_frame(request_, answer), Owed.OWN, asked)
    assert (caught.value.fatal, caught.value.field) == (True, field)


@pytest.mark.parametrize(
    ("request_", "asked", "answer"),
    [
        (Q.GET_VRING_BASE, VringState(1, 0), VringState(1, 7)),
        (Q.GET_CONFIG, Config(4, 4, 0, bytes(4)), Config(4, 4, 1, b"abcd")),
        (Q.GET_CONFIG, Config(4, 4, 0, bytes(4)), Config(0, 0, 0)),
        (Q.GET_INFLIGHT_FD, Inflight(0, 0, 1, 16), Inflight(0, 0, 9, 9)),
        (Q.GET_INFLIGHT_FD, Inflight(0, 0, 1, 16), Inflight(4096, 0, 0, 0)),
        (Q.SET_MEM_TABLE, TABLE, MemoryTable([region(0, 4096, 1 << 40), region(8192, 4096, 1 << 41)])),
        (Q.ADD_MEM_REG, single(0, 4096, 0), single(0, 4096, 1 << 40)),
    ],
)
def test_a_reply_that_repeats_what_was_asked_or_says_no_is_taken(
    request_: FrontendRequest, asked: Payload, answer: Payload
) -> None:
    found = session(Role.FRONTEND).admit_reply(rule_of(request_), reply_frame(request_, answer), Owed.OWN, asked)
    assert found == answer


def test_a_front_end_learns_from_replies() -> None:
    end = Session(Role.FRONTEND, State())
    for request, body in ((Q.GET_FEATURES, U64(5)), (Q.GET_PROTOCOL_FEATURES, U64(6)), (Q.GET_QUEUE_NUM, U64(3))):
        end.admit_reply(rule_of(request), reply_frame(request, body), Owed.OWN)
    assert (end.state.offered, end.state.protocol_offered, len(end.state.rings)) == (5, 6, 3)
    end.admit_reply(rule_of(Q.GET_QUEUE_NUM), reply_frame(Q.GET_QUEUE_NUM, U64(1 << 63)), Owed.OWN)
    assert len(end.state.rings) == 256


@pytest.mark.parametrize(
    ("sizes", "field"), [({0: 4097}, "size"), ({0: 1 << 63}, "size"), ({0: 1 << 45, 1: 1 << 45, 2: 4096}, "size")]
)
def test_sh42_a_shared_memory_configuration_that_cannot_be_is_refused(sizes: dict[int, int], field: str) -> None:
    rule = FRONTEND[Q.GET_SHMEM_CONFIG]
    with pytest.raises(RemoteProtocolError) as caught:
        session(Role.FRONTEND).admit_reply(rule, reply_frame(rule.id, ShmemConfig(sizes)), Owed.OWN)
    assert (caught.value.request, caught.value.field) == ("GET_SHMEM_CONFIG", field)


@pytest.mark.parametrize("count", [1, 257, (1 << 32) - 1])
def test_sh42_a_count_of_regions_that_is_not_theirs_is_refused(count: int) -> None:
    rule = FRONTEND[Q.GET_SHMEM_CONFIG]
    frame: Frame[int] = reply_frame(rule.id)._replace(payload=count.to_bytes(4, "little") + bytes(2052))
    with pytest.raises(RemoteProtocolError, match="num_regions") as caught:
        session(Role.FRONTEND).admit_reply(rule, frame, Owed.OWN)
    assert (caught.value.value, caught.value.fatal) == (count, True)


def test_the_second_table_after_postcopy_is_empty() -> None:
    end = session(state=replace(READY, postcopy=True))
    message: Message[int] = end.admit(Channel.FRONTEND, request_frame(Q.SET_MEM_TABLE))
    assert message.body is None
    assert end.state.regions == READY.regions
    with pytest.raises(ProtocolError, match="payload size 0"):
        session().admit(Channel.FRONTEND, request_frame(Q.SET_MEM_TABLE))


def test_postcopy_begins_and_ends() -> None:
    end = session(state=replace(READY, protocol_acknowledged=mask((F.PAGEFAULT,))))
    assert send(end, Q.POSTCOPY_LISTEN).postcopy
    assert not send(end, Q.POSTCOPY_END).postcopy


def test_a_request_is_remembered_where_it_matters_later() -> None:
    end = session(state=replace(READY, backend_channel=False, asked_config=False))
    assert send(end, Q.SET_BACKEND_REQ_FD, fds=1).backend_channel
    assert send(end, Q.GET_SHMEM_CONFIG).asked_config
    assert not end.admit(Channel.FRONTEND, request_frame(Q.GET_VRING_BASE, VringState(0, 0))).fds
