"""All rules for back-ends: to import this is to have them in `backend_bench.BACK_END`."""

from __future__ import annotations

from . import (
    areas,
    config_space,
    device_status,
    dirty_log,
    fds,
    gates,
    header,
    hostile_rings,
    in_band,
    memory_slots,
    memory_table,
    negotiation,
    reply_ack,
    ring_setup,
    ring_states,
    shmem_config,
    shmem_maps,
    sizes,
    virtqueue,
)

MODULES = (
    *(header, negotiation, reply_ack, sizes, fds, gates, memory_table, memory_slots, ring_setup, ring_states),
    *(virtqueue, hostile_rings, in_band, config_space, device_status, areas, dirty_log, shmem_config, shmem_maps),
)
"""By subject."""
