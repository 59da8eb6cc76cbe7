"""Programs of Debian's that tests need beside a VM: each in a folder of its own in the cache, nothing installed."""

from __future__ import annotations

import json
import platform
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from .apt import Apt, run
from .fetch import RELEASE, packages, unpack
from .tree import STAMP, FetchError, OutOfReach, cache_folder, versions


def _ready(tree: Path) -> None:
    """Nothing is to be done."""


@dataclass(frozen=True, slots=True)
class Tool:
    """A program: what it comes in, what is to be done to that, and how it is started from there."""

    name: str
    packages: Sequence[str]
    start: Callable[[Path], list[str]]
    version: str = "--version"
    make_ready: Callable[[Path], None] = _ready

    @property
    def folder(self) -> Path:
        """Where it lives: beside the tree of the VM."""
        return cache_folder().with_name(self.name)

    @property
    def is_there(self) -> bool:
        """All that it comes in is there."""
        found = versions(self.folder)
        return all(name in found for name in self.packages)

    def command(self) -> list[str]:
        """The start of its command line; FetchError if it is not there."""
        if not self.is_there:
            raise FetchError(f"no {self.name} in {self.folder}: run `make vm` once, with a network")
        return self.start(self.folder)

    def fetch(self) -> str:
        """Download and unpack it beside its place, then move it there, if it starts; its version. FetchError if not."""
        if platform.machine() != "x86_64":
            raise OutOfReach(f"the packages are of x86-64, this machine is {platform.machine()}")
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f"{self.name}.", dir=self.folder.parent) as scratch:
            apt = Apt(Path(scratch) / "apt", RELEASE)
            apt.update()
            apt.download(*self.packages, suite=RELEASE)
            tree = Path(scratch) / "tree"
            tree.mkdir()
            for deb in apt.debs():
                unpack(deb, tree)
            self.make_ready(tree)
            said = run([*self.start(tree), self.version], seconds=30)
            (tree / STAMP).write_text(json.dumps(packages(apt.debs()), indent=1, sort_keys=True) + "\n")
            shutil.rmtree(self.folder, ignore_errors=True)
            tree.rename(self.folder)
        return said.strip().partition("\n")[0]
