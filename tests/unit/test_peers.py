"""Front-ends that are known by what they do, since no message says who they are."""

from __future__ import annotations

import pytest

from vhostuser.protocol.numbers import ProtocolFeature
from vhostuser.protocol.peers import QEMU, Peer, recognise
from vhostuser.protocol.state import Ring, State

INBAND = 1 << ProtocolFeature.INBAND_NOTIFICATIONS
BY_EVENTFD, OTHER = Ring(started=True, eventfd=True), Ring(started=True)


@pytest.mark.parametrize(
    ("acknowledged", "rings", "peer"),
    [
        (0, (), None),
        (INBAND, (OTHER, OTHER), None),
        (INBAND, (OTHER, BY_EVENTFD), QEMU),
        (0, (BY_EVENTFD,), None),
        (1 << ProtocolFeature.SHMEM, (BY_EVENTFD,), None),
    ],
    ids=["new", "means-in-band", "qemu", "ours", "others"],
)
def test_who_takes_a_feature_and_does_not_use_it_is_qemu(
    acknowledged: int, rings: tuple[Ring, ...], peer: Peer | None
) -> None:
    assert recognise(State(protocol_acknowledged=acknowledged, rings=rings)) == peer
