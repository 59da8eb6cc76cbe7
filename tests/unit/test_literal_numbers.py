"""Numbers of both specifications and our limits as literals, and the rows of the two formats of a ring."""

from __future__ import annotations

from dataclasses import FrozenInstanceError

import pytest

from vhostuser.errors import QueueBroken
from vhostuser.protocol import numbers as protocol
from vhostuser.virtio import numbers as virtio
from vhostuser.virtio.chain import DescriptorChain
from vhostuser.virtio.formats import PACKED, SPLIT, Format, new_driver
from vhostuser.virtio.numbers import DeviceId, Feature, Status, feature_names

EVERY_FEATURE = (1 << 64) - 1


def test_limits_of_the_protocol() -> None:
    assert (protocol.VERSION, protocol.VERSION_MASK, protocol.REPLY, protocol.NEED_REPLY, protocol.KNOWN_FLAGS) == (
        1,
        3,
        4,
        8,
        15,
    )
    assert (protocol.HEADER_SIZE, protocol.MAX_PAYLOAD, protocol.MAX_REGIONS, protocol.MAX_MEM_SLOTS) == (12, 4096, 8, 509)
    assert (protocol.MAX_CONFIG, protocol.MAX_SHMIDS, protocol.MAX_QUEUES, protocol.MAX_QUEUE_SIZE) == (256, 256, 256, 32768)
    assert (protocol.MAX_FDS, protocol.PAGE) == (253, 4096)
    assert (protocol.END_OF_ADDRESSES, protocol.END_OF_FILE_OFFSETS) == (0x1_0000_0000_0000_0000, 0x8000_0000_0000_0000)
    assert (protocol.VRING_INDEX_MASK, protocol.VRING_NO_FD, protocol.MAP_RW) == (255, 256, 1)
    assert (protocol.VhostFeature.LOG_ALL, protocol.VhostFeature.PROTOCOL_FEATURES) == (26, 30)


def test_device_types_of_virtio() -> None:
    assert {device.name: int(device) for device in DeviceId} == {
        "NET": 1, "BLOCK": 2, "CONSOLE": 3, "RNG": 4, "BALLOON": 5, "RPMSG": 7, "SCSI": 8, "NINE_P": 9, "RPROC_SERIAL": 11,
        "CAIF": 12, "GPU": 16, "INPUT": 18, "VSOCK": 19, "CRYPTO": 20, "IOMMU": 23, "SOUND": 25, "FS": 26, "PMEM": 27,
        "I2C": 34, "GPIO": 41, "RDMA": 42, "MEDIA": 48,
    }  # fmt: skip


def test_feature_bits_and_status_bits_of_virtio() -> None:
    assert {feature.name: int(feature) for feature in Feature} == {
        "NOTIFY_ON_EMPTY": 24, "ANY_LAYOUT": 27, "RING_INDIRECT_DESC": 28, "RING_EVENT_IDX": 29, "VERSION_1": 32,
        "ACCESS_PLATFORM": 33, "RING_PACKED": 34, "IN_ORDER": 35, "ORDER_PLATFORM": 36, "SR_IOV": 37,
        "NOTIFICATION_DATA": 38, "NOTIF_CONFIG_DATA": 39, "RING_RESET": 40, "ADMIN_VQ": 41,
    }  # fmt: skip
    assert {status.name: int(status) for status in Status} == {
        "ACKNOWLEDGE": 1, "DRIVER": 2, "DRIVER_OK": 4, "FEATURES_OK": 8, "NEEDS_RESET": 64, "FAILED": 128
    }  # fmt: skip


def test_numbers_of_rings() -> None:
    assert (virtio.DESC_NEXT, virtio.DESC_WRITE, virtio.DESC_INDIRECT) == (1, 2, 4)
    assert (virtio.DESC_AVAIL, virtio.DESC_USED) == (0x80, 0x8000)
    assert (virtio.DESCRIPTOR_SIZE, virtio.EVENT_SIZE, virtio.EVENT_ENABLE) == (16, 4, 0)
    assert (virtio.AVAIL_NO_INTERRUPT, virtio.USED_NO_NOTIFY, virtio.MAX_CHAIN_BYTES) == (1, 1, 0x1_0000_0000)


@pytest.mark.parametrize("bit", range(64))
def test_a_feature_mask_is_named_bit_by_bit(bit: int) -> None:
    known = {int(feature): feature.name for feature in Feature} | {26: "LOG_ALL", 30: "PROTOCOL_FEATURES"}
    assert feature_names(1 << bit) == {known.get(bit, f"BIT_{bit}")}
    assert len(feature_names(EVERY_FEATURE & ~(1 << bit))) == 63


def test_the_two_formats_begin_where_their_specification_says() -> None:
    assert (SPLIT.first_base, SPLIT.is_packed) == (0, False)
    assert (PACKED.first_base, PACKED.is_packed) == (0x8000_8000, True)
    with pytest.raises(FrozenInstanceError):
        SPLIT.__setattr__("first_base", 1)


class Nowhere:
    """Memory that is never looked at."""

    def slices(self, guest_addr: int, len: int) -> list[memoryview]:
        return []


@pytest.mark.parametrize("form", [SPLIT, PACKED], ids=["split", "packed"])
@pytest.mark.parametrize("others", [0, EVERY_FEATURE & ~(1 << 34 | 1 << 35), 1 << 24, 1 << 36])
def test_only_in_order_makes_one_used_entry_mean_all_before_it(form: Format, others: int) -> None:
    for in_order in (False, True):
        parts = [memoryview(bytearray(size)) for size in form.sizes(4)]
        features = others | form.is_packed << 34 | in_order << 35
        driver = new_driver(features, 4, parts[0], parts[1], parts[2])
        device = form.device(4, parts[0], parts[1], parts[2], Nowhere(), base=form.first_base)
        first, second = driver.add([(0, 1)], []), driver.add([(0, 1)], [])
        device.push(DescriptorChain(second, [], []))
        device.publish()
        if in_order and not form.is_packed:
            with pytest.raises(QueueBroken, match="as one of 1"):
                driver.collect()
        elif in_order:
            assert [driver.collect(), driver.collect()] == [(first, 0), (second, 0)]
        else:
            assert [driver.collect(), driver.collect()] == [(second, 0), None]
