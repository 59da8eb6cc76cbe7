"""A browser without a window, for whoever tests a page: Debian's chromium-headless-shell in the cache, nothing installed."""

from __future__ import annotations

import json
import platform
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Final

from .apt import Apt, run
from .fetch import RELEASE, packages, unpack
from .tree import LOADER, STAMP, FetchError, OutOfReach, cache_folder, versions

PACKAGES: Final = ("chromium-headless-shell", "fonts-dejavu-core")
_HOME: Final = "usr/lib/chromium"
_PROGRAM: Final = f"{_HOME}/chromium-headless-shell"
_LIBRARIES: Final = "usr/lib/x86_64-linux-gnu"
_START: Final = "start"
_SCRIPT: Final = f"""\
#!/bin/sh
here=$(dirname "$(readlink -f "$0")")
export FONTCONFIG_FILE="$here/fonts.conf"
libraries="$here/{_LIBRARIES}"
exec "$here/{_HOME}/ld.so" --library-path "$libraries:$libraries/pulseaudio:$here/{_HOME}" \\
    "$here/{_PROGRAM}" --browser-subprocess-path="$here/{_START}" "$@"
"""
"""The loader lies beside the program: the browser looks for its files beside what the kernel says was started."""
_FONTS: Final = """\
<?xml version="1.0"?>
<!DOCTYPE fontconfig SYSTEM "fonts.dtd">
<fontconfig><dir prefix="relative">usr/share/fonts</dir><cachedir prefix="xdg">fontconfig</cachedir></fontconfig>
"""
_OPTIONS: Final = ("--no-sandbox", "--no-zygote", "--disable-gpu", "--no-first-run", "--mute-audio")


def browser_folder() -> Path:
    """Where the browser lives: beside the tree of the VM."""
    return cache_folder().with_name("chromium")


def has_browser() -> bool:
    """It is there, with all that is wanted today."""
    found = versions(browser_folder())
    return all(name in found for name in PACKAGES)


def browser_command() -> list[str]:
    """The start of its command line; FetchError if there is none."""
    if not has_browser():
        raise FetchError(f"no browser in {browser_folder()}: run `python -m {__name__}` once, with a network")
    return [str(browser_folder() / _START), *_OPTIONS]


def fetch_browser() -> str:
    """Download and unpack it beside its place, then move it there, if it starts; its version."""
    if platform.machine() != "x86_64":
        raise OutOfReach(f"the packages are of x86-64, this machine is {platform.machine()}")
    into = browser_folder()
    into.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="chromium.", dir=into.parent) as scratch:
        apt = Apt(Path(scratch) / "apt", RELEASE)
        apt.update()
        apt.download(*PACKAGES, suite=RELEASE)
        tree = Path(scratch) / "tree"
        tree.mkdir()
        for deb in apt.debs():
            unpack(deb, tree)
        _make_ready(tree)
        said = run([str(tree / _START), "--version"], seconds=30)
        (tree / STAMP).write_text(json.dumps(packages(apt.debs()), indent=1, sort_keys=True) + "\n")
        shutil.rmtree(into, ignore_errors=True)
        tree.rename(into)
    return said.strip()


def _make_ready(tree: Path) -> None:
    """What the packages leave to an installation: a way to start it, and the fonts that there are."""
    shutil.copy(tree / _LIBRARIES / Path(LOADER).name, tree / _HOME / "ld.so")
    (tree / "fonts.conf").write_text(_FONTS)
    start = tree / _START
    start.write_text(_SCRIPT)
    start.chmod(0o755)


def main() -> int:
    """Fetch it unless it is there. Exit code 3 if nothing can be fetched here, 1 for everything else that goes wrong."""
    if has_browser():
        return 0
    try:
        print(fetch_browser())
    except FetchError as error:
        print(f"no browser: {error}", file=sys.stderr)
        return 3 if isinstance(error, OutOfReach) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
