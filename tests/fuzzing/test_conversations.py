"""What is said, before anybody hears it: the same for the same seed, wrong in the ways there are names for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from random import Random

import pytest

from vhostuser.conformance.backend_bench import Offer
from vhostuser.conformance.scripted_backend import FEATURES, PROTOCOL
from vhostuser.fuzzing.act import Act, Conversation
from vhostuser.fuzzing.as_back_end import back_end_conversations
from vhostuser.fuzzing.as_front_end import front_end_conversations
from vhostuser.fuzzing.fds import CHANNEL, KINDS, made
from vhostuser.fuzzing.judge import Judge
from vhostuser.fuzzing.mutations import MUTATIONS
from vhostuser.fuzzing.shrink import TRIES, shrunk
from vhostuser.fuzzing.valid import conversation, plausible
from vhostuser.fuzzing.values import interesting
from vhostuser.protocol.framing import Frame, decode_payload, reply_frame
from vhostuser.protocol.layout import Field
from vhostuser.protocol.numbers import NEED_REPLY, VERSION, FrontendRequest
from vhostuser.protocol.payloads import U64, VringState
from vhostuser.protocol.rules import FRONTEND
from vhostuser.testing.wire import ACK
from vhostuser.transport.fds import OwnedFd

Q = FrontendRequest
OFFER = Offer(FEATURES, PROTOCOL, 2)
ASKED = [(Q.GET_FEATURES, 0), (Q.GET_QUEUE_NUM, 0), (Q.GET_SHMEM_CONFIG, 0)]
MAKERS: dict[str, Callable[[int], Callable[[int], Conversation]]] = {
    "front-end": lambda seed: front_end_conversations(seed, OFFER),
    "back-end": lambda seed: back_end_conversations(seed, ASKED),
}


@pytest.mark.parametrize("side", MAKERS)
def test_the_same_seed_is_the_same_conversations(side: str) -> None:
    make = MAKERS[side]
    first = [make(7)(number) for number in range(30)]
    assert first == [make(7)(number) for number in reversed(range(30))][::-1]
    assert first != [make(8)(number) for number in range(30)]
    assert len({talk.acts for talk in first}) > 25


@pytest.mark.parametrize("seed", range(20))
def test_before_it_is_made_wrong_a_conversation_is_valid(seed: int) -> None:
    for act in conversation(Random(seed), OFFER):
        rule = FRONTEND[act.request]
        decode_payload(act.name, rule.payload_under(PROTOCOL), act.payload)
        assert act.honest_size
        assert not act.changed


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_mutation_changes_what_is_said(name: str) -> None:
    random = Random(name)
    acts = conversation(random, OFFER)
    changed, at = list(acts), [act.request for act in acts].index(Q.SET_MEM_TABLE)
    MUTATIONS[name][1](random, lambda random: plausible(random, OFFER, Q.SET_OWNER), changed, at)
    assert changed != acts
    assert name in {act.changed for act in changed}


@pytest.mark.parametrize("kind", KINDS)
def test_an_fd_of_each_kind_can_be_made(kind: str) -> None:
    with made(kind) as fd:
        assert fd.fileno() >= 0
    assert kind != CHANNEL


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_an_interesting_value_fits_its_field(size: int) -> None:
    random = Random(size)
    values = {interesting(random, Field(name, "", 0, size), 0) for name in ("size", "index", "flags") for _ in range(200)}
    assert max(values) < 1 << 8 * size
    assert {0, 1, (1 << 8 * size) - 1} <= values


def test_an_act_knows_where_its_fields_are() -> None:
    act = plausible(Random(1), OFFER, Q.SET_MEM_TABLE)
    assert [field.name for field in act.fields()][:4] == ["num_regions", "padding", "guest_addr", "size"]
    assert act.with_bytes(0, b"\xff", "value").payload[:4] == b"\xff\0\0\0"
    assert replace(act, cut=5).pack() == act.pack()[:5]
    assert replace(act, size=77).pack()[8:12] == (77).to_bytes(4, "little")


# Which replies no rule allows

RIGHT: list[tuple[Act, Frame[OwnedFd]]] = [
    (Act(Q.GET_FEATURES), reply_frame(Q.GET_FEATURES, U64(1))),
    (Act(Q.SET_OWNER, flags=VERSION | NEED_REPLY), reply_frame(Q.SET_OWNER, U64(1))),
    (Act(Q.GET_CONFIG, bytes(13)), reply_frame(Q.GET_CONFIG)),
    (Act(Q.GET_VRING_BASE, bytes(8)), Frame(Q.GET_VRING_BASE, ACK | NEED_REPLY, bytes(8))),
    (Act(Q.SET_OWNER, size=5), Frame(99, ACK, bytes(3))),  # after which nobody knows what was asked
]
WRONG: list[tuple[Act, Frame[OwnedFd], str]] = [
    (Act(Q.GET_FEATURES), Frame(Q.GET_FEATURES, ACK, bytes(12)), "payload size 12"),
    (Act(Q.GET_FEATURES), Frame(Q.GET_FEATURES, VERSION, bytes(8)), "flags 0x1"),
    (Act(Q.GET_FEATURES), Frame(Q.GET_QUEUE_NUM, ACK, bytes(8)), "GET_QUEUE_NUM, which was not sent"),
    (Act(Q.SET_OWNER), Frame(Q.SET_OWNER, ACK, bytes(8)), "SET_OWNER, which asked for none"),
]


@pytest.mark.parametrize(("act", "frame"), RIGHT)
def test_a_reply_that_may_come(act: Act, frame: Frame[OwnedFd]) -> None:
    judge = Judge()
    judge.sent(act)
    assert judge.reply(frame) == ""


@pytest.mark.parametrize(("act", "frame", "says"), WRONG)
def test_a_reply_that_no_rule_allows(act: Act, frame: Frame[OwnedFd], says: str) -> None:
    judge = Judge()
    judge.sent(act)
    assert says in judge.reply(frame)


def test_a_reply_comes_once() -> None:
    judge = Judge()
    for _ in range(2):
        judge.sent(Act(Q.GET_FEATURES))
    reply: Frame[OwnedFd] = reply_frame(Q.GET_FEATURES, U64(1))
    assert [judge.reply(reply)[:7] for _ in range(3)] == ["", "", "a reply"]


# Made shorter


def failing(wanted: Callable[[Act], bool], tries: list[int]) -> Callable[[Conversation], bool]:
    def fails(talk: Conversation) -> bool:
        tries.append(len(talk.acts))
        return any(wanted(act) for act in talk.acts)

    return fails


def long() -> Conversation:
    acts = conversation(Random(5), OFFER)
    bad = Act(Q.SET_VRING_NUM, VringState(3, 77).pack(), ("memory", "pipe"), VERSION | NEED_REPLY, split=5, changed="value")
    return Conversation(1, (*acts, bad, *acts), "no")


def test_what_is_left_is_the_message_that_fails_and_its_field() -> None:
    short = shrunk(long(), failing(lambda act: act.payload[4:] == VringState(0, 77).pack()[4:], []), lambda: True)
    (act,) = short.acts
    assert (act.payload, act.fds, act.flags, act.split, short.manner) == (VringState(0, 77).pack(), (), VERSION, 0, "right")


def test_it_is_bounded() -> None:
    tries: list[int] = []
    many = replace(long(), acts=long().acts * 20)
    shrunk(many, failing(lambda act: act.fds == ("memory", "pipe"), tries), lambda: True)
    assert len(tries) <= TRIES
    assert shrunk(many, failing(lambda _: True, tries), lambda: False) == many
