"""What a guest is booted for: to run one command, or a shell, and to say how it ended.

The guest has a port (virtio-serial) for each of the command's outputs and one for what it has to say itself: `ready`, then
`exit` with a status, or `failed` with a reason.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from .machine import TAG, Kind

OUT, ERR, STATUS, TTY = "out", "err", "status", "tty"
PORTS: Final = {TTY: 0, OUT: 1, ERR: 2, STATUS: 3}
"""By their numbers on the bus; 0 is the console's."""
MODULES: Final = {Kind.SHARE: (), Kind.PMEM: ("virtio_pmem", "nd_pmem", "nd_btt"), Kind.BLK: ("virtio_blk",)}
"""What a device needs of the kernel's modules; all else is built in."""
DAX_OPTIONS: Final = {"copy": "-o dax=inode ", "direct": "-o dax=always ", "off": ""}
"""In copy mode the back-end says which files are for DAX: those that nobody could write to past it."""
_PREPARE: Final = """\
exec </dev/null
export PATH=/bin HOME=/root
mkdir -p /dev/pts /dev/shm
mount -t devpts pts /dev/pts
mount -t tmpfs tmp /tmp
ln -s /proc/self/fd /dev/fd
for name in 0:stdin 1:stdout 2:stderr; do ln -s fd/${name%:*} /dev/${name#*:}; done
until [ -c /dev/vport*p3 ]; do sleep 0.02; done
port=$(echo /dev/vport*p3)
port=${port%3}
exec 3>${port}3
end() { cd /; sync; umount /mnt 2>/dev/null; echo "$@" >&3; poweroff -f; sleep 600; }
"""
_COMMAND: Final = """\
mkfifo /run/errors
cat </run/errors >${{port}}2 &
{{ {command} 2>/run/errors 3>&-; echo $? >/run/status; }} | cat >${{port}}1
wait
end exit $(cat /run/status)
"""
_SHELL: Final = """\
stty rows {rows} cols {columns} </dev/hvc0
export TERM={term} PS1='guest:\\w# '
setsid -c sh </dev/hvc0 >/dev/hvc0 2>&1 3>&-
end exit $?
"""


@dataclass(frozen=True, slots=True)
class Terminal:
    """The user's terminal, as far as a guest wants to know."""

    rows: int = 24
    columns: int = 80
    term: str = "linux"


def script(kinds: Iterable[Kind], work: Sequence[str] | Terminal, *, dax: str) -> str:
    """What the guest does: mount the share, if there is one, and run the command, or a shell on the terminal."""
    share = Kind.SHARE in kinds
    mount = f"mount -t virtiofs {DAX_OPTIONS[dax]}{TAG} /mnt"
    lines = [_PREPARE]
    if share:
        lines.append(f'why=$({mount} 2>&1) || end failed "the share can\'t be mounted: $why"\n')
    lines += ["echo ready >&3\n", f"cd {'/mnt' if share else '/root'}\n"]
    if isinstance(work, Terminal):
        lines.append(_SHELL.format(rows=work.rows, columns=work.columns, term=shlex.quote(work.term)))
    else:
        lines.append(_COMMAND.format(command=shlex.join(work)))
    return "".join(lines)
