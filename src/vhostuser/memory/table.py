"""Tables of mappings and quotas: the compiled ones where they are in use, else those of `protocol.regions`."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from .. import _native
from ..protocol import regions

if TYPE_CHECKING:
    from .._native.window import Quota as CompiledQuota

AnyQuota: TypeAlias = "regions.Quota | CompiledQuota"


def new_table() -> regions.Table:
    """An empty table of mappings."""
    return _native.window.MappingTable() if _native.accelerated else regions.MappingTable()


def new_quota(name: str, limit: int, parent: AnyQuota | None = None) -> AnyQuota:
    """A quota of `limit` mappings, within `parent`."""
    if _native.accelerated:
        outer = parent if isinstance(parent, _native.window.Quota) else None
        return _native.window.Quota(name, limit, outer)
    return regions.Quota(name, limit, parent if isinstance(parent, regions.Quota) else None)
