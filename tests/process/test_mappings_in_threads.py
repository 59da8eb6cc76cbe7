"""Looking at mappings from several threads: nobody waits for ever."""

from __future__ import annotations

import subprocess
import sys

LOOK = """
import sys, threading
from vhostuser.memory.table import new_table
from vhostuser.protocol.regions import Mapping

table = new_table()
for page in range(200):
    table.insert(Mapping(page * 4096, 4096, 0, False))

def look():
    for _ in range(300):
        assert len(list(table)) == 200
        assert table.exact(4096, 4096).shm_offset == 4096

sys.setswitchinterval(1e-5)
threads = [threading.Thread(target=look) for _ in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
"""


def test_threads_that_look_at_one_table_do_not_lock_each_other_out() -> None:
    """In a process of its own: a table that is held while Python runs would stop every thread, this one too."""
    subprocess.run([sys.executable, "-c", LOOK], check=True, timeout=60)
