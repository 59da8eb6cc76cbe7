"""Make what every corpus begins with, always the same, and the dictionaries: `python -m tests.fuzz.seeds` writes them.

An input is a list of decisions, so random ones are good beginnings; most numbers in them are small, for these are the usual
decisions. What fuzzing finds is added by `tests.fuzz.corpus`.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from tests.fuzz import corpus
from tests.fuzz.taking import EDGES, TOPS
from tests.fuzz.targets import TARGETS

SEEDS: Final = 200
LENGTHS: Final = (8, 16, 24, 32, 48, 64, 96, 128)
DICTIONARIES: Final = Path(__file__).parent / "oss_fuzz"
WORDS: Final = {
    "decode": (b"\x09\x00\x00\x00", b"\x05\x00\x00\x00", b"\x00\x10\x00\x00", b"\x01\x10\x00\x00"),
    "fuse": (b"file\0", b"directory\0", b"..\0", b"user.a\0", b"security.capability\0", b"system.posix_acl_access\0"),
}


def made(target: str) -> list[bytes]:
    """The first inputs of a target."""
    dice = random.Random(f"the {target} of vhostuser")
    return [bytes(_decision(dice) for _ in range(dice.choice(LENGTHS))) for _ in range(SEEDS)]


def _decision(dice: random.Random) -> int:
    return dice.randrange(16) if dice.random() < 0.6 else dice.randrange(256)


def dictionary(target: str) -> str:
    """What libFuzzer may put into an input: the numbers at the edges, and words that a target reads as they are."""
    numbers = {each.to_bytes(size, "little") for each in (*EDGES, *TOPS) for size in (2, 4, 8) if each < 1 << 8 * size}
    words: Iterable[bytes] = [*sorted(numbers, key=lambda each: (len(each), each)), *WORDS.get(target, ())]
    return "".join('"' + "".join(f"\\x{byte:02x}" for byte in word) + '"\n' for word in words)


def main() -> None:
    for target in TARGETS:
        known = corpus.inputs(target) if (corpus.HERE / f"{target}.txt").exists() else []
        corpus.write(target, [*known, *made(target)])
        (DICTIONARIES / f"{target}.dict").write_text(dictionary(target))


if __name__ == "__main__":
    main()
