"""`vhu-rng`: the host's randomness for a guest, by QEMU's conventions for back-end programs."""

from __future__ import annotations

import argparse
import contextlib
import sys
from contextlib import AbstractContextManager
from typing import Final

from ..device import Device
from ..devices.rng import Entropy
from .arguments import Parser
from .daemon import ENDING, add_rest, add_socket, daemon

PROGRAM: Final = "vhu-rng"
CAPABILITIES: Final = {"type": "rng"}


def main(argv: list[str] | None = None) -> int:
    """Run `vhu-rng`; its exit code."""
    return daemon(_parser, _device, program=PROGRAM, capabilities=CAPABILITIES, argv=argv)


def _parser() -> Parser:
    text = "A vhost-user back-end that gives a guest random bytes of the host's kernel."
    parser = Parser(PROGRAM, text, epilog=ENDING)
    add_socket(parser)
    add_rest(parser)
    return parser


def _device(options: argparse.Namespace) -> AbstractContextManager[Device]:
    return contextlib.nullcontext(Entropy())


if __name__ == "__main__":
    sys.exit(main())
