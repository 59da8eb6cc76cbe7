"""Tables of mappings, quotas and the plain way to map: the compiled ones where they are in use, else those in Python."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from .. import _native
from ..protocol.regions import MappingTable, Quota
from .core import WindowCore

if TYPE_CHECKING:
    from .._native import window as compiled

AnyTable: TypeAlias = "MappingTable | compiled.MappingTable"
AnyQuota: TypeAlias = "Quota | compiled.Quota"
AnyCore: TypeAlias = "WindowCore | compiled.WindowCore"


def new_table() -> AnyTable:
    """An empty table of mappings."""
    return _native.window.MappingTable() if _native.accelerated else MappingTable()


def new_quota(name: str, limit: int, parent: AnyQuota | None = None) -> AnyQuota:
    """A quota of `limit` mappings, within `parent`. TypeError if that is not of the same kind."""
    return _native.window.Quota(name, limit, parent) if _native.accelerated else Quota(name, limit, parent)  # type: ignore[arg-type]  # one kind a process


def new_core(base: int, size: int, table: AnyTable, quota: AnyQuota, *, populate: bool) -> AnyCore:
    """The plain way of a window."""
    kind = _native.window.WindowCore if _native.accelerated else WindowCore
    return kind(base, size, table, quota, populate)  # type: ignore[arg-type]  # one kind a process
