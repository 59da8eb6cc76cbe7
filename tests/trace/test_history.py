"""Mappings last from their acknowledgement to whatever ends them."""

from __future__ import annotations

from vhostuser.protocol.numbers import ProtocolFeature
from vhostuser.protocol.payloads import U64
from vhostuser.trace.event import Event, Remarkable
from vhostuser.trace.history import History, status_in_words

from .building import FEATURES, FILE, B, Q, Wire, items_of


def history_of(events: list[Event], *, keep: bool = True) -> History:
    history = History(keep=keep)
    for item in items_of(events):
        history.take(item)
    return history


def places(history: History) -> list[tuple[int, int]]:
    return [(each.shm_offset, each.len) for each in history.live()]


def test_a_mapping_begins_with_its_acknowledgement_and_ends_with_that_of_its_unmap() -> None:
    wire = Wire()
    mapped, unmapped = wire.map(0x1000, 0x2000), wire.unmap(0x1000, 0x2000)
    history = history_of([*wire.agreed(), *wire.region(1 << 20), *mapped, *unmapped])
    (placed,) = history.placed
    assert (placed.begin, placed.end, placed.fd, placed.index) == (mapped[1].at, unmapped[1].at, FILE, 9)
    assert history.sizes == {(0, 0): 1 << 20}
    assert [placed.lives(at) for at in (mapped[0].at, mapped[1].at, unmapped[1].at)] == [False, True, False]
    assert (places(history), history.live(mapped[1].at)) == ([], [placed])


def test_without_an_acknowledgement_it_begins_at_once() -> None:
    wire = Wire()
    (sent, _) = wire.map(0, 0x1000)
    features = FEATURES & ~(1 << ProtocolFeature.REPLY_ACK)
    assert history_of([*wire.agreed(features), sent]).placed[0].begin == sent.at


def test_a_refused_one_is_kept_with_its_reason_and_is_nowhere() -> None:
    wire = Wire()
    history = history_of([*wire.agreed(), *wire.map(0, 0x1000, status=(1 << 64) - 22)])
    assert [each.refused for each in history.placed] == ["refused with -EINVAL"]
    assert (places(history), history.count, history.mapped) == ([], 0, 0)


def test_one_that_is_never_answered_is_nowhere() -> None:
    wire = Wire()
    history = history_of([*wire.agreed(), wire.map(0, 0x1000)[0]])
    assert [each.refused for each in history.placed] == ["no reply"]


def test_an_unmap_that_is_refused_or_not_exact_ends_nothing() -> None:
    wire = Wire()
    history = history_of([*wire.agreed(), *wire.map(0, 0x2000), *wire.unmap(0, 0x2000, status=1), *wire.unmap(0, 0x1000)])
    assert places(history) == [(0, 0x2000)]


def test_a_reset_ends_all_of_its_connection() -> None:
    wire, other = Wire(0), Wire(1)
    for reset in (wire.ask(Q.RESET_DEVICE), wire.ask(Q.SET_STATUS, U64(0))):
        history = history_of([*wire.agreed(), *wire.map(0, 0x1000), *other.agreed(), *other.map(0, 0x1000), reset])
        assert [each.connection for each in history.live()] == [1]
        assert history.resets == [(reset.at, 0)]


def test_a_status_that_is_not_0_is_no_reset() -> None:
    wire = Wire()
    assert places(history_of([*wire.agreed(), *wire.map(0, 0x1000), wire.ask(Q.SET_STATUS, U64(4))])) == [(0, 0x1000)]


def test_the_end_of_a_connection_ends_its_mappings() -> None:
    wire = Wire()
    closed = wire.remark(Remarkable.CLOSED)
    history = history_of([*wire.agreed(), *wire.map(0, 0x1000), closed])
    assert [each.end for each in history.placed] == [closed.at]


def test_an_accepted_mapping_over_others_shows_that_they_were_gone() -> None:
    wire = Wire()
    over = wire.map(0x1000, 0x2000)
    history = history_of([*wire.agreed(), *wire.map(0, 0x2000), *wire.map(0x2000, 0x2000), *wire.map(0x4000, 0x1000), *over])
    assert places(history) == [(0x1000, 0x2000), (0x4000, 0x1000)]
    assert [each.end for each in history.placed] == [over[1].at, over[1].at, None, None]


def test_regions_are_apart() -> None:
    wire = Wire()
    history = history_of([*wire.agreed(), *wire.map(0, 0x1000, shmid=0), *wire.map(0, 0x1000, shmid=3)])
    assert [each.shmid for each in history.live()] == [0, 3]
    assert (history.count, history.mapped) == (2, 0x2000)


def test_nothing_that_is_gone_is_kept_on_demand() -> None:
    wire = Wire()
    events = [*wire.agreed(), *(event for _ in range(50) for event in [*wire.map(0, 0x1000), *wire.unmap(0, 0x1000)])]
    history = history_of([*events, *wire.map(0x1000, 0x1000)], keep=False)
    assert (history.placed, places(history)) == ([], [(0x1000, 0x1000)])


def test_an_empty_mapping_or_an_orphan_is_nowhere() -> None:
    wire = Wire()
    assert places(history_of([*wire.agreed(), *wire.map(0, 0), wire.say(B.SHMEM_MAP)])) == []


def test_a_status_is_shown_by_its_errno_where_it_is_one() -> None:
    assert [status_in_words(value) for value in (1, (1 << 64) - 12, (1 << 64) - 9999)] == [
        "1",
        "-ENOMEM",
        str((1 << 64) - 9999),
    ]
