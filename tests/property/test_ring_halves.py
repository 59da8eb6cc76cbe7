"""The compiled device halves against the pure ones: any image of a ring gives the same from both."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.halves import HALVES
from tests.ring_images import Device, Image, one, packed_image_of, split_image_of


@pytest.mark.parametrize("image_of", [split_image_of, packed_image_of])
@given(random=st.randoms(use_true_random=True), noise=st.binary(max_size=32), many=st.integers(1, 9))
@settings(max_examples=500)
def test_both_halves_see_the_same_in_any_image(
    image_of: Callable[[Random], Image], random: Random, noise: bytes, many: int
) -> None:
    image = image_of(random)
    for each in (image, replace(image, descriptors=(noise + image.descriptors)[: 16 * image.size])):
        results = [Device(half, each).drain(one) for half in HALVES]
        assert results == results[:1] * len(HALVES)
        if "compiled" in HALVES:
            compiled = Device("compiled", each)
            assert compiled.drain(lambda queue: queue.pop_many(many)) == results[0]  # type: ignore[union-attr]  # it has it


@pytest.mark.parametrize("image_of", [split_image_of, packed_image_of])
def test_images_have_all_kinds_of_chains_and_of_faults(image_of: Callable[[Random], Image]) -> None:
    """What the test above compares is not the same few cases over and over."""
    random, lengths, faults = Random(1), Counter[int](), set()
    for _ in range(2000):
        chains, broken, *_ = Device("python", image_of(random)).drain(one)
        lengths.update(len(chain.readable) + len(chain.writable) for chain in chains)
        faults.add(re.sub(r"0x[0-9a-f]+|[0-9]+", "N", broken))
    assert all(lengths[count] >= 10 for count in range(5)), lengths
    assert len(faults) >= 12
