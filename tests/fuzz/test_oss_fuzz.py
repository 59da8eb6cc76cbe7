"""What a fleet builds is what is here: the same targets, their seeds and dictionaries."""

from __future__ import annotations

import re
import subprocess
import tempfile
from pathlib import Path

import pytest

from tests.fuzz import corpus, seeds
from tests.fuzz.targets import COMPILED, LONGEST, TARGETS

HERE = Path(__file__).parent / "oss_fuzz"
BUILD = HERE / "build.sh"


def test_the_build_script_is_shell() -> None:
    subprocess.run(["bash", "-n", str(BUILD)], check=True)


def test_it_builds_all_targets_and_no_others() -> None:
    [listed] = re.findall(r"^TARGETS=\((.*)\)$", BUILD.read_text(), re.MULTILINE)
    assert tuple(listed.split()) == TARGETS
    assert f"max_len = {LONGEST}" in BUILD.read_text()


def test_make_runs_the_same_targets() -> None:
    rows = dict(re.findall(r"^(FUZZ_\w+) := (.*)$", (HERE.parents[2] / "Makefile").read_text(), re.MULTILINE))
    assert tuple(rows["FUZZ_TARGETS"].split()) == TARGETS
    assert set(rows["FUZZ_COMPILED"].split()) == set(COMPILED)


def test_it_says_how_to_fill_in_the_program_of_a_target() -> None:
    text = (HERE / "entry.py").read_text()
    assert text.count("TARGET") == 1
    assert 'sed "s/TARGET/$target/" tests/fuzz/oss_fuzz/entry.py' in BUILD.read_text()


@pytest.mark.parametrize("target", TARGETS)
def test_a_dictionary_is_what_the_generator_makes(target: str) -> None:
    text = (HERE / f"{target}.dict").read_text()
    assert text == seeds.dictionary(target)
    assert all(re.fullmatch(r'"(\\x[0-9a-f]{2})+"', line) for line in text.splitlines())


@pytest.mark.parametrize("target", TARGETS)
def test_a_corpus_is_unpacked_as_it_is(target: str) -> None:
    with tempfile.TemporaryDirectory() as name:
        corpus.unpack(target, Path(name))
        assert sorted(path.read_bytes() for path in Path(name).iterdir()) == sorted(corpus.inputs(target))
