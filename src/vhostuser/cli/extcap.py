"""Wireshark's side door for captures (extcap): it asks what there is, and then for packets in a named pipe."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from typing import Final

from .outcome import STDOUT, CommandError, Exit, put
from .trace import trace

NAME: Final = "vhu-extcap"
INTERFACE: Final = "vhost-user"
_INTERFACES: Final = f"""\
extcap {{version=1}}{{display=vhost-user}}
interface {{value={INTERFACE}}}{{display=vhost-user connection}}"""
_DLTS: Final = "dlt {number=252}{name=WIRESHARK_UPPER_PDU}{display=vhost-user messages}"
_CONFIG: Final = """\
arg {number=0}{call=--listen}{display=Front-end connects to}{type=string}{required=true}{tooltip=a path, made for it}
arg {number=1}{call=--connect}{display=Back-end listens at}{type=string}{required=true}{tooltip=a path that is there}
arg {number=2}{call=--queues}{display=Requests in rings, too}{type=boolflag}{default=false}"""


def script() -> str:
    """What Wireshark runs: this very package, by this very Python."""
    return f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m vhostuser wireshark extcap "$@"\n'


def extcap(arguments: list[str]) -> int:
    """Answer Wireshark, or trace for it; the exit code."""
    options, _ = _parser().parse_known_args(arguments)  # it tells its version, and may tell more another day
    for asked, answer in ((options.interfaces, _INTERFACES), (options.dlts, _DLTS), (options.config, _CONFIG)):
        if asked:
            put(answer)
            return Exit.DONE
    if not (options.capture and options.fifo):
        raise CommandError("Wireshark runs this", "try: vhu wireshark install --extcap", Exit.USAGE)
    missing = [name for name in ("listen", "connect") if not getattr(options, name)]
    if missing:
        raise CommandError(f"--{missing[0]} is missing", "try: the gear beside the interface, to set it", Exit.USAGE)
    _silence()
    queues = ["--queues"] if options.queues else []
    return trace(["--listen", options.listen, "--connect", options.connect, "-w", options.fifo, "--quiet", *queues])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="vhu wireshark extcap", add_help=False, allow_abbrev=False)
    for name in ("interfaces", "dlts", "config"):
        parser.add_argument(f"--extcap-{name}", dest=name, action="store_true")
    for name in ("capture", "queues"):
        parser.add_argument(f"--{name}", action="store_true")
    for name in ("fifo", "listen", "connect", "extcap-interface"):
        parser.add_argument(f"--{name}")
    return parser


def _silence() -> None:
    """Lines are for nobody here."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, STDOUT)
    os.close(nowhere)
