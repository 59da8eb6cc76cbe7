"""Requests find their replies, and what is wrong with either is told."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vhostuser.protocol.framing import Frame
from vhostuser.protocol.numbers import HEADER_SIZE, NEED_REPLY, REPLY, VERSION, ProtocolFeature
from vhostuser.protocol.payloads import U64, Config, DeviceState, Log, MemoryRegion, MemoryTable, Mmap, VringState
from vhostuser.protocol.rules import RULES, Channel
from vhostuser.protocol.state import Owed, Role
from vhostuser.trace.conversation import MOST_PENDING, Conversation, Exchange
from vhostuser.trace.event import Message, Remark, Remarkable

from .building import FEATURES, MICROSECOND, B, Q, Wire, exchanges_of, items_of


def test_a_request_that_is_owed_nothing_is_settled_at_once() -> None:
    found = exchanges_of([Wire().ask(Q.SET_OWNER)])
    assert [(each.request.name, each.owed, each.unanswered, each.latency) for each in found] == [
        ("SET_OWNER", Owed.NOTHING, False, None)
    ]


def test_a_request_of_its_own_reply_is_joined_with_it() -> None:
    wire = Wire()
    (found,) = exchanges_of([wire.ask(Q.GET_FEATURES), wire.answer(Q.GET_FEATURES, U64(5))])
    assert found.reply is not None
    assert (found.reply.body, found.latency, found.settled - found.at) == (U64(5), MICROSECOND, MICROSECOND)
    assert (found.status, found.refused, found.faults) == (None, False, ())


@pytest.mark.parametrize(("status", "refused"), [(0, False), (1, True), ((1 << 64) - 22, True)])
def test_an_acknowledgement_says_yes_or_no(status: int, refused: bool) -> None:
    wire = Wire()
    found = exchanges_of([*wire.agreed(), *wire.map(0, 4096, status=status)])[-1]
    assert (found.request.name, found.status, found.refused) == ("SHMEM_MAP", status, refused)


def test_without_reply_ack_need_reply_is_owed_nothing() -> None:
    wire = Wire()
    features = FEATURES & ~(1 << ProtocolFeature.REPLY_ACK)
    mapped, reply = exchanges_of([*wire.agreed(features), *wire.map(0, 4096)])[-2:]
    assert (mapped.owed, mapped.reply, reply.orphan) == (Owed.NOTHING, None, True)


def test_both_channels_are_answered_apart() -> None:
    wire = Wire()
    events = [
        *wire.agreed(),
        wire.ask(Q.GET_VRING_BASE, VringState(0, 0)),
        *wire.map(0, 4096),
        wire.answer(Q.GET_VRING_BASE, VringState(0, 7)),
    ]
    assert [each.request.name for each in exchanges_of(events)][-2:] == ["SHMEM_MAP", "GET_VRING_BASE"]


def test_connections_are_answered_apart() -> None:
    one, two = Wire(0), Wire(1)
    events = [one.ask(Q.GET_FEATURES), two.ask(Q.GET_FEATURES), two.answer(Q.GET_FEATURES, U64(2))]
    found = exchanges_of(events)
    assert [(each.message.connection, each.unanswered) for each in found] == [(1, False), (0, True)]


def test_a_reply_settles_what_should_have_been_answered_before_it() -> None:
    wire = Wire()
    events = [wire.ask(Q.GET_FEATURES), wire.ask(Q.GET_QUEUE_NUM), wire.answer(Q.GET_QUEUE_NUM, U64(1))]
    assert [(each.request.name, each.unanswered) for each in exchanges_of(events)] == [
        ("GET_FEATURES", True),
        ("GET_QUEUE_NUM", False),
    ]


def test_a_reply_to_nothing_is_an_orphan() -> None:
    (found,) = exchanges_of([Wire().answer(Q.GET_FEATURES, U64(5))])
    assert found.orphan
    assert not found.unanswered


def test_the_end_of_a_connection_gives_up_what_is_unanswered() -> None:
    wire = Wire()
    *_, asked, closed = items_of([wire.ask(Q.GET_FEATURES), wire.remark(Remarkable.CLOSED, "the back-end ended it")])
    assert isinstance(asked, Exchange)
    assert asked.unanswered
    assert isinstance(closed, Remark)


def test_a_new_connection_of_the_same_number_has_agreed_on_nothing() -> None:
    wire, conversation = Wire(), Conversation()
    for event in wire.agreed():
        conversation.take(event)
    assert conversation.state(0).protocol_acknowledged == FEATURES
    conversation.take(wire.remark(Remarkable.CLOSED))
    assert conversation.state(0).protocol_acknowledged == 0


def test_what_was_offered_is_learned_from_the_answers() -> None:
    wire, conversation = Wire(), Conversation()
    for event in wire.agreed():
        conversation.take(event)
    state = conversation.state(0)
    assert (state.offered, state.acknowledged, state.protocol_offered) == (1 << 30, 1 << 30, FEATURES)


def test_requests_that_nobody_answers_are_given_up_not_kept() -> None:
    wire, conversation = Wire(), Conversation()
    given_up = [item for _ in range(MOST_PENDING + 3) for item in conversation.take(wire.ask(Q.GET_FEATURES))]
    assert [item.index for item in given_up if isinstance(item, Exchange)] == [0, 1, 2]
    assert len(conversation.end()) == MOST_PENDING


def test_get_config_says_no_by_an_empty_payload() -> None:
    wire = Wire()
    (found,) = exchanges_of([wire.ask(Q.GET_CONFIG, Config(0, 4, 0, bytes(4))), wire.answer(Q.GET_CONFIG)])
    assert (found.refused, found.faults) == (True, ())


def test_a_payload_depends_on_what_was_negotiated() -> None:
    wire = Wire()
    features = 1 << ProtocolFeature.LOG_SHMFD
    found = exchanges_of([*wire.agreed(features), wire.ask(Q.SET_LOG_BASE, Log(4096, 0))])[-1]
    assert found.request.values() == {"mmap_size": 4096, "mmap_offset": 0}
    assert found.owed is Owed.OWN


def test_postcopy_changes_what_set_mem_table_is_owed_and_may_carry() -> None:
    wire = Wire()
    events = [*wire.agreed(1 << ProtocolFeature.PAGEFAULT), wire.ask(Q.POSTCOPY_LISTEN), wire.ask(Q.SET_MEM_TABLE)]
    found = exchanges_of(events)[-1]
    assert (found.owed, found.faults) == (Owed.OWN, ())
    over = max(exchanges_of([*events, wire.ask(Q.POSTCOPY_END), wire.ask(Q.SET_MEM_TABLE)]), key=lambda each: each.index)
    assert over.request.fault.startswith("SET_MEM_TABLE payload size 0")


FAULTS: list[tuple[Frame[int], str]] = [
    (Frame(Q.SET_FEATURES, VERSION, bytes(7)), "payload size 7 must be 8"),
    (Frame(Q.SET_FEATURES, 2, bytes(8)), "header version 2 is not the protocol's version 1"),
    (Frame(Q.SET_FEATURES, VERSION | 0x10, bytes(8)), "reserved bits"),
    (Frame(Q.SET_FEATURES, VERSION | REPLY, bytes(8)), "a request with the reply flag"),
    (Frame(77, VERSION), "request 77 is unknown on the front-end channel"),
    (Frame(Q.SET_MEM_TABLE, VERSION, bytes(8) + bytes(32)), "num_regions is 0"),
]


@pytest.mark.parametrize(("frame", "why"), FAULTS, ids=[why for _, why in FAULTS])
def test_what_is_wrong_with_a_request_is_told(frame: Frame[int], why: str) -> None:
    (found,) = exchanges_of([Wire().message(Channel.FRONTEND, Role.FRONTEND, frame)])
    assert why in found.request.fault
    assert found.request.values() == {}


def test_a_reply_without_the_reply_flag_is_told() -> None:
    wire = Wire()
    wrong = wire.message(Channel.FRONTEND, Role.BACKEND, Frame(Q.GET_FEATURES, VERSION, bytes(8)))
    (found,) = exchanges_of([wire.ask(Q.GET_FEATURES), wrong])
    assert found.faults == ("flags 0x1: a reply without the reply flag",)


def test_a_size_that_is_not_that_of_the_payload_is_told() -> None:
    cut = replace(Wire().ask(Q.SET_FEATURES, U64(1)), data=Wire().ask(Q.SET_FEATURES, U64(1)).data[:-3])
    assert exchanges_of([cut])[0].request.fault == "the header says 8 bytes of payload, there are 5"


def test_what_is_shorter_than_a_header_is_told() -> None:
    piece = Message(1, 0, Channel.BACKEND, Role.BACKEND, b"\x09\0")
    assert exchanges_of([piece])[0].request.fault == "2 bytes are no header, which has 12"


def test_bytes_that_are_no_message_are_shown_as_such() -> None:
    piece = Message(1, 0, Channel.FRONTEND, Role.BACKEND, b"GET / HTTP/1.1", whole=False)
    (found,) = exchanges_of([piece])
    assert (found.request.name, found.request.fault, found.owed) == ("bytes", "14 bytes that are no message", Owed.NOTHING)


def test_an_unknown_request_is_owed_an_acknowledgement_as_any_other() -> None:
    wire = Wire()
    asked = wire.message(Channel.FRONTEND, Role.FRONTEND, Frame(77, VERSION | NEED_REPLY))
    found = exchanges_of([*wire.agreed(), asked, wire.answer(77, U64(1))])[-1]
    assert (found.status, found.refused) == (1, True)


def test_fields_have_the_names_and_values_of_the_specification() -> None:
    wire = Wire()
    table = MemoryTable([MemoryRegion(0, 4096, 0x7000, 0)])
    found = exchanges_of([wire.ask(Q.SET_MEM_TABLE, table), wire.ask(Q.SET_DEVICE_STATE_FD, DeviceState(1, 0))])
    assert found[0].request.values() == {
        "num_regions": 1,
        "regions": [{"guest_addr": 0, "size": 4096, "user_addr": 0x7000, "mmap_offset": 0}],
    }
    assert found[1].request.values() == {"direction": 1, "phase": 0}


def test_the_index_is_that_of_the_event() -> None:
    wire = Wire()
    events = [*wire.agreed(), *wire.map(0, 4096), *wire.unmap(0, 4096)]
    assert [each.index for each in exchanges_of(events)][-2:] == [7, 9]


@given(
    st.lists(
        st.builds(
            Message,
            st.integers(0, 1 << 62),
            st.integers(0, 2),
            st.sampled_from(Channel),
            st.sampled_from(Role),
            st.one_of(
                st.binary(max_size=64),
                st.builds(
                    lambda number, flags, payload: Frame[int](number, flags, payload).pack(),
                    st.integers(0, 50),
                    st.integers(0, 15),
                    st.binary(max_size=64),
                ),
            ),
            st.just(()),
            st.booleans(),
        ),
        max_size=40,
    )
)
def test_every_message_comes_out_exactly_once(messages: list[Message]) -> None:
    found = exchanges_of(list(messages))
    seen = [each.request.index for each in found] + [each.reply.index for each in found if each.reply]
    assert sorted(seen) == list(range(len(messages)))


@pytest.mark.parametrize("channel", Channel)
def test_each_request_of_the_tables_has_its_name(channel: Channel) -> None:
    sender = Role.FRONTEND if channel is Channel.FRONTEND else Role.BACKEND
    for number, rule in RULES[channel].items():
        (found,) = exchanges_of([Message(1, 0, channel, sender, Frame[int](number, VERSION).pack())])
        assert (found.request.name, found.message.request) == (rule.name, number)
        assert len(found.message.data) == HEADER_SIZE


def test_a_mapping_can_be_read_from_its_request() -> None:
    found = exchanges_of(Wire().map(0x2000, 0x1000))[0]
    assert found.request.body == Mmap(0, 0, 0x2000, 0x1000)
    assert found.message.request == B.SHMEM_MAP
