"""`vhu vm fetch`: QEMU and the parts of a guest, into the cache."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Final

from ..vm.fetch import fetch, summary
from ..vm.tree import FetchError, OutOfReach, cache_folder, is_fetched, versions
from .arguments import Parser
from .outcome import CommandError, Exit, put

PROGRAM: Final = "vhu vm fetch"
EPILOG: Final = """
The packages are Debian's (trixie-backports, trixie, forky), signed, from the mirror that the machine's apt uses. They are
unpacked into $VHOSTUSER_CACHE/vm, else .cache/vm of a checkout, else $XDG_CACHE_HOME/vhostuser/vm. What is there is kept:
to update it, remove the folder.

exit status: 0 it is there, 1 failed, 2 usage, 3 nothing can be fetched here (no network, no apt, no x86-64)
"""


def vm_fetch(arguments: list[str]) -> int:
    """Run `vhu vm fetch`; its exit code."""
    parser = Parser(PROGRAM, "Fetch QEMU >= 11.1 and a Linux guest (about 110 MB); nothing is installed.", EPILOG)
    parser.add_argument("--offline", action="store_true", help="only check that everything is here")
    parser.add_argument("--into", type=Path, metavar="DIR", help="instead of the cache folder")
    parser.add_argument("--json", action="store_true", help="print versions as JSON")
    options = parser.parse_args(arguments)
    into = options.into.absolute() if options.into else cache_folder()
    if options.offline and not is_fetched(into):
        raise CommandError(f"{into} is not complete", "try: without --offline, with a network")
    found = ensure_fetched(into)
    put(json.dumps({"folder": str(into), "versions": found}) if options.json else f"{summary(found)}\nin {into}")
    return Exit.DONE


def ensure_fetched(into: Path) -> dict[str, str]:
    """What the tree holds, once it is there. CommandError, exit code 3, if nothing can be fetched here at all."""
    try:
        return versions(into) if is_fetched(into) else fetch(into)
    except (FetchError, subprocess.SubprocessError) as failure:
        code = Exit.PEER if isinstance(failure, OutOfReach) else Exit.FAILED
        raise CommandError(str(failure), code=code) from None
