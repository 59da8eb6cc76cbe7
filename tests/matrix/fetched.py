"""Peers that only the matrix needs: fetched as the tools of the tests are, each into a folder of its own in the cache."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Final

from vhostuser.vm.tool import Tool
from vhostuser.vm.tree import FetchError, loaded

from .store import TOP

LIBRARIES: Final = "usr/lib/x86_64-linux-gnu"


def _passt(tree: Path) -> list[str]:
    return loaded("usr/bin/passt", tree)


def _testpmd(tree: Path) -> list[str]:
    """With the drivers of the tree, which it would look for in the system."""
    drivers = next((tree / LIBRARIES / "dpdk").glob("pmds-*"), None)
    if drivers is None:
        raise FetchError("the packages of DPDK hold no drivers: has their layout changed?")
    return [*loaded("usr/bin/dpdk-testpmd", tree), "-d", str(drivers)]


PASST: Final = Tool("matrix-passt", ("passt",), _passt)
DPDK: Final = ("dpdk-dev", "librte-net-vhost25", "librte-net-virtio25", "librte-mempool-ring25", "librte-bus-vdev25")
TESTPMD: Final = Tool("matrix-dpdk", DPDK, _testpmd, version="--help")


def have(tool: Tool) -> list[str]:
    """Fetch it unless it is there; the start of its command line."""
    if not tool.is_there:
        tool.fetch()
    return tool.command()


CRATES: Final = "rust/root"
"""Where in the cache benchmarks/fetch_rust.py has the crates."""


def built_on_crates(name: str) -> list[str]:
    """Build a program of tests/matrix/rust on Debian's crates unless it is there; how it is started."""
    command = [sys.executable, str(TOP / "benchmarks/fetch_rust.py"), str(TOP / "tests/matrix/rust"), name]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        complaint = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        raise FetchError(complaint.removeprefix("fetch_rust: "))
    return [done.stdout.strip()]
