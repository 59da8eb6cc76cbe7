"""Rules about rings: what is told of one before it starts, and how it is stopped."""

from __future__ import annotations

import select
from typing import Final

from ...protocol.numbers import MAX_QUEUE_SIZE, VRING_INDEX_MASK, VRING_NO_FD, FrontendRequest, ProtocolFeature
from ...protocol.payloads import MemoryRegion, MemoryTable, SingleRegion, VringAddr, VringState
from ...transport.fds import OwnedFd
from ...virtio.numbers import Feature
from ..frontend_bench import FRONT_END, FrontendBench
from ..outcome import Deviation, NotApplicable
from ..rule import Level

F, Q = ProtocolFeature, FrontendRequest
STATES: Final = "Ring states"
PARTS: Final = (Q.SET_VRING_NUM, Q.SET_VRING_BASE, Q.SET_VRING_ADDR)
FILES: Final = (Q.SET_VRING_KICK, Q.SET_VRING_CALL, Q.SET_VRING_ERR)
BY_INDEX: Final = (*PARTS, *FILES, Q.SET_VRING_ENABLE, Q.GET_VRING_BASE)


@FRONT_END.rule(STATES, queues=1)
def a_ring_is_told_whole_before_it_starts(bench: FrontendBench) -> None:
    """A kick starts a ring, so its size, base and addresses are told before the fd for kicks."""
    bench.start()
    told: dict[int, set[int]] = {}
    for seen in bench.seen:
        if seen.request in PARTS:
            told.setdefault(int.from_bytes(seen.payload[:4], "little"), set()).add(seen.request)
        elif seen.request == Q.SET_VRING_KICK:
            index = seen.number & VRING_INDEX_MASK
            if missing := [part.name for part in PARTS if part not in told.get(index, set())]:
                raise Deviation(f"ring {index} told whole before SET_VRING_KICK", f"it lacks {', '.join(missing)}")


@FRONT_END.rule(STATES, level=Level.SHOULD, queues=1)
def a_ring_is_kicked_once_it_has_started(bench: FrontendBench) -> None:
    """Some back-ends start a ring at its first kick, so a front-end injects one behind SET_VRING_KICK."""
    bench.start()
    if not bench.kicks:
        raise NotApplicable("it gives no fds for kicks")
    if not bench.watch(lambda: all(_is_set(fd) for fd in bench.kicks.values())):
        unkicked = sorted(index for index, fd in bench.kicks.items() if not _is_set(fd))
        raise Deviation("a kick of each ring that was started", f"none of rings {unkicked}")


def _is_set(fd: OwnedFd) -> bool:
    """An eventfd, or a pipe, has been signalled. Nothing is taken from it."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(0))


@FRONT_END.rule("VHOST_USER_SET_VRING_NUM", queues=1)
def ring_sizes_are_those_that_virtio_allows(bench: FrontendBench) -> None:
    """A ring has between 1 and 32768 entries; a split one has a power of two."""
    bench.start()
    packed = bench.seen.features >> Feature.RING_PACKED & 1
    for _, state in bench.seen.bodies(VringState, Q.SET_VRING_NUM):
        if not 0 < state.num <= MAX_QUEUE_SIZE or (state.num & (state.num - 1) and not packed):
            raise Deviation("a size that VIRTIO allows", f"ring {state.index} of {state.num} entries")


@FRONT_END.rule("VHOST_USER_SET_VRING_ADDR", queues=1)
def ring_addresses_are_aligned(bench: FrontendBench) -> None:
    """VIRTIO aligns the descriptors to 16 bytes, the available ring to 2 and the used ring to 4."""
    bench.start()
    packed = bench.seen.features >> Feature.RING_PACKED & 1
    for _, address in bench.seen.bodies(VringAddr, Q.SET_VRING_ADDR):
        if address.descriptor % 16 or address.available % (4 if packed else 2) or address.used % 4:
            raise Deviation(f"the parts of ring {address.index} aligned to 16, 2 and 4", _parts(address))


@FRONT_END.rule("VHOST_USER_SET_VRING_ADDR", queues=1)
def rings_lie_in_shared_memory(bench: FrontendBench) -> None:
    """A ring's addresses are user addresses, each in a region that was shared."""
    bench.start()
    if bench.seen.features >> Feature.ACCESS_PLATFORM & 1:
        raise NotApplicable("with ACCESS_PLATFORM ring addresses are I/O addresses")
    regions = [region for _, table in bench.seen.bodies(MemoryTable, Q.SET_MEM_TABLE) for region in table.regions]
    regions += [single.region for _, single in bench.seen.bodies(SingleRegion, Q.ADD_MEM_REG)]
    for _, address in bench.seen.bodies(VringAddr, Q.SET_VRING_ADDR):
        for place in (address.descriptor, address.available, address.used):
            if not any(_holds(region, place) for region in regions):
                raise Deviation(f"the parts of ring {address.index} in regions", f"{place:#x} is in none")


def _holds(region: MemoryRegion, place: int) -> bool:
    return region.user_addr <= place < region.user_addr + region.size


@FRONT_END.rule("VHOST_USER_SET_VRING_BASE", queues=1)
def a_base_is_an_index(bench: FrontendBench) -> None:
    """The base of a split ring is an index of 16 bits; a packed one has two of them with wrap counters."""
    bench.start()
    if bench.seen.features >> Feature.RING_PACKED & 1:
        raise NotApplicable("its rings are packed")
    for _, state in bench.seen.bodies(VringState, Q.SET_VRING_BASE):
        if state.num > 0xFFFF:
            raise Deviation("a base of 16 bits", f"{state.num:#x} for ring {state.index}")


@FRONT_END.rule("Multiple queue support", level=Level.SHOULD, queues=1)
def no_more_rings_are_used_than_there_are(bench: FrontendBench) -> None:
    """GET_QUEUE_NUM says how many queues there may be, of a network device how many pairs; who needs more stops."""
    bench.queues = 1
    bench.until(Q.SET_VRING_KICK)
    bench.watch(lambda: bool(bench.seen.running), moments=2)
    for seen in bench.seen.of(*BY_INDEX):
        index = seen.payload[0] if seen.request in FILES and seen.payload else int.from_bytes(seen.payload[:4], "little")
        if index > 1:
            raise Deviation("rings 0 and 1 at most, as there is one queue, or one pair", f"{seen.name} for ring {index}")


@FRONT_END.rule("Multiple queue support", queues=1)
def one_ring_is_used_without_mq(bench: FrontendBench) -> None:
    """A device whose number of queues is fixed does not need MQ: a front-end with one ring gets along without it."""
    if bench.reach.rings > 1:
        raise NotApplicable("it starts several rings: its device may be one of multiple queues")
    bench.protocol &= ~(1 << F.MQ)
    bench.start()


@FRONT_END.rule("VHOST_USER_SET_VRING_KICK", queues=1)
def the_files_of_a_ring_have_no_unknown_bits(bench: FrontendBench) -> None:
    """SET_VRING_KICK, SET_VRING_CALL and SET_VRING_ERR have the ring's index in bits 0 to 7, and bit 8 for no fd."""
    bench.start()
    for seen in bench.seen.of(*FILES):
        if seen.number & ~(VRING_INDEX_MASK | VRING_NO_FD):
            raise Deviation(f"{seen.name} with an index and bit 8", f"{seen.number:#x}")


@FRONT_END.rule("VHOST_USER_SET_VRING_KICK", level=Level.SHOULD, queues=1)
def the_files_of_a_ring_are_eventfds(bench: FrontendBench) -> None:
    """What signals a ring's kicks, calls and errors is an eventfd, or a pipe where there are none."""
    bench.start()
    for seen in bench.seen.of(*FILES):
        for note in seen.fds:
            if note.kind not in ("eventfd", "pipe"):
                raise Deviation(f"{seen.name} with an eventfd or a pipe", f"a {note.kind}")


@FRONT_END.rule("VHOST_USER_SET_VRING_KICK", level=Level.ADVICE, queues=1)
def a_ring_has_an_fd_for_its_kicks(bench: FrontendBench) -> None:
    """Without an fd for kicks a back-end has to poll the ring: it is the exception, and most back-ends can't."""
    bench.start()
    for seen in bench.seen.of(Q.SET_VRING_KICK):
        if not seen.fds:
            raise Deviation("SET_VRING_KICK with an fd", f"none for ring {seen.number & VRING_INDEX_MASK}")


@FRONT_END.rule("VHOST_USER_SET_VRING_ENABLE", queues=1)
def a_ring_is_enabled_by_1_and_disabled_by_0(bench: FrontendBench) -> None:
    """SET_VRING_ENABLE has 1 to enable a ring and 0 to disable it, and nothing else."""
    bench.start()
    for _, state in bench.seen.bodies(VringState, Q.SET_VRING_ENABLE):
        if state.num > 1:
            raise Deviation("0 or 1", f"{state.num} for ring {state.index}")


@FRONT_END.rule("VHOST_USER_SET_VRING_ENABLE", level=Level.ADVICE, queues=1)
def a_ring_is_enabled_that_was_set_up(bench: FrontendBench) -> None:
    """SET_VRING_ENABLE enables a ring that has its size and addresses."""
    bench.start()
    ready: set[int] = set()
    for seen in bench.seen:
        if seen.request == Q.SET_VRING_ADDR:
            ready.add(int.from_bytes(seen.payload[:4], "little"))
        elif seen.request == Q.SET_VRING_ENABLE and seen.payload[4:8] == b"\1\0\0\0":
            index = int.from_bytes(seen.payload[:4], "little")
            if index not in ready:
                raise Deviation(f"SET_VRING_ADDR for ring {index} before it is enabled", "SET_VRING_ENABLE")


@FRONT_END.rule("VHOST_USER_GET_VRING_BASE", level=Level.SHOULD, queues=1)
def rings_are_stopped_by_asking_for_their_base(bench: FrontendBench) -> None:
    """A ring stops with GET_VRING_BASE, one for each that ran, or with a reset of the device."""
    bench.start()
    started = bench.seen.running
    _stopped(bench)
    resets = [seen for seen in bench.seen.of(Q.SET_STATUS) if not seen.number]
    if resets or bench.seen.of(Q.RESET_DEVICE):
        return
    bench.watch(lambda: not bench.seen.running or bench.over, moments=3)
    asked = {state.index for _, state in bench.seen.bodies(VringState, Q.GET_VRING_BASE)}
    if missing := started - asked:
        raise Deviation(f"GET_VRING_BASE for rings {sorted(started)}", f"none for {sorted(missing)}")


@FRONT_END.rule("VHOST_USER_GET_VRING_BASE", level=Level.ADVICE, queues=1)
def a_stop_asks_for_rings_that_were_started(bench: FrontendBench) -> None:
    """GET_VRING_BASE is for rings that were started: a back-end has no base of any other."""
    bench.start()
    _stopped(bench)
    bench.watch(lambda: False, moments=0.5)
    kicked = {seen.number & VRING_INDEX_MASK for seen in bench.seen.of(Q.SET_VRING_KICK)}
    for _, state in bench.seen.bodies(VringState, Q.GET_VRING_BASE):
        if state.index not in kicked:
            raise Deviation(f"GET_VRING_BASE for rings {sorted(kicked)}", f"for ring {state.index}")


def _stopped(bench: FrontendBench) -> None:
    """Give the front-end a reason to stop, as far as there is one, and wait a little whether it does."""
    bench.nudge()
    if not bench.watch(lambda: bench.seen.stops > 0):
        raise NotApplicable("it does not stop its rings by itself")


def _parts(address: VringAddr) -> str:
    return f"descriptors {address.descriptor:#x}, available {address.available:#x}, used {address.used:#x}"
