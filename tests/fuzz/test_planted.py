"""Each target sees a fault that is planted in what it is about: an invariant that can't be broken would say nothing."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Final
from unittest import mock

import pytest

from tests.fuzz import corpus
from tests.fuzz.targets import TARGETS, load
from tests.fuzz.watching import Unexpected
from vhostuser import serving, virtqueue
from vhostuser.devices.fs import server
from vhostuser.memory import guest
from vhostuser.protocol import moves
from vhostuser.protocol.numbers import FrontendRequest
from vhostuser.protocol.regions import MappingTable
from vhostuser.protocol.rules import Channel
from vhostuser.protocol.state import State
from vhostuser.virtio.driver import DriverQueue


class Planted(RuntimeError):
    """An exception that nobody expects."""


def _features_that_were_not_offered() -> AbstractContextManager[object]:
    table = moves.MOVES[Channel.FRONTEND]
    return mock.patch.dict(table, {FrontendRequest.SET_FEATURES: lambda step, body: _acknowledging(step.state, body.value)})


def _acknowledging(state: State, value: int) -> State:
    return replace(state, acknowledged=value)


FAULTS: Final[dict[str, Callable[[], AbstractContextManager[object]]]] = {
    "decode": _features_that_were_not_offered,
    "messages": lambda: mock.patch.object(serving, "body_of", mock.Mock(side_effect=Planted)),
    "regions": lambda: mock.patch.object(MappingTable, "exact", MappingTable.overlapping),
    "memory": lambda: mock.patch.object(guest, "bisect_right", bisect_left),
    "rings": lambda: mock.patch.object(DriverQueue, "collect", return_value=(1 << 20, 0)),
    "fuse": lambda: mock.patch.object(server, "fitting", mock.Mock(side_effect=Planted)),
    "inflight": lambda: mock.patch.object(virtqueue, "recover_split", mock.Mock(side_effect=Planted)),
}
"""The fault for each: a check left out, the wrong border, an exception that is logged and survived."""


@pytest.mark.parametrize("target", TARGETS)
def test_a_fault_that_is_planted_is_found(target: str) -> None:
    one_input = load(target)

    def replay() -> None:
        for data in corpus.inputs(target):
            one_input(data)

    with FAULTS[target](), pytest.raises((Unexpected, Planted, AssertionError)):
        replay()
