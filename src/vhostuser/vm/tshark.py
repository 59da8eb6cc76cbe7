"""tshark, which tests of captures and of the dissector need: Debian's, in the cache, nothing installed."""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Final

from .apt import Apt, run
from .fetch import RELEASE, packages, unpack
from .tree import STAMP, FetchError, OutOfReach, cache_folder, loaded, versions

PACKAGE: Final = "tshark"
_PROGRAM: Final = "usr/bin/tshark"


def tshark_folder() -> Path:
    """Where it lives: beside the tree of the VM."""
    return cache_folder().with_name(PACKAGE)


def has_tshark() -> bool:
    """It is there."""
    return PACKAGE in versions(tshark_folder())


def tshark_command() -> list[str]:
    """The start of its command line; FetchError if there is none. Started by root it loads no dissectors in Lua."""
    if not has_tshark():
        raise FetchError(f"no tshark in {tshark_folder()}: run `make vm` once, with a network")
    return loaded(_PROGRAM, tshark_folder())


def fetch_tshark() -> str:
    """Download and unpack it beside its place, then move it there, if it starts; its version."""
    into = tshark_folder()
    into.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f"{PACKAGE}.", dir=into.parent) as scratch:
        apt = Apt(Path(scratch) / "apt", RELEASE)
        apt.update()
        apt.download(PACKAGE, suite=RELEASE)
        tree = Path(scratch) / "tree"
        tree.mkdir()
        for deb in apt.debs():
            unpack(deb, tree)
        said = run([*loaded(_PROGRAM, tree), "--version"], seconds=30)
        (tree / STAMP).write_text(json.dumps(packages(apt.debs()), indent=1, sort_keys=True) + "\n")
        shutil.rmtree(into, ignore_errors=True)
        tree.rename(into)
    return said.partition("\n")[0]


def main() -> int:
    """Fetch it unless it is there. Exit code 3 if nothing can be fetched here, 1 if it does not work."""
    if has_tshark():
        return 0
    try:
        print(fetch_tshark())
    except FetchError as error:
        print(f"no tshark: {error}", file=sys.stderr)
        return 3 if isinstance(error, OutOfReach) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
