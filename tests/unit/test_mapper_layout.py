"""The requests of `vhu-shm` are what `docs/vhu-shm.md` says, byte by byte."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vhostuser.virtio.mapper import REQUEST, MapperOp, MapperRequest, MapperStatus

DOCUMENT = (Path(__file__).resolve().parents[2] / "docs" / "vhu-shm.md").read_text()
ROWS = [
    (int(first), int(last), name) for first, last, name in re.findall(r"^\| (\d+)-(\d+) \| (\w+) \|", DOCUMENT, re.MULTILINE)
]
WORD, LONG = st.integers(0, (1 << 32) - 1), st.integers(0, (1 << 64) - 1)
REQUESTS = st.builds(MapperRequest, WORD, WORD, WORD, WORD, LONG, LONG, LONG)


def test_the_document_has_every_field_in_its_order() -> None:
    assert tuple(name for _, _, name in ROWS) == MapperRequest._fields
    assert ROWS[-1][1] + 1 == REQUEST.size


@pytest.mark.parametrize(("first", "last", "name"), ROWS)
@given(request=REQUESTS)
def test_a_field_lies_where_the_document_says(first: int, last: int, name: str, request: MapperRequest) -> None:
    assert int.from_bytes(request.pack()[first : last + 1], "little") == getattr(request, name)


@given(REQUESTS)
def test_what_is_packed_is_unpacked(request: MapperRequest) -> None:
    assert MapperRequest.unpack(request.pack()) == request


def test_the_numbers_are_those_of_the_document() -> None:
    assert "1 map, 2 unmap, 3 list mappings" in DOCUMENT
    assert [op.value for op in (MapperOp.MAP, MapperOp.UNMAP, MapperOp.MAPPINGS)] == [1, 2, 3]
    assert [f"| {status:d} | " in DOCUMENT for status in MapperStatus] == [True] * 3
