"""What the specification says of block devices, in numbers."""

from __future__ import annotations

import pytest

from vhostuser.virtio.block import CONFIG_SIZE, HEADER, RANGE, BlockConfig, BlockFeature, BlockRequest, BlockStatus


@pytest.mark.parametrize(
    "layout",
    [("capacity", 0, 8), ("blk_size", 20, 4), ("writeback", 32, 1), ("num_queues", 34, 2), ("max_write_zeroes_seg", 52, 4)],
)
def test_the_configuration_space_is_laid_out_as_the_specification_says(layout: tuple[str, int, int]) -> None:
    name, offset, size = layout
    space = bytearray(CONFIG_SIZE)
    space[offset : offset + size] = b"\x7f" * size
    config = BlockConfig.unpack(bytes(space))
    assert getattr(config, name) == int.from_bytes(b"\x7f" * size, "little")
    assert sum(value != 0 for value in config) == 1
    assert config.pack() == bytes(space)
    assert CONFIG_SIZE == 60


@pytest.mark.parametrize("size", [0, 7, 8, 59, 61])
def test_a_space_of_another_length_is_read_as_far_as_it_goes(size: int) -> None:
    config = BlockConfig.unpack((b"\1" + bytes(7) + b"\2" * 52)[:size].ljust(size, b"\3"))
    assert config.capacity == (1 if size else 0)
    assert (config.write_zeroes_may_unmap != 0) == (size > 56)


def test_the_numbers_are_those_of_the_specification() -> None:
    assert (HEADER.size, RANGE.size) == (16, 16)
    assert (BlockFeature.RO, BlockFeature.FLUSH, BlockFeature.MQ, BlockFeature.WRITE_ZEROES) == (5, 9, 12, 14)
    assert (BlockRequest.OUT, BlockRequest.FLUSH, BlockRequest.GET_ID, BlockRequest.DISCARD) == (1, 4, 8, 11)
    assert list(BlockStatus) == [0, 1, 2]
