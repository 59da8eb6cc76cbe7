"""The text of the vhost-user specification, as QEMU's documentation has it: `python -m tests.conformance.specification`
fetches it out of Debian's packages, into a folder of its own in the cache, if it is not there.
"""

from __future__ import annotations

import html
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

from vhostuser.vm.apt import Apt
from vhostuser.vm.fetch import BACKPORTS, RELEASE, packages
from vhostuser.vm.tree import STAMP, FetchError, cache_folder, versions

PACKAGE: Final = "qemu-system-data"
"""It holds QEMU's documentation."""
TEXT: Final = "./usr/share/doc/qemu-system-common/interop/vhost-user.html"
COMMAND: Final = "python -m tests.conformance.specification"
_HEADING: Final = re.compile(r"<h[1-6]>(.*?)</h[1-6]>", re.DOTALL)
_SECTION: Final = re.compile(r'<section id="([^"]+)">')
_REQUEST: Final = re.compile(r'<dt><code class="[^"]*"><span class="pre">(VHOST_USER_\w+)</span></code>')
_TAG: Final = re.compile(r"<[^>]+>")


def folder() -> Path:
    """Where it lies: beside the tree of the VM."""
    return cache_folder().with_name("specification")


def text() -> str | None:
    """The page; None if it was not fetched."""
    try:
        return (folder() / "vhost-user.html").read_text()
    except FileNotFoundError:
        return None


def version() -> str:
    """The version of the package that it is from."""
    return versions(folder()).get(PACKAGE, "")


def headings(page: str) -> set[str]:
    """The headings, as they are read."""
    return {html.unescape(_TAG.sub("", each)).replace("\uf0c1", "").strip() for each in _HEADING.findall(page)}


def anchors(page: str) -> set[str]:
    """What a link may point to."""
    return set(_SECTION.findall(page))


def words(page: str) -> str:
    """What it says, in one line, with plain apostrophes."""
    return " ".join(html.unescape(_TAG.sub("", page)).replace("\u2019", "'").split())


def requests(page: str) -> set[str]:
    """The requests that are described, by name."""
    return set(_REQUEST.findall(page))


def fetch() -> str:
    """Get it; the version of the package. FetchError if it can't be had."""
    place = folder()
    place.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="specification.", dir=place.parent) as scratch:
        apt = Apt(Path(scratch) / "apt", RELEASE, BACKPORTS)
        apt.update()
        apt.download_alone(f"{PACKAGE}/{BACKPORTS}")
        (deb,) = apt.debs()
        content = subprocess.run(["dpkg-deb", "--fsys-tarfile", deb], capture_output=True, timeout=60, check=True).stdout
        page = subprocess.run(["tar", "-xO", TEXT], input=content, capture_output=True, timeout=60, check=True).stdout
        (place / "vhost-user.html").write_bytes(page)
        (place / STAMP).write_text(json.dumps(packages([deb]), indent=1) + "\n")
    return version()


if __name__ == "__main__":
    try:
        print(f"{PACKAGE} {version() if text() is not None else fetch()}: {folder()}")
    except (FetchError, OSError, subprocess.SubprocessError, ValueError) as error:
        sys.exit(f"tests.conformance.specification: {error}")
