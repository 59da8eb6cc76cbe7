"""Children are looked at before they are reaped, whoever has started us."""

from __future__ import annotations

import signal
import subprocess
import sys

from vhostuser.cli.children import child
from vhostuser.testing import DEADLINE
from vhostuser.unreaped import code_of, wait_for_end


def test_one_that_ignores_the_ends_of_children_hears_of_them_all_the_same() -> None:
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        with child(["sh", "-c", "exit 7"], group=True) as one, child(["sleep", "600"]) as other:
            assert one.wait(DEADLINE) == 7
            assert other.poll() is None
        assert other.poll() == -signal.SIGTERM
    finally:
        signal.signal(signal.SIGCHLD, before)


def test_how_it_ended_is_told_until_it_is_reaped() -> None:
    for words, code in (("exit 3", 3), ("kill -9 $$", -signal.SIGKILL)):
        with subprocess.Popen(["sh", "-c", words], stderr=sys.stderr) as process:
            wait_for_end(process.pid, DEADLINE)
            assert code_of(process.pid) == code
            assert code_of(process.pid) == code
            assert process.wait(DEADLINE) == code
