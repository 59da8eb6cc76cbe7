"""SH25 where it is hardest: a back-end's rings catch the faults of memory that goes away, and none of the program's own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from vhostuser.testing import DEADLINE

SCRIPT = """
import faulthandler, os, resource, signal, sys
from tests.hostile.rig import MEMORY, RINGS, ConnectedSplit, backend_of, echoes, prepared
from tests.virtio_rig import BUFFERS
from tests.wire.devices import Scripted
from vhostuser.memory.mapping import map_file
from vhostuser.testing import raw_frontend, sparse_file

resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
when, own = sys.argv[1:]
called = []

def install():
    if own == "python":
        signal.signal(signal.SIGBUS, lambda number, frame: called.append(number))
    if own == "faulthandler":
        faulthandler.enable()

if when == "before":
    install()
with raw_frontend(Scripted()) as raw, sparse_file(MEMORY) as file:
    rig = ConnectedSplit(raw, prepared(raw, file))
    echoes(rig)
    if when == "after":
        install()
    echoes(rig)
    os.ftruncate(file.fileno(), RINGS)
    rig.give((BUFFERS, 4, 0))
    rig.broken()
    assert backend_of(rig).counters.broken == 1
    rig.stop()
    rig.close()
    raw.alive()
print("lives", called, flush=True)
if own == "python":
    os.kill(os.getpid(), signal.SIGBUS)
    print("called", called, flush=True)
else:
    with sparse_file(4096) as file:
        view = map_file(file.fileno(), 4096, 0)
        os.ftruncate(file.fileno(), 0)
        view[0]
"""


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("own", ["python", "faulthandler", "none"])
def test_sh25_a_fault_of_the_program_is_the_program_s(own: str, when: str) -> None:
    """The queue breaks and nobody else hears of it; then the program faults by itself, and has what it asked for."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", SCRIPT, when, own],
        env=os.environ,
        capture_output=True,
        text=True,
        timeout=2 * DEADLINE,
        check=False,
    )
    if own == "python":
        assert (done.returncode, done.stdout) == (0, f"lives []\ncalled [{int(signal.SIGBUS)}]\n"), done.stderr
        return
    assert (done.returncode, done.stdout) == (-signal.SIGBUS, "lives []\n"), done.stderr
    assert ("Fatal Python error: Bus error" in done.stderr) is (own == "faulthandler")
