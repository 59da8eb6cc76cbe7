"""One target as a program: build.sh puts its name in place of the word in capitals."""

from __future__ import annotations

import logging
import sys

import atheris

with atheris.instrument_imports(include=["vhostuser"]):
    from tests.fuzz.targets import load

    one_input = load("TARGET")

logging.getLogger("vhostuser").addHandler(logging.NullHandler())
atheris.Setup(sys.argv, one_input)
atheris.Fuzz()
