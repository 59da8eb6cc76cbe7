"""Each target's corpus is one file, an input a line, in base64: `python -m tests.fuzz.corpus unpack TARGET DIRECTORY`."""

from __future__ import annotations

import argparse
import base64
import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from tests.fuzz.targets import LONGEST, TARGETS

HERE: Final = Path(__file__).parent / "corpus"


def inputs(target: str) -> list[bytes]:
    """All inputs of a target, shortest first."""
    lines = (HERE / f"{target}.txt").read_text().split()
    return [base64.b64decode(line) for line in lines]


def write(target: str, data: Iterable[bytes]) -> None:
    """Make these the target's corpus."""
    HERE.mkdir(exist_ok=True)
    ordered = sorted(set(data), key=lambda each: (len(each), each))
    (HERE / f"{target}.txt").write_text("".join(base64.b64encode(each).decode() + "\n" for each in ordered if each))


def unpack(target: str, into: Path) -> None:
    """One file an input, as libFuzzer wants them."""
    into.mkdir(parents=True, exist_ok=True)
    for data in inputs(target):
        (into / hashlib.sha1(data, usedforsecurity=False).hexdigest()).write_bytes(data)


def add(target: str, found: Path, most: int) -> int:
    """Take the shortest `most` inputs of a directory into the corpus; how many are new."""
    known = set(inputs(target))
    new = sorted({path.read_bytes() for path in found.iterdir() if path.stat().st_size <= LONGEST} - known, key=len)
    write(target, [*known, *new[:most]])
    return len(new[:most])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["unpack", "add"])
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--most", type=int, default=200, help="inputs to add, shortest first")
    words = parser.parse_args()
    if words.what == "unpack":
        unpack(words.target, words.directory)
    else:
        print(add(words.target, words.directory, words.most), "inputs were added")


if __name__ == "__main__":
    main()
