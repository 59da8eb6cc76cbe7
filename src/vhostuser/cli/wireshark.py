"""`vhu wireshark`: the dissector, into the folder where Wireshark looks for it."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Final

from ..trace.dissector import dissector
from .arguments import Parser
from .outcome import CommandError, Exit, put

PROGRAM: Final = "vhu wireshark"
NAME: Final = "vhostuser.lua"
EPILOG: Final = """
Wireshark and tshark load it when they are started next, and then show what vhu trace -w wrote, message by message, with
fields to filter by:

  tshark -r F.pcapng -Y 'vhostuser.shmem_map.len > 0x100000'
  wireshark F.pcapng

They load no dissector when root starts them. The folder is ~/.local/lib/wireshark/plugins; Help > About Wireshark > Folders
says so, too.
"""


def wireshark(arguments: list[str]) -> int:
    """Run `vhu wireshark`; its exit code."""
    parser = Parser(PROGRAM, "Let Wireshark and tshark understand vhost-user.", EPILOG)
    parser.add_argument("action", choices=["install", "show"], help="put the dissector into place, or print it")
    parser.add_argument("--dir", type=Path, metavar="D", help="instead of the user's folder for plugins")
    options = parser.parse_args(arguments)
    if options.action == "show":
        put(dissector().rstrip("\n"))
        return Exit.DONE
    place = install(options.dir or plugins())
    put(f"{place}\nRestart Wireshark, or: Analyze > Reload Lua Plugins")
    return Exit.DONE


def plugins() -> Path:
    """The user's folder for plugins of any version."""
    return Path.home() / ".local/lib/wireshark/plugins"


def install(folder: Path) -> Path:
    """Write the dissector beside its place, then move it there; where that is."""
    place = folder / NAME
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".vhu.") as scratch:
            written = Path(scratch) / NAME
            written.write_text(dissector(), encoding="utf-8")
            os.replace(written, place)
    except OSError as error:
        raise CommandError(f"cannot write {place}: {error.strerror}", "try: --dir with another folder") from None
    return place
