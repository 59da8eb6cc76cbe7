"""What did not reach the peer, as a remark says later: nothing is made of it any more."""

from __future__ import annotations

import pytest

from tests.report.scene import EVENT, NOTES, Q, Scene
from tests.trace.building import FEATURES, items_of
from vhostuser.protocol.payloads import U64, VringState
from vhostuser.protocol.state import Role
from vhostuser.trace.event import Event, Message, Remark, Remarkable
from vhostuser.trace.ledger import Entry, Ledger
from vhostuser.trace.script import Script
from vhostuser.trace.undelivered import means, remark_of, undelivered


def scene() -> Scene:
    begun = Scene(features=FEATURES)
    begun.begin()
    return begun


def take_back(begun: Scene, place: int = -1) -> None:
    """A remark that a message was not delivered."""
    message = [event for event in begun.events if isinstance(event, Message)][place]
    begun.wait(5_000)
    begun.events.append(remark_of(message, 4, len(message.data), begun.at))


def played(events: list[Event]) -> list[Message]:
    script, found = Script(events, Role.FRONTEND), []
    while step := script.due():
        found.append(step.message)
        script.did(step)
    return found


def entries(events: list[Event]) -> list[Entry]:
    ledger = Ledger()
    for item in items_of(events):
        ledger.take(item)
    return ledger.end()


def test_a_note_and_a_remark_say_how_much_went() -> None:
    begun = scene()
    begun.ask(Q.SET_VRING_NUM, VringState(0, 16))
    message = begun.events[-1]
    assert isinstance(message, Message)
    assert undelivered(message).note == "not delivered"
    some = undelivered(message, 12, 20)
    assert (some.note, some.delivered) == ("not delivered: 12 of 20 bytes went", False)
    remark = remark_of(message, 12, 20, 7)
    assert remark == Remark(
        7,
        0,
        Remarkable.LOST,
        "not delivered: SET_VRING_NUM from the front-end on the front-end channel: 12 of 20 bytes went",
    )
    assert means(remark, message)


def test_a_replay_leaves_it_out() -> None:
    begun = scene()
    before = played(begun.events)
    begun.ask(Q.SET_VRING_NUM, VringState(0, 16))
    assert len(played(begun.events)) == len(before) + 1
    take_back(begun)
    begun.remark(Remarkable.CLOSED)
    assert played(begun.events) == before


def test_a_replay_leaves_out_the_last_one_only() -> None:
    begun = scene()
    for size in (16, 32):
        begun.ask(Q.SET_VRING_NUM, VringState(0, size))
    take_back(begun)
    (*_, last) = played(begun.events)
    assert last.payload == VringState(0, 16).pack()


@pytest.mark.parametrize("need_reply", [False, True])
def test_its_fds_are_not_booked_as_handed_over(need_reply: bool) -> None:
    """Whether its request was settled before that is said, or never."""
    begun = scene()
    begun.ask(Q.SET_VRING_ERR, U64(0), EVENT)
    begun.ask(Q.SET_VRING_ERR, U64(1), EVENT, need_reply=need_reply)
    take_back(begun)
    begun.remark(Remarkable.CLOSED)
    first, second = entries(begun.events)[-2:]
    assert first.fate == "the connection ended"
    assert (second.fate, second.ended, second.leak) == ("its message was not delivered", begun.at - 5_000, False)


@pytest.mark.parametrize("note", ["not delivered", "delayed 10 s, not delivered: 4 of 20 bytes went", "dropped"])
def test_the_fds_of_a_message_that_says_so_itself_are_not_either(note: str) -> None:
    begun = scene()
    begun.ask(Q.SET_VRING_ERR, U64(0), EVENT)
    message = begun.events[-1]
    assert isinstance(message, Message)
    begun.events[-1] = Message(message.at, 0, message.channel, message.sender, message.data, message.fds, note=note)
    assert entries(begun.events)[-1].fate == "its message was not delivered"


def test_what_else_was_lost_takes_nothing_back() -> None:
    begun = scene()
    begun.map(NOTES, 0, 4096)
    before = [each.fate for each in entries(begun.events)]
    begun.remark(Remarkable.LOST, "queue 0: 3 requests came and went between two looks")
    assert [each.fate for each in entries(begun.events)] == before
