"""A browser without a window, for whoever tests a page: chromium-headless-shell."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Final

from .tool import Tool
from .tree import LOADER

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


def _make_ready(tree: Path) -> None:
    """What the packages leave to an installation: a way to start it, and the fonts that there are."""
    shutil.copy(tree / _LIBRARIES / Path(LOADER).name, tree / _HOME / "ld.so")
    (tree / "fonts.conf").write_text(_FONTS)
    start = tree / _START
    start.write_text(_SCRIPT)
    start.chmod(0o755)


BROWSER: Final = Tool(
    "chromium",
    ("chromium-headless-shell", "fonts-dejavu-core"),
    lambda tree: [str(tree / _START), *_OPTIONS],
    make_ready=_make_ready,
)
