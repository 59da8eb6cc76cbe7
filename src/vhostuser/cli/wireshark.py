"""`vhu wireshark`: the dissector, and the way to capture live, into the folders where Wireshark looks for them."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Final

from ..trace.dissector import dissector
from .arguments import Parser
from .extcap import NAME as EXTCAP
from .extcap import extcap, script
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

install --extcap puts a program into ~/.local/lib/wireshark/extcap besides, by which they have an interface vhost-user: it is
`vhu trace` between the sockets that are set for it.

  tshark -i vhost-user -o extcap.vhost_user.listen:/tmp/a -o extcap.vhost_user.connect:/tmp/b
"""


def wireshark(arguments: list[str]) -> int:
    """Run `vhu wireshark`; its exit code."""
    if arguments[:1] == ["extcap"]:  # Wireshark itself asks
        return extcap(arguments[1:])
    parser = Parser(PROGRAM, "Let Wireshark and tshark understand vhost-user.", EPILOG)
    parser.add_argument("action", choices=["install", "show"], help="put the dissector into place, or print it")
    parser.add_argument("--dir", type=Path, metavar="D", help="instead of the user's folder for plugins")
    parser.add_argument("--extcap", action="store_true", help="install the interface for live captures, too")
    options = parser.parse_args(arguments)
    if options.action == "show":
        put(dissector().rstrip("\n"))
        return Exit.DONE
    place = install(options.dir or plugins())
    put(f"{place}\nRestart Wireshark, or: Analyze > Reload Lua Plugins")
    if options.extcap:
        place = install_extcap(options.dir or plugins().with_name("extcap"))
        put(f"{place}\nRestart Wireshark, or: Capture > Refresh Interfaces")
    return Exit.DONE


def plugins() -> Path:
    """The user's folder for plugins of any version."""
    return Path.home() / ".local/lib/wireshark/plugins"


def install(folder: Path) -> Path:
    """Write the dissector; where that is."""
    return _put_there(folder / NAME, dissector())


def install_extcap(folder: Path) -> Path:
    """Write what Wireshark runs to capture live; where that is."""
    return _put_there(folder / EXTCAP, script(), mode=0o755)


def _put_there(place: Path, text: str, *, mode: int = 0o644) -> Path:
    """Write a file beside its place, then move it there."""
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=place.parent, prefix=".vhu.") as scratch:
            written = Path(scratch) / place.name
            written.write_text(text, encoding="utf-8")
            written.chmod(mode)
            os.replace(written, place)
    except OSError as error:
        raise CommandError(f"cannot write {place}: {error.strerror}", "try: --dir with another folder") from None
    return place
