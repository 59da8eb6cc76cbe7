"""`python -m tests.matrix [PEER ...]`: hold peers to the specification and write docs/matrix.md and docs/findings.

Without PEER it is all of them, and the ways to end QEMU (`kills`). --write writes the pages from the stored results only.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

from vhostuser.vm.tree import versions

from .kill_page import Killed, save_kill
from .kills import KILLS
from .page import write
from .peers import PEERS
from .run import run, today, within
from .store import FINDINGS, LARGEST, without_paths

SECONDS = 90


def main(words: list[str]) -> int:
    """Run what is named, or all."""
    names = {peer.name: peer for peer in PEERS}
    wanted = [] if words == ["--write"] else words or [*names, "kills"]
    if unknown := [word for word in wanted if word not in names and word != "kills"]:
        print(f"there is no peer {unknown[0]}: try one of {', '.join(names)}, or kills", file=sys.stderr)
        return 2
    for word in wanted:
        if word == "kills":
            for name in KILLS:
                print(f"{name}: {try_to_kill(name)}", flush=True)
        else:
            found = run(names[word])
            print(f"{word}: {len(found.verdicts)} rules, {len(found.bad)} not kept. {found.over}", flush=True)
        write()
    write()
    return 0


def try_to_kill(name: str) -> str:
    """Run one of the ways to end QEMU, in its time; how it ended."""
    with tempfile.TemporaryDirectory(prefix="vhu-matrix") as folder:
        capture = Path(folder) / "capture.pcapng"
        code, out, said = within([sys.executable, "-m", "tests.matrix.kills", name, str(capture)], SECONDS)
        if code:
            print(said, file=sys.stderr)
        late = {"ended": f"gave no result within {SECONDS} s: not reproduced", "said": "", "sent": []}
        found = json.loads(out) if code == 0 else late
        place = FINDINGS / "qemu" / f"{name}.pcapng"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.unlink(missing_ok=True)
        if capture.exists() and capture.stat().st_size <= LARGEST:
            place.write_bytes(without_paths(capture.read_bytes()))
    save_kill(name, Killed(today(), versions().get("qemu-system-x86", ""), **found))
    return str(found["ended"])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
