"""What holds in every state that a session can come to."""

from __future__ import annotations

from itertools import pairwise

from vhostuser.protocol.numbers import END_OF_ADDRESSES, missing_requirements
from vhostuser.protocol.payloads import MemoryRegion, XenMemoryRegion
from vhostuser.protocol.state import State


def invariants(state: State, rings: int) -> None:
    """What holds in every state that a session can come to."""
    held: list[bool] = [
        not state.acknowledged & ~state.offered,
        not state.protocol_acknowledged & ~state.protocol_offered,
        not missing_requirements(state.protocol_acknowledged),
        len(state.rings) == rings,
        all(not ring.quiesced or (ring.started and not ring.enabled) for ring in state.rings),
        all(ring.active == (ring.started and ring.enabled) for ring in state.rings),
        not state.running or any(ring.started for ring in state.rings),
        disjoint(state.regions),
    ]
    if not all(held):
        raise AssertionError(f"{held}: {state}")


def disjoint(regions: tuple[MemoryRegion | XenMemoryRegion, ...]) -> bool:
    """No two regions share a byte, none is empty, all end within the address space."""
    edges = sorted((region.guest_addr, region.guest_addr + region.size) for region in regions)
    apart = all(before[1] <= after[0] for before, after in pairwise(edges))
    return apart and all(start < end <= END_OF_ADDRESSES for start, end in edges)
