"""The corpora are whole, and none of their inputs breaks what its target promises; what broke it once has its own name."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Iterator

import pytest

from tests.fuzz import corpus, seeds
from tests.fuzz.targets import LONGEST, TARGETS, load

LEAST = 200
LARGEST = 80 << 10
"""Bytes of a corpus's file."""
PARTS = 3
"""How many tests replay a corpus, so that several can at a time."""


@pytest.fixture(autouse=True)
def silent() -> Iterator[None]:
    """Refusals are what these inputs are for: nobody wants to read of them."""
    logger = logging.getLogger("vhostuser")
    before = logger.level
    logger.setLevel(logging.ERROR)
    yield
    logger.setLevel(before)


@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.timeout(240)
def test_no_input_of_a_corpus_breaks_the_invariant(target: str, part: int) -> None:
    one_input = load(target)
    for number, data in enumerate(corpus.inputs(target)[part::PARTS]):
        try:
            one_input(data)
        except Exception as error:
            pytest.fail(f"input {number * PARTS + part}, {data!r}: {error!r}")


@pytest.mark.parametrize("target", TARGETS)
def test_a_corpus_has_enough_inputs_and_stays_small(target: str) -> None:
    inputs = corpus.inputs(target)
    assert len(inputs) >= LEAST
    assert set(seeds.made(target)) <= set(inputs), "run python -m tests.fuzz.seeds"
    assert inputs == sorted(set(inputs), key=lambda each: (len(each), each))
    assert max(map(len, inputs)) <= LONGEST
    assert (corpus.HERE / f"{target}.txt").stat().st_size <= LARGEST


@pytest.mark.parametrize("target", TARGETS)
def test_a_target_says_its_invariant_in_one_sentence(target: str) -> None:
    text = importlib.import_module(f"tests.fuzz.{target}").__doc__ or ""
    assert text.count(".") == 1
    assert text.endswith(".")
    assert "\n" not in text
