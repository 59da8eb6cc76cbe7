"""Rules about the life of mappings: before there are rings, after a reset, at the end; and requests of other dialects."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from ...protocol.framing import Frame
from ...protocol.numbers import MAP_RW, NEED_REPLY, PAGE, VERSION, BackendRequest, FrontendRequest, ProtocolFeature
from ...protocol.payloads import CrosvmMap, Mmap
from ...transport.fds import OwnedFd
from ..family import declare
from ..frontend_bench import FRONT_END, FrontendBench
from ..outcome import Deviation, NotApplicable
from ..rule import Level

F, Q, B = ProtocolFeature, FrontendRequest, BackendRequest
MAP: Final = "VHOST_USER_BACKEND_SHMEM_MAP"
ANSWERED: Final = (F.BACKEND_REQ, F.REPLY_ACK)
MAPPED: Final = (F.SHMEM, *ANSWERED)
FS_MAP_BYTES: Final = 256


@FRONT_END.rule(MAP, level=Level.SHOULD, protocol=ANSWERED, queues=1)
def a_mapping_is_refused_where_shmem_was_not_agreed_on(bench: FrontendBench) -> None:
    """SHMEM_MAP needs the protocol feature SHMEM: a back-end without it maps nothing."""
    bench.start_without(F.SHMEM)
    bench.refuses(0)


@FRONT_END.rule("VHOST_USER_BACKEND_SHMEM_UNMAP", level=Level.SHOULD, protocol=ANSWERED, queues=1)
def an_unmapping_is_refused_where_shmem_was_not_agreed_on(bench: FrontendBench) -> None:
    """SHMEM_UNMAP needs the protocol feature SHMEM."""
    bench.start_without(F.SHMEM)
    bench.refuses_unmap(0)


@FRONT_END.rule(MAP, level=Level.ADVICE, protocol=MAPPED)
def a_mapping_before_the_rings_start_is_survived(bench: FrontendBench) -> None:
    """A device that is suspended sends nothing; one that maps before its rings start is refused or not, and no end."""
    _early(bench, B.SHMEM_MAP)


@FRONT_END.rule("VHOST_USER_BACKEND_SHMEM_UNMAP", level=Level.ADVICE, protocol=MAPPED)
def an_unmapping_before_the_rings_start_is_survived(bench: FrontendBench) -> None:
    """A device that is suspended sends nothing; one that unmaps before its rings start is refused, and no end."""
    _early(bench, B.SHMEM_UNMAP)


def _early(bench: FrontendBench, request: BackendRequest) -> None:
    """Ask as soon as the regions are known, before what asked for them is answered."""

    def ask(frame: Frame[OwnedFd]) -> bytes:
        if bench.requests is None:
            raise NotApplicable("it gives its back-end channel later")
        fds = [bench.file()] if request is B.SHMEM_MAP else []
        bench.requests.request(request, Mmap(0, 0, 0, PAGE, MAP_RW), fds=fds, flags=VERSION | NEED_REPLY)
        return bench.usual(frame)

    bench.answers[Q.GET_SHMEM_CONFIG] = ask
    bench.until(Q.GET_SHMEM_CONFIG)
    if bench.acknowledgement(request) is None and bench.over:
        raise Deviation("a connection that lives", f"its end after {request.name} before any ring")


@FRONT_END.rule(MAP, level=Level.ADVICE, protocol=MAPPED, queues=1)
def a_mapping_is_answered_while_the_front_end_waits(bench: FrontendBench) -> None:
    """Both sides may wait for each other: a front-end answers its back-end while it waits for an acknowledgement itself."""
    held: list[Frame[OwnedFd]] = []

    def hold(frame: Frame[OwnedFd]) -> bytes:
        held.append(frame)
        return b""

    bench.until(Q.SET_VRING_KICK)
    bench.answers[Q.SET_VRING_ENABLE] = hold
    seen = bench.until(Q.SET_VRING_ENABLE)
    if not seen.asks:
        raise NotApplicable("it waits for no acknowledgement of SET_VRING_ENABLE")
    body = Mmap(0, 0, 0, PAGE, MAP_RW)
    bench.channel.request(B.SHMEM_MAP, body, fds=[bench.file()], flags=VERSION | NEED_REPLY)
    try:
        if bench.acknowledgement(B.SHMEM_MAP) is None:
            raise Deviation("an answer to SHMEM_MAP", "the end of the channel")
    finally:
        del bench.answers[Q.SET_VRING_ENABLE]
        bench.main.send(bench.usual(held[0]))
    bench.start()


@FRONT_END.rule(MAP, protocol=MAPPED, queues=1)
def mappings_are_gone_after_a_reset(bench: FrontendBench) -> None:
    """Across a reset of the device mappings are taken away by the front-end: what was there can't be unmapped any more."""
    bench.shared_memory()
    bench.maps(0)
    if not bench.watch(lambda: _resets(bench) > 0):
        raise NotApplicable("it does not reset its device by itself")
    bench.watch(lambda: False, moments=0.5)
    bench.refuses_unmap(0)


@FRONT_END.rule(MAP, protocol=MAPPED, queues=1)
def a_range_is_free_after_a_reset(bench: FrontendBench) -> None:
    """After a reset, when rings run again, the same range can be mapped again."""
    bench.shared_memory()
    bench.maps(0)
    if not bench.watch(lambda: _resets(bench) > 0):
        raise NotApplicable("it does not reset its device by itself")
    if not bench.watch(lambda: len(bench.seen.running) >= bench.reach.rings):
        raise NotApplicable("it does not start its rings again after a reset")
    bench.maps(0)


def _resets(bench: FrontendBench) -> int:
    statuses = [seen for seen in bench.seen.of(Q.SET_STATUS) if not seen.number]
    return len(bench.seen.of(Q.RESET_DEVICE)) + len(statuses)


@FRONT_END.rule(MAP, level=Level.ADVICE, protocol=MAPPED, queues=1)
def the_connection_outlives_a_channel_with_mappings(bench: FrontendBench) -> None:
    """A back-end may close its channel while mappings are there: the main channel lives."""
    bench.shared_memory()
    for page in range(4):
        bench.maps(page * PAGE)
    bench.channel.close()
    bench.lives(moments=1)


@FRONT_END.rule(MAP, level=Level.ADVICE, protocol=MAPPED, queues=1)
def the_end_of_a_back_end_with_mappings_is_survived(bench: FrontendBench) -> None:
    """A back-end may die with mappings in its regions: the front-end loses a device, not its life."""
    bench.shared_memory()
    for page in range(4):
        bench.maps(page * PAGE)
    bench.come_to_rest()
    bench.hang_up()


@FRONT_END.rule(MAP, level=Level.ADVICE, protocol=MAPPED, queues=1)
def the_end_of_a_back_end_that_waits_for_a_mapping_is_survived(bench: FrontendBench) -> None:
    """A back-end may die while its mapping is being made."""
    bench.shared_memory()
    bench.channel.request(B.SHMEM_MAP, Mmap(0, 0, 0, PAGE, MAP_RW), fds=[bench.file()], flags=VERSION | NEED_REPLY)
    bench.hang_up()


# Requests of other dialects

DIALECTS: Final[dict[str, tuple[str, int, bytes]]] = {
    "fs_map": ("FS_MAP was request 6 of virtio-fs before SHMEM", 6, bytes(FS_MAP_BYTES)),
    "fs_unmap": ("FS_UNMAP was request 7 of virtio-fs before SHMEM", 7, bytes(FS_MAP_BYTES)),
    "crosvms_first_map": ("SHMEM_MAP was request 6 of crosvm", 6, CrosvmMap(3, 0, 0, 0, PAGE).pack()),
    "crosvms_second_map": ("SHMEM_MAP was request 1000 of crosvm", 1000, CrosvmMap(3, 0, 0, 0, PAGE).pack()),
    "crosvms_map_layout": ("SHMEM_MAP had 32 bytes in crosvm", 9, CrosvmMap(3, 0, 0, 0, PAGE).pack()),
}
"""Mappings as others have sent them: who, the number, the payload."""


def _foreign(request: int, payload: bytes) -> Callable[[FrontendBench], None]:
    def check(bench: FrontendBench) -> None:
        bench.shared_memory()
        bench.refused(request, payload, fds=[bench.file()])

    return check


for _name, (_text, _request, _payload) in DIALECTS.items():
    declare(
        FRONT_END,
        "Back-end message types",
        f"{_name}_is_refused",
        f"{_text}, and is not understood as anything today.",
        _foreign(_request, _payload),
        level=Level.SHOULD,
        protocol=MAPPED,
        queues=1,
    )
