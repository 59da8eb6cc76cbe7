"""Judge mutants of the modules that check what a peer says, by quick tests of each, in pure Python (see README.md)."""

from __future__ import annotations

import argparse
import os
import random
import resource
import sys
import types
from collections import Counter
from importlib.machinery import ModuleSpec, SourceFileLoader
from importlib.util import spec_from_loader
from pathlib import Path
from typing import Final

import pytest
from hypothesis import Phase, settings

from tests.mutation.mutants import Place, change, places

HERE: Final = Path(__file__).parent
SOURCES: Final = HERE.parents[1] / "src"
ROWS: Final = [line.split(maxsplit=1) for line in (HERE / "modules.txt").read_text().splitlines() if line[0] != "#"]
SAME: Final = [line.split(" | ", 2) for line in (HERE / "equivalent.txt").read_text().splitlines()]
LIMITS: Final = {resource.RLIMIT_CPU: 30, resource.RLIMIT_DATA: 4 << 30}
"""Seconds and bytes that a mutant may take: one that loops for ever is killed; one that waits for ever fails a test."""
OPTIONS: Final = ("-xq", "-ppytest_timeout", "-pno:cacheprovider", "--tb=no", "-Wignore::SyntaxWarning")


class Mutated(SourceFileLoader):
    """Finds one module, and loads other code for it."""

    def __init__(self, path: Path, source: str) -> None:
        super().__init__(".".join(path.relative_to(SOURCES).with_suffix("").parts), str(path))
        self.source = source

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> ModuleSpec | None:
        return spec_from_loader(fullname, self) if fullname == self.name else None

    def get_code(self, fullname: str) -> types.CodeType:
        return compile(self.source, self.path, "exec", dont_inherit=True)


def judge(path: Path, source: str, tests: str) -> str:
    """`survived`, if the tests pass; else how the mutant died."""
    if child := os.fork():
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        return {0: "survived", 1: "killed"}.get(code, "killed at import" if code > 0 else "crashed")
    code = pytest.ExitCode.INTERNAL_ERROR
    try:
        for limit, most in LIMITS.items():
            resource.setrlimit(limit, (most, most))
        for fd in (0, 1, 2):
            os.dup2(os.open(os.devnull, os.O_RDWR), fd)
        sys.meta_path.insert(0, Mutated(path, source))
        code = pytest.main([*OPTIONS, *tests.split()])
    finally:
        os._exit(code)


def judge_all(module: str, tests: str, chosen: list[Place]) -> Counter[str]:
    """The verdicts on mutants of a module; those that survive are printed."""
    path, verdicts = SOURCES / "vhostuser" / module, Counter[str]()
    if judge(path, whole := path.read_text(), tests) != "survived":
        sys.exit(f"{module}: its tests fail without any mutant: {tests}")
    for place in chosen:
        old, new = change(whole, source := place.mutate(whole))
        equivalent = any((row[0], row[2]) == (module, new) for row in SAME)
        verdict = "equivalent" if equivalent else judge(path, source, tests)
        verdicts[verdict] += 1
        if verdict == "survived":
            print(f"{module}:{place.line}: {place.operator}\n  - {old}\n  + {new}", flush=True)
    return verdicts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("modules", metavar="MODULE", nargs="*", help="as protocol/regions.py; else all of modules.txt")
    parser.add_argument("--sample", type=int, default=sys.maxsize, help="so many mutants of each, instead of all")
    parser.add_argument("--seed", type=int, default=1, help="of the sample")
    words = parser.parse_args()
    os.environ |= {"VHOSTUSER_PURE": "1", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    settings.register_profile("mutants", database=None, derandomize=True, phases=(Phase.explicit, Phase.generate))
    settings.load_profile("mutants")
    for module, tests in (row for row in ROWS if not words.modules or row[0] in words.modules):
        every = places((SOURCES / "vhostuser" / module).read_text())
        verdicts = judge_all(module, tests, random.Random(words.seed).sample(every, min(words.sample, len(every))))
        real = verdicts.total() - verdicts["equivalent"]
        score = f"killed {(killed := real - verdicts['survived'])} of {real}: {100 * killed / (real or 1):.1f} %"
        print(f"{module}: {len(every)} mutants, {dict(verdicts)}; {score}", flush=True)


if __name__ == "__main__":
    main()
