"""Every payload against the layout of the specification's table, and there and back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.property.strategies import CLASSES, bodies
from tests.spec_table import PAYLOADS, XEN, class_of, encode
from vhostuser.protocol import payloads
from vhostuser.protocol.framing import decode_payload
from vhostuser.protocol.layout import Payload
from vhostuser.protocol.numbers import MAX_CONFIG

LAID_OUT = sorted(name for name in PAYLOADS if PAYLOADS[name].fields and name != "header")
XEN_ROWS = sorted(name + XEN for name in PAYLOADS if PAYLOADS[name].xen_sizes())


@pytest.mark.parametrize("name", sorted(CLASSES))
@given(data=st.data())
def test_payload_there_and_back(name: str, data: st.DataObject) -> None:
    payload = data.draw(bodies(CLASSES[name]))
    packed = payload.pack() if payload else b""
    assert len(packed) in CLASSES[name].SIZES
    again = decode_payload(name, CLASSES[name], packed)
    assert again == payload
    assert hash(again) == hash(payload)
    assert repr(again) == repr(payload)
    assert again != object()


@pytest.mark.parametrize("name", LAID_OUT + XEN_ROWS)
@given(data=st.data(), padding=st.integers(0, 255))
def test_sh18_payload_is_laid_out_as_the_text_says_and_padding_is_sent_zero_and_ignored(
    name: str, data: st.DataObject, padding: int
) -> None:
    cls = class_of(name)
    payload = data.draw(bodies(cls))
    row = name.removesuffix(XEN) if name in XEN_ROWS else name
    assert isinstance(payload, Payload)
    assert payload.pack() == encode(row, payload)
    assert cls.unpack(encode(row, payload, padding)) == payload


@given(size=st.integers(0, MAX_CONFIG), offset=st.integers(0, 0xFFFFFFFF))
def test_config_of_any_size(size: int, offset: int) -> None:
    config = payloads.Config(offset, size, 0, bytes(size))
    assert payloads.Config.unpack(config.pack()) == config
    assert len(config.pack()) == 12 + size


@pytest.mark.parametrize("count", range(1, 9))
def test_memory_tables_of_each_length(count: int) -> None:
    regions = [payloads.MemoryRegion(at << 12, 0x1000, at << 12, 0) for at in range(count)]
    xen = [payloads.XenMemoryRegion(at << 12, 0x1000, at << 12, 0, 1, at) for at in range(count)]
    assert len(payloads.MemoryTable(regions).pack()) == 8 + 32 * count
    assert len(payloads.XenMemoryTable(xen).pack()) == 8 + 40 * count
    assert payloads.XenMemoryTable.unpack(payloads.XenMemoryTable(xen).pack()).regions == tuple(xen)


def test_the_sizes_that_peers_got_wrong() -> None:
    assert payloads.ShmemConfig({}).pack() == bytes(2056)
    assert len(payloads.Inflight(1, 2, 3, 4).pack()) == 24
    assert payloads.ShmemConfig({3: 0, 1: 0x1000}).sizes == {1: 0x1000}


def test_single_regions_are_regions_of_a_table() -> None:
    assert payloads.SingleRegion(1, 2, 3, 4).region == payloads.MemoryRegion(1, 2, 3, 4)
    assert payloads.XenSingleRegion(1, 2, 3, 4, 5, 6).region == payloads.XenMemoryRegion(1, 2, 3, 4, 5, 6)


def test_a_map_says_whether_it_is_writable() -> None:
    assert [payloads.Mmap(0, 0, 0, 0, flags).writable for flags in (0, 1)] == [False, True]
