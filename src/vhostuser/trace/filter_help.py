"""The reference of filters, made of the tables that they are read by."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from .filter_fields import ARGUMENTS, OWN, PAYLOAD, WORDS, Kind

_WIDTH: Final = 100


def _table(rows: Iterable[tuple[str, str]]) -> str:
    return "\n".join(f"  {name:12} {what}" for name, what in rows)


def _listed(names: list[str]) -> str:
    room = max(map(len, names)) + 2
    most = _WIDTH // room
    rows = [names[start : start + most] for start in range(0, len(names), most)]
    return "\n".join("  " + "".join(f"{name:{room}}" for name in row).rstrip() for row in rows)


def _compared(kind: Kind) -> str:
    """What a field is compared with; numbers need no word."""
    return "" if kind is Kind.NUMBER else f": {kind.value}"


GRAMMAR: Final = f"""\
FILTER is the name of a request (SHMEM_MAP; with * and ? of several: SET_VRING_*), a word, or a comparison, joined by
`and`, `or`, `not` and parentheses; `and` binds tighter than `or`. What has no such field matches no comparison with it.

  FIELD == VALUE, != < <= > >=   shmid==0  len>=2M  shm_offset<0x1000  latency>100us  reply==EINVAL  path==*.bin
  FIELD in (VALUE, ...)          request in (SHMEM_MAP, SHMEM_UNMAP)  opcode in (READ, WRITE)

words:
{_table((name, what) for name, (what, _) in WORDS.items())}

fields of every message, or of what was seen in a ring:
{_table((name, f"{asked.what}{_compared(asked.kind)}") for name, asked in OWN.items())}
  time         since the first item: a time such as 100us, 2.5ms or 1s

fields of payloads, of the request and of a reply of its own, by the specification's names; sizes may
end in K, M, G or T, bytes are text in hexadecimal:
{_listed(sorted(PAYLOAD))}

fields of FUSE requests in rings (--queues), and of their answers:
{_listed(sorted(ARGUMENTS))}
"""
