"""`vhu vm args` and `vhu vm xml`: what a VM of one's own needs to be told of our back-ends."""

from __future__ import annotations

import argparse
import json
import os
import shlex
from typing import Final

from ..vm.domain import domain
from ..vm.machine import MIB, Attachment, Kind, Machine
from .arguments import Parser, between, checked
from .outcome import CommandError, Exit, put
from .vm_run import memory

SHARED: Final = """
Each back-end listens on its socket before the VM starts. In the guest: mount -t virtiofs myfs /mnt; persistent memory is
/dev/pmem0. Memory must be shared, as it is here. A virtio-fs DAX window and virtio-pmem need QEMU >= 11.1.
"""


def vm_args(arguments: list[str]) -> int:
    """Run `vhu vm args`; its exit code."""
    parser = _parser("vhu vm args", "Print QEMU's arguments for back-ends that listen on these sockets.")
    parser.add_argument("--memory", type=checked(memory), default=512 * MIB, metavar="SIZE", help="default 512M")
    parser.add_argument("--cpus", type=between(1, 255), default=1, metavar="N", help="default 1")
    parser.add_argument("--accel", choices=("tcg", "kvm"), default="kvm", help="default kvm")
    parser.add_argument("--json", action="store_true", help="print a list of strings")
    options = parser.parse_args(arguments)
    words = Machine(options.memory, options.cpus, options.accel).words()
    words += [word for each in _attached(options, parser.prog) for word in each.words()]
    put(json.dumps(words) if options.json else in_lines(words))
    return Exit.DONE


def vm_xml(arguments: list[str]) -> int:
    """Run `vhu vm xml`; its exit code."""
    parser = _parser("vhu vm xml", "Print the XML that a libvirt domain needs for back-ends on these sockets.")
    options = parser.parse_args(arguments)
    put(domain(_attached(options, parser.prog)))
    return Exit.DONE


def _parser(program: str, description: str) -> Parser:
    parser = Parser(program, description, epilog=SHARED)
    parser.add_argument("--share", metavar="SOCKET", help="where vhu-fs listens")
    parser.add_argument("--dax", choices=("on", "off"), default="on", help="whether it has a window (default on)")
    parser.add_argument("--pmem", metavar="SOCKET", help="where vhu-pmem listens")
    parser.add_argument("--blk", metavar="SOCKET", help="where vhu-blk listens")
    return parser


def _attached(options: argparse.Namespace, program: str) -> list[Attachment]:
    paths = {kind: getattr(options, kind.value) for kind in Kind}
    found = [
        Attachment(kind, os.path.abspath(path), options.dax == "on") for kind, path in paths.items() if path is not None
    ]
    if not found:
        raise CommandError("no socket is given", f"try: {program} --share /tmp/fs.sock", Exit.USAGE)
    return found


def in_lines(words: list[str]) -> str:
    """A command line for a shell, with an option and its value on each line."""
    pairs = [shlex.join(words[at : at + 2]) for at in range(0, len(words), 2)]
    return " \\\n".join(pairs)
