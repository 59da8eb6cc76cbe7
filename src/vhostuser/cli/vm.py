"""`vhu vm`: a VM for our devices."""

from __future__ import annotations

from collections.abc import Callable
from difflib import get_close_matches
from typing import Final

from .outcome import CommandError, Exit, put
from .vm_args import vm_args, vm_xml
from .vm_fetch import vm_fetch
from .vm_run import vm_run

COMMANDS: Final[dict[str, Callable[[list[str]], int]]] = {
    "fetch": vm_fetch,
    "run": vm_run,
    "args": vm_args,
    "xml": vm_xml,
}
OVERVIEW: Final = """\
usage: vhu vm fetch | run | args | xml ...

  fetch    get QEMU >= 11.1 and a Linux guest into the cache: no root, nothing installed, about 300 MB
  run      boot a guest with a shared directory, a disk, persistent memory; for one command or a shell
  args     print QEMU's arguments for a VM of your own and back-ends that listen
  xml      print libvirt's XML for them

Each takes --help."""


def vm(arguments: list[str]) -> int:
    """Run `vhu vm`; its exit code."""
    name = arguments[0] if arguments else "--help"
    if name in COMMANDS:
        return COMMANDS[name](arguments[1:])
    if name in ("-h", "--help"):
        put(OVERVIEW)
        return Exit.DONE
    near = get_close_matches(name, COMMANDS, 1)
    advice = f"did you mean {near[0]}?" if near else "try: vhu vm --help"
    raise CommandError(f"vhu vm does not do {name[:40]!a}", advice, Exit.USAGE)
