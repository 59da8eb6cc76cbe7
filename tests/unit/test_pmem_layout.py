"""What the specification says of persistent memory, in numbers."""

from __future__ import annotations

import pytest

from vhostuser.virtio.numbers import DeviceId
from vhostuser.virtio.pmem import (
    CONFIG_SIZE,
    REGION,
    REQUEST,
    RESPONSE,
    PmemConfig,
    PmemFeature,
    PmemRequest,
    PmemStatus,
)


@pytest.mark.parametrize(("name", "offset"), [("start", 0), ("size", 8)])
def test_the_configuration_space_is_laid_out_as_the_specification_says(name: str, offset: int) -> None:
    space = bytearray(CONFIG_SIZE)
    space[offset : offset + 8] = bytes(range(1, 9))
    config = PmemConfig.unpack(bytes(space))
    assert getattr(config, name) == int.from_bytes(bytes(range(1, 9)), "little")
    assert sum(value != 0 for value in config) == 1
    assert config.pack() == bytes(space)


def test_the_numbers_are_those_of_the_specification() -> None:
    assert (int(DeviceId.PMEM), CONFIG_SIZE, REQUEST.size, RESPONSE.size) == (27, 16, 4, 4)
    assert (int(PmemFeature.SHMEM_REGION), REGION, int(PmemRequest.FLUSH)) == (0, 0, 0)
    assert [RESPONSE.pack(each) for each in PmemStatus] == [bytes(4), b"\xff" * 4]
