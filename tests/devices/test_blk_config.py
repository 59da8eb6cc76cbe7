"""What a driver is told of a disk beforehand ("Device configuration layout")."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.devices.conftest import SECTORS
from vhostuser.devices.blk import MAX_DISCARD, MAX_SEGMENTS, MAX_ZEROES, BlockDevice
from vhostuser.devices.disk import Disk
from vhostuser.virtio.block import BlockFeature

from .requests import FLUSH


def numbers(config: bytes, *places: tuple[int, int]) -> list[int]:
    return [int.from_bytes(config[at : at + size], "little") for at, size in places]


def test_the_configuration_space_is_that_of_the_specification(image: Path) -> None:
    with BlockDevice(Disk(image), num_queues=3, queue_size=64) as device:
        config = device.config
        assert device.features == sum(1 << bit for bit in (2, 6, 9, 10, 12, 13, 14))
        assert device.queue_sizes == (64, 64, 64)
    assert len(config) == 96
    capacity, size_max, seg_max, geometry, blk_size = numbers(config, (0, 8), (8, 4), (12, 4), (16, 4), (20, 4))
    assert (capacity, size_max, seg_max, geometry, blk_size) == (SECTORS, 0, 62, 0, 512)
    assert numbers(config, (24, 1), (25, 1), (26, 2), (28, 4), (32, 2), (34, 2)) == [3, 0, 8, 0, 0, 3]
    alignment = max(512, image.stat().st_blksize) // 512
    assert numbers(config, (36, 4), (40, 4), (44, 4)) == [MAX_DISCARD, MAX_SEGMENTS, alignment]
    assert numbers(config, (48, 4), (52, 4), (56, 1), (57, 3)) == [MAX_ZEROES, 1, 1, 0]
    assert config[60:] == bytes(36)


def test_a_read_only_disk_says_so_and_offers_nothing_that_writes(image: Path) -> None:
    with BlockDevice(Disk(image, read_only=True)) as device:
        assert device.features >> BlockFeature.RO & 1
        assert not device.features & (1 << BlockFeature.DISCARD | 1 << BlockFeature.WRITE_ZEROES)
        assert device.config[36:] == bytes(60)


@pytest.mark.parametrize(("queue_size", "seg_max"), [(4, 2), (128, 126), (256, 126), (1024, 126)])
def test_a_request_of_seg_max_fits_into_the_ring(image: Path, queue_size: int, seg_max: int) -> None:
    with BlockDevice(Disk(image), queue_size=queue_size) as device:
        assert numbers(device.config, (12, 4)) == [seg_max]


def test_the_acknowledged_bit_of_flush_is_the_one_looked_at() -> None:
    assert FLUSH == 1 << BlockFeature.FLUSH
