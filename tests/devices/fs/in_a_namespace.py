"""Runs a script in a process and a mount namespace of its own, where it may mount, chroot and give up being root."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount, and be someone else")

PREAMBLE = """
import errno, os, sys
sys.path[:0] = {path!r}
from pathlib import Path
from tests.devices.fs.failing import fails
from tests.devices.fs.guest import Guest
from vhostuser.devices.fs.options import Handles, ShareOptions
from vhostuser.fuse import structs as s
from vhostuser.fuse.numbers import ROOT_ID, AttrFlag, InitFlag
root = Path({root!r})
"""


def open_to_all(root: Path) -> None:
    """Let other users reach a directory of a test, however deep it is."""
    top = Path(tempfile.gettempdir())
    for parent in root.parents:
        if parent != top and parent.is_relative_to(top):
            parent.chmod(0o755)


def run(script: str, root: Path) -> str:
    """What the script prints; it is a failure if it says anything on stderr."""
    whole = PREAMBLE.format(path=[each for each in sys.path if each], root=str(root)) + script
    command = ["unshare", "--mount", "--propagation", "private", sys.executable, "-c", whole]
    done = subprocess.run(command, capture_output=True, text=True, timeout=50, check=False)
    if done.stderr or done.returncode:
        pytest.fail(f"{done.returncode}: {done.stderr}")
    return done.stdout
