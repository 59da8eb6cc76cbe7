"""`vhu`: the commands for people."""

from __future__ import annotations

import sys
from collections.abc import Callable
from difflib import get_close_matches
from importlib import import_module
from typing import Final

from ..version import VERSION
from .outcome import CommandError, Exit, program_arguments, put, run

PROGRAM: Final = "vhu"
COMMANDS: Final = (
    *("demo", "info", "attach", "drive"),
    *("trace", "read", "report", "top", "map", "replay", "wireshark"),
    *("check", "fuzz", "explain", "vm", "doctor"),
)
"""Each is a module here with a function of its name, and loaded when it is asked for: to start one must not cost all."""
OVERVIEW: Final = f"""\
vhu {VERSION}: vhost-user from both sides, with shared memory regions

  vhu demo                            watch two processes share files through a region, and a VM share one
  vhu-shm --socket-path /tmp/s --region 0:64M --map 0:0:FILE
                                      a back-end that maps FILE
  vhu info /tmp/s                     what a back-end offers
  vhu attach /tmp/s --json            a front-end without a VM: maps, reads, writes, resets
  vhu drive blk /tmp/s read 0 8       a driver without a VM: read, write, info, discard, flush, bench;
                                      rng get; fs ls, stat, cat, map, put, find; pmem; console;
                                      shm map, unmap, maps
  vhu trace --listen /tmp/a --connect /tmp/b -w f.pcapng
                                      a proxy between the two that shows every message, and writes a capture
  vhu read f.pcapng                   a capture in lines, counts or JSON; filtered, or in another format
  vhu report f.pcapng                 a capture as one page: regions over time, messages, fds, findings
  vhu top /tmp/a /tmp/b               a live view of a connection, or of a capture (pip install 'vhostuser[tui]')
  vhu map f.pcapng --at 1.5           what was mapped where at a moment: of a capture, or of a back-end that is there
  vhu replay f.pcapng --as front-end /tmp/s
                                      one side of a capture against a live peer: where it differs
  vhu wireshark install               let Wireshark understand captures
  vhu check back-end /tmp/s           hold a peer to the specification, rule by rule; or: check front-end --listen /tmp/s
  vhu fuzz /tmp/s --time 60           be a hostile front-end, by a seed: what makes a back-end crash, hang or leak
  vhu vm run --share .                a Linux guest with our devices: a shell, or one command; fetch, args, xml
  vhu doctor                          what this machine can do, and how to mend what it can not
  vhu explain SHMEM_MAP               what a message, feature bit, raw header or rule of vhu check means

Each takes --help. Exit status: 0 done, 1 failed, 2 usage, 3 the peer broke the protocol or is not there."""


def main(argv: list[str] | None = None) -> int:
    """Run `vhu`; its exit code."""
    arguments = program_arguments(argv)
    name = arguments[0] if arguments else "--help"
    return run(f"{PROGRAM} {name}" if name in COMMANDS else PROGRAM, lambda: _command(name, arguments[1:]))


def _command(name: str, rest: list[str]) -> int:
    if name in COMMANDS:
        command: Callable[[list[str]], int] = getattr(import_module(f".{name}", __package__), name)
        return command(rest)
    if name in ("-h", "--help"):
        put(OVERVIEW)
    elif name in ("-V", "--version"):
        put(f"{PROGRAM} {VERSION}")
    else:
        near = get_close_matches(name, COMMANDS, 1)
        advice = f"did you mean {near[0]}?" if near else f"try: {PROGRAM} --help"
        raise CommandError(f"there is no command {name[:40]!a}", advice, Exit.USAGE)
    return Exit.DONE


if __name__ == "__main__":
    sys.exit(main())
