"""The two implementations of whatever there are two of, chosen by name: the tests of one are the tests of the other."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Final
from unittest import mock

from vhostuser import _native
from vhostuser.memory.table import new_table
from vhostuser.protocol.regions import Table

HALVES: Final = ("python", "compiled") if _native.accelerated else ("python",)


def using(half: str) -> AbstractContextManager[bool]:
    """In the block, `python` or `compiled` is what new tables, quotas and windows are made of."""
    return mock.patch.object(_native, "accelerated", half == "compiled")


def table_of(half: str) -> Table:
    """An empty table of mappings."""
    with using(half):
        return new_table()
