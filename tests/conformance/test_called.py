"""Front-ends that are functions of this process: one call for each connection, and what goes wrong with that."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from vhostuser.conformance import called_frontend
from vhostuser.conformance.called_frontend import Called
from vhostuser.conformance.check_frontend import check_front_end
from vhostuser.conformance.outcome import Result
from vhostuser.errors import VhostUserError
from vhostuser.transport.listen import connect

from .fronts import steady
from .test_front_peer import REACH, rule_named


@pytest.fixture
def over() -> Iterator[threading.Event]:
    """What a front-end of these tests waits for, and what ends it."""
    event = threading.Event()
    yield event
    event.set()


def test_each_connection_is_a_call() -> None:
    rules = [rule_named("a_whole_mapping_can_be_taken_away"), rule_named("unmapping_twice_is_refused")]
    calls = list[str]()

    def front_end(path: str) -> None:
        calls.append(path)
        steady(connect(path))

    with Called(front_end) as peer:
        outcomes = list(check_front_end(rules, peer, REACH))
    assert [outcome.result for outcome in outcomes] == [Result.KEPT] * 2
    assert len(calls) == 2


def test_one_that_does_not_connect_is_waited_for_so_long_only(over: threading.Event) -> None:
    with Called(lambda path: over.wait(), patience=0.05) as peer:
        with pytest.raises(VhostUserError, match=r"the front-end has not connected to .*/s within 0\.05 s"):
            peer.accept()
        over.set()


def test_one_that_does_not_end_is_told(over: threading.Event, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(called_frontend, "ENDS", 0.05)

    def clings(path: str) -> None:
        with connect(path):
            over.wait()

    with Called(clings) as peer:
        peer.accept().close()
        assert not peer.crashed()
        with pytest.raises(VhostUserError, match=r"has not ended within 0\.05 s, though its connection is over"):
            peer.accept()
        over.set()
        monkeypatch.undo()


@pytest.mark.parametrize(
    ("error", "says"),
    [(ValueError("a bug"), "it raised ValueError: a bug"), (ConnectionResetError(), ""), (VhostUserError("no"), "")],
)
def test_what_it_raises_is_a_crash_unless_it_says_so_that_it_goes(error: Exception, says: str) -> None:
    def raises(path: str) -> None:
        connect(path).close()
        raise error

    with Called(raises) as peer:
        peer.accept().close()
        assert peer.crashed() == says
