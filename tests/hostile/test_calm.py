"""P20, Q28: what costs a back-end time and does nothing is served more slowly; what is right never is, nor is a stop."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace

import pytest

from tests.wire.devices import Scripted
from vhostuser import kick_poller, patience, queue_thread
from vhostuser.kick_poller import MOST_EMPTY, KickPoller
from vhostuser.patience import AT_ONCE, BURST, PER_SECOND, Patience
from vhostuser.protocol.numbers import NEED_REPLY, VERSION
from vhostuser.protocol.numbers import FrontendRequest as Q
from vhostuser.protocol.payloads import U64, VringState
from vhostuser.testing import RawFrontend, ServedRawFrontend, message, raw_frontend, wait_until
from vhostuser.transport.fds import OwnedFd
from vhostuser.vring import Vring

from .rig import KINDS, Connected, connected, echoes
from .test_storms import endless, full

FOR_EVER = 1e5
"""Seconds, or seconds a refusal: longer than any test may take."""
REFUSED = message(Q.SET_VRING_NUM, VringState(0xFFFF, 16), flags=VERSION | NEED_REPLY)


# Kicks


class Waiting(Scripted):
    """Its thread waits in Python, where a test can see it look, and not in compiled code."""

    def takes(self, queue: int) -> bool:
        return True


@pytest.fixture(params=KINDS)
def rig(request: pytest.FixtureRequest) -> Iterator[Connected]:
    """Queue 0, of 8 entries, of such a device."""
    with connected(Waiting(), KINDS[request.param]) as rig:
        yield rig


@pytest.mark.parametrize("make", [full, endless])
@pytest.mark.parametrize("kind", KINDS)
def test_q28_a_kick_without_end_keeps_no_thread_from_another_queue_or_kick(kind: str, make: Callable[[], int]) -> None:
    with connected(Scripted(), KINDS[kind]) as rig, OwnedFd(make()) as kick:
        rig.raw.accepted(Q.SET_VRING_KICK, U64(0), fds=[kick])
        rig.raw.alive()
        rig.raw.accepted(Q.SET_VRING_KICK, U64(0), fds=[rig.kick])
        echoes(rig)
        rig.raw.accepted(Q.SET_VRING_KICK, U64(0), fds=[kick])
        echoes(other := rig.another(index=1), 50)
        rig.stop()
        echoes(rig.another())
        other.close()


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The rings whose kicks were looked at; a kick that rests does so for ever."""
    seen: list[int] = []
    take = Vring.take_kick

    def taken(vring: Vring, fd: int) -> None:
        seen.append(vring.index)
        take(vring, fd)

    monkeypatch.setattr(Vring, "take_kick", taken)
    monkeypatch.setattr(kick_poller, "REST", FOR_EVER)
    return seen


@pytest.mark.parametrize("make", [full, endless])
def test_q28_a_kick_without_end_rests_and_another_one_is_taken_at_once(
    rig: Connected, looks: list[int], make: Callable[[], int]
) -> None:
    other = rig.another(index=1)
    with OwnedFd(make()) as kick:
        rig.raw.accepted(Q.SET_VRING_KICK, U64(0), fds=[kick])
        wait_until(lambda: looks.count(0) > MOST_EMPTY, "the kick was empty too often")
        echoes(other, 50)
        assert looks.count(0) <= MOST_EMPTY + 2  # the first may be that of before
        rig.raw.accepted(Q.SET_VRING_KICK, U64(0), fds=[rig.kick])
        echoes(rig)
        rig.raw.accepted(Q.SET_VRING_KICK, U64(0), fds=[kick])
        rig.stop()
    echoes(rig.another())
    other.close()


def test_q28_the_connection_ends_while_a_kick_rests(rig: Connected, looks: list[int]) -> None:
    with OwnedFd(endless()) as kick:
        rig.raw.accepted(Q.SET_VRING_KICK, U64(0), fds=[kick])
        wait_until(lambda: looks.count(0) > MOST_EMPTY, "the kick was empty too often")


def test_q28_the_kicks_of_a_driver_never_rest(rig: Connected, looks: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """One thread's: two in a row that find nothing there are not."""
    monkeypatch.setattr(queue_thread, "MOST_EMPTY", 1)
    rested: list[int] = []
    monkeypatch.setattr(KickPoller, "rest", lambda poller, fd: rested.append(fd))
    echoes(rig, 500)
    assert looks
    assert rested == []


# Refusals


def credit(monkeypatch: pytest.MonkeyPatch, refusals: float) -> None:
    """Have so much credit, for good: whoever has none left rests for ever."""
    monkeypatch.setattr(patience, "BURST", refusals)
    monkeypatch.setattr(patience, "PER_SECOND", 1 / FOR_EVER)


def test_p20_every_refusal_of_a_flood_is_answered_and_so_is_what_is_right() -> None:
    count = BURST + 10 * AT_ONCE
    with raw_frontend(Scripted()) as raw:
        raw.negotiate()
        for _ in range(count // 10):
            raw.send(REFUSED * 10)
            assert [U64.unpack(raw.receive().payload).value for _ in range(10)] == [1] * 10
            raw.alive()
        assert raw.served.backend.counters.refused == count


def is_left_alone(raw: RawFrontend) -> None:
    """Its back-end rests, and is stopped."""
    assert isinstance(raw, ServedRawFrontend)
    raw.request(Q.GET_FEATURES)
    raw.served.stop()
    assert raw.receive_or_end() is None
    assert raw.served.error is None


@pytest.mark.parametrize("known", [True, False], ids=["refused", "unknown"])
def test_p20_a_stop_does_not_wait_for_a_back_end_that_rests(known: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    credit(monkeypatch, 1)
    with raw_frontend(Scripted()) as raw:
        raw.negotiate()
        raw.refused(Q.SET_VRING_NUM if known else 4711, VringState(0xFFFF, 16))
        is_left_alone(raw)


def test_p20_what_is_right_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    credit(monkeypatch, 1)
    with raw_frontend(Scripted()) as raw:
        raw.start()
        call = raw.eventfd()
        for _ in range(500):
            raw.alive()
            raw.accepted(Q.SET_VRING_CALL, U64(0), fds=[call])
            raw.reply(Q.GET_VRING_BASE, VringState(0, 0))


def test_p20_a_ring_that_is_broken_costs_as_much_as_many_refusals(monkeypatch: pytest.MonkeyPatch) -> None:
    credit(monkeypatch, patience.BROKEN)
    with connected(Scripted(), KINDS["split"]) as first:
        rig = first.another()
        rig.available[2:4] = b"\xff\x7f"
        rig.broken()
        rig.stop()
        is_left_alone(rig.raw)


def test_credit_comes_back_with_time_and_never_passes_the_burst(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(patience, "time", SimpleNamespace(monotonic=lambda: now[0]))
    credit = Patience()
    credit.spend(BURST - 1)
    assert credit.rest() == 0
    credit.spend()
    assert credit.rest() == pytest.approx(AT_ONCE / PER_SECOND)
    now[0] += 1.01 * AT_ONCE / PER_SECOND
    assert credit.rest() == 0
    credit.spend(2 * AT_ONCE)
    assert 0 < credit.rest() <= 2 * AT_ONCE / PER_SECOND
    now[0] += 1e6
    assert credit.rest() == 0
    credit.spend(BURST)
    assert credit.rest() > 0
