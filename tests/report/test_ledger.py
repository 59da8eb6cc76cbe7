"""The ledger of fds: what each was for, until when, and which nobody takes."""

from __future__ import annotations

from tests.report.scene import CACHE, EVENT, GUEST, MIB, NOTES, PHOTO, Q, Scene, session
from tests.trace.building import FEATURES, items_of
from vhostuser.protocol.framing import reply_frame
from vhostuser.protocol.numbers import ProtocolFeature
from vhostuser.protocol.payloads import U64, Inflight, MemoryRegion, MemoryTable, SingleRegion
from vhostuser.protocol.rules import Channel
from vhostuser.protocol.state import Role
from vhostuser.trace.event import Event, FdNote, Message
from vhostuser.trace.history import History
from vhostuser.trace.ledger import Entry, Ledger


def entries(events: list[Event]) -> list[Entry]:
    ledger, history = Ledger(), History()
    for item in items_of(events):
        ledger.take(item)
        history.take(item)
    return ledger.end(history.placed)


def right(features: int = FEATURES) -> Scene:
    scene = Scene(features=features)
    scene.begin()
    return scene


def last(scene: Scene) -> Entry:
    return entries(scene.events)[-1]


def named(scene: Scene, purpose: str) -> list[Entry]:
    return [each for each in entries(scene.events) if each.purpose.startswith(purpose)]


def test_every_fd_is_in_it_with_its_sender() -> None:
    scene = right()
    scene.map(NOTES, 0, 4096)
    found = entries(scene.events)
    passed = sum(len(each.fds) for each in scene.events if isinstance(each, Message))
    assert len(found) == passed
    assert {each.sender for each in found if each.request == "SHMEM_MAP"} == {Role.BACKEND}
    assert {each.fate for each in found if each.request == "SET_BACKEND_REQ_FD"} == {"in use at the end of the capture"}


def test_a_later_kick_replaces_the_one_before() -> None:
    scene = right()
    scene.set(Q.SET_VRING_KICK, U64(0), EVENT)
    first, second = named(scene, "kick of ring 0")
    assert first.fate == f"replaced by message {second.index}"
    assert first.ended is not None
    assert second.ended is None


def test_another_ring_replaces_nothing() -> None:
    scene = right()
    scene.set(Q.SET_VRING_KICK, U64(1), EVENT)
    assert [each.ended for each in named(scene, "kick of ring")] == [None, None]


def test_no_fd_from_now_on_takes_it_away() -> None:
    scene = right()
    scene.set(Q.SET_VRING_CALL, U64(0x100))
    assert named(scene, "call of ring 0")[0].fate == "taken away: no fd from now on"


def test_stopping_a_ring_ends_its_kick() -> None:
    scene = right()
    scene.stop()
    assert named(scene, "kick of ring 0")[0].fate == "the ring was stopped"


def test_a_refused_request_changes_nothing() -> None:
    scene = right()
    scene.ask(Q.SET_VRING_KICK, U64(0), EVENT, need_reply=True)
    scene.answer(Q.SET_VRING_KICK, U64(1))
    first, second = named(scene, "kick of ring 0")
    assert first.ended is None
    assert second.fate == "refused: its receiver closed it"


def test_memory_goes_with_a_new_table() -> None:
    scene = right()
    table = MemoryTable((MemoryRegion(0, MIB, 0, 0), MemoryRegion(1 << 32, MIB, MIB, 0)))
    scene.set(Q.SET_MEM_TABLE, table, GUEST, CACHE)
    old, *new = named(scene, "memory")
    assert old.fate == f"replaced by message {new[0].index}"
    assert [each.ended for each in new] == [None, None]


def test_memory_goes_with_its_region() -> None:
    scene = right(FEATURES | 1 << ProtocolFeature.CONFIGURE_MEM_SLOTS)
    scene.set(Q.ADD_MEM_REG, SingleRegion(1 << 32, MIB, MIB, 0), CACHE)
    scene.set(Q.REM_MEM_REG, SingleRegion(1 << 32, MIB, MIB, 0))
    assert [each.fate for each in named(scene, "memory")] == ["in use at the end of the capture", "the region was removed"]


def test_a_mapping_goes_by_unmap_and_with_the_connection() -> None:
    scene = right()
    scene.map(NOTES, 0, 4096)
    scene.unmap(0, 4096)
    scene.map(PHOTO, 0, 4096)
    scene.close()
    found = [each.fate for each in named(scene, "mapped")]
    assert found == ["unmapped, or gone by a reset", "still mapped when the connection ended"]


def test_the_end_of_the_connection_ends_all() -> None:
    scene = right()
    scene.close()
    assert all(each.ended is not None for each in entries(scene.events))


def test_what_nothing_takes_is_a_leak() -> None:
    scene = right()
    scene.ask(Q.SET_OWNER, None, EVENT)
    assert last(scene).leak
    assert last(scene).fate == "nothing takes it: its receiver has to close it"


def test_one_too_many_is_a_leak() -> None:
    scene = right()
    scene.ask(Q.SET_VRING_CALL, U64(0), EVENT, EVENT)
    assert [each.leak for each in entries(scene.events)[-2:]] == [False, True]


def test_what_nobody_answered_is_a_leak() -> None:
    scene = right()
    scene.map(NOTES, 0, 4096, status=None)
    assert last(scene).leak


def test_an_fd_of_a_malformed_message_is_a_leak() -> None:
    scene = right()
    scene.events.append(Message(scene.at, 0, Channel.FRONTEND, Role.FRONTEND, b"junk", (EVENT,), whole=False))
    assert last(scene).leak


def test_fds_of_replies() -> None:
    """The area of GET_INFLIGHT_FD is the front-end's until the next one; a reply that brings one for nothing is a leak."""
    scene = right(FEATURES | 1 << ProtocolFeature.INFLIGHT_SHMFD)
    scene.ask(Q.GET_INFLIGHT_FD, Inflight(0, 0, 1, 128))
    scene.wait(1000)
    scene.message(Channel.FRONTEND, Role.BACKEND, reply_frame(Q.GET_INFLIGHT_FD, Inflight(4096, 0, 1, 128)), [CACHE])
    assert last(scene).purpose == "inflight area, for SET_INFLIGHT_FD"
    assert last(scene).sender is Role.BACKEND
    scene.ask(Q.GET_FEATURES)
    scene.message(Channel.FRONTEND, Role.BACKEND, reply_frame(Q.GET_FEATURES, U64(1)), [FdNote(4, "pipe")])
    assert last(scene).leak


def test_the_session_of_all_has_two_leaks() -> None:
    assert sum(each.leak for each in entries(session())) == 2
