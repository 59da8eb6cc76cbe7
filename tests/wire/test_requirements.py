"""W32: a feature without those that it needs, of a device that offers all of them."""

from __future__ import annotations

import pytest

from vhostuser.protocol.numbers import FrontendRequest, ProtocolFeature, mask
from vhostuser.protocol.payloads import U64
from vhostuser.testing import raw_frontend

from .devices import Scripted

Q, F = FrontendRequest, ProtocolFeature


@pytest.mark.parametrize("beside", [(), (F.REPLY_ACK,), (F.REPLY_ACK, F.CONFIG, F.STATUS)], ids=str)
def test_w32_get_vring_base_inflight_without_its_area_at_a_back_end(beside: tuple[ProtocolFeature, ...]) -> None:
    with raw_frontend(Scripted(regions={})) as raw:
        raw.negotiate()
        wanted = mask((F.GET_VRING_BASE_INFLIGHT, *beside))
        assert wanted & ~raw.value(Q.GET_PROTOCOL_FEATURES) == 0
        raw.refused(Q.SET_PROTOCOL_FEATURES, U64(wanted))
        raw.accepted(Q.RESET_DEVICE)  # which was negotiated before
        raw.accepted(Q.SET_PROTOCOL_FEATURES, U64(wanted | mask((F.INFLIGHT_SHMFD, F.REPLY_ACK, F.RESET_DEVICE))))
