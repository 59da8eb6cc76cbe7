"""Rules on when files may be mapped: only while a driver runs the device, for QEMU 11.1 dies of everything else."""

from __future__ import annotations

from collections.abc import Iterator

from ...protocol.numbers import ProtocolFeature
from .look import Look, Watched


def stopped(look: Look) -> Iterator[str]:
    """Before a driver runs the device, or after it stopped (K1)."""
    watched = look.watched
    if look.shmem and watched.begun and not _running(watched, look.exchange.at):
        ran = any(each.running for each in watched.stretches)
        when = "after the device was stopped" if ran else "before it was started"
        yield f"the {look.sender} sent {look.name} {when}: QEMU 11.1 dies of it (K1)"


def crossing(look: Look) -> Iterator[str]:
    """Under way when the front-end began to stop the device (K2); whichever of the two is settled later shows it."""
    exchange, watched = look.exchange, look.watched
    crossed = []
    if look.shmem and watched.begun and _running(watched, exchange.at):
        if any(exchange.at < each.at <= exchange.settled and not each.running for each in watched.stretches):
            crossed = [exchange]
    elif look.stops:
        crossed = [each for each in watched.mapping if each.settled > exchange.at]
    for each in crossed:
        yield f"{each.request.name}, message {each.index}, was under way when the device stopped: QEMU 11.1 dies of it (K2)"


def across_a_reset(look: Look) -> Iterator[str]:
    """Mappings that are there when a device stops (K3)."""
    if look.stops and look.watched.count and look.after.has(ProtocolFeature.CONFIGURE_MEM_SLOTS):
        text = "the device stopped with files mapped, and CONFIGURE_MEM_SLOTS: if that was a reset QEMU 11.1 dies of it (K3)"
        yield from look.watched.once(text)


def _running(watched: Watched, at: int) -> bool:
    return next((each.running for each in reversed(watched.stretches) if each.at <= at), False)
