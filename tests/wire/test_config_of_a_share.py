"""W39: a share's configuration space has no field that a driver may write ("SET_CONFIG")."""

from __future__ import annotations

import pytest

from tests.fuse.standin import StandIn
from vhostuser.devices.fs.device import FuseDevice
from vhostuser.devices.fs.options import ShareOptions
from vhostuser.protocol.numbers import FrontendRequest
from vhostuser.protocol.payloads import Config
from vhostuser.testing import raw_frontend

Q = FrontendRequest


@pytest.mark.parametrize(
    ("offset", "data"), [(0, b"x"), (0, bytes(36)), (36, b"\xff\0\0\0"), (0, bytes(40)), (39, b"\0"), (40, b"x")]
)
@pytest.mark.parametrize("flags", [0, 1], ids=["writable", "migration"])
def test_w39_the_configuration_space_of_a_share_is_not_written(offset: int, data: bytes, flags: int) -> None:
    share = StandIn()
    with FuseDevice(share, ShareOptions(tag="tag")) as device, raw_frontend(device) as raw:
        raw.negotiate()
        raw.refused(Q.SET_CONFIG, Config(offset, len(data), flags, data))
        raw.silent(Q.SET_CONFIG, Config(offset, len(data), flags, data).pack())
        got = Config.unpack(raw.reply(Q.GET_CONFIG, Config(0, 40, 0, bytes(40))).payload)
        assert got.payload == device.config
