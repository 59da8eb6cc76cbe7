"""Rules about SHMEM_MAP: what is mapped. What became of a mapping a back-end can't see; its status it can."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from ...protocol.numbers import MAP_RW, NEED_REPLY, PAGE, VERSION, BackendRequest, FrontendRequest, ProtocolFeature
from ...protocol.payloads import Mmap
from ...testing.files import memory_file, message, sparse_file
from .. import fd_kinds
from ..family import declare
from ..fd_kinds import MAPPABLE, Make
from ..frontend_bench import FRONT_END, FrontendBench
from ..outcome import Deviation
from ..relations import APART, MIDDLE, Range
from ..rule import Level
from ..scripted_backend import REGION

F, Q, B = ProtocolFeature, FrontendRequest, BackendRequest
MAP: Final = "VHOST_USER_BACKEND_SHMEM_MAP"
MAPPED: Final = (F.SHMEM, F.BACKEND_REQ, F.REPLY_ACK)
READ_ONLY: Final = 0
FAR: Final = 1 << 32
BURST: Final = 64
Check = Callable[[FrontendBench], None]

PLACES: Final = {
    "the_first_page": Range(0, PAGE),
    "the_last_page": Range(REGION - PAGE, PAGE),
    "the_whole_region": Range(0, REGION),
    "seven_pages_in_the_middle": Range(100 * PAGE, 7 * PAGE),
}
"""Ranges of a region that can be mapped."""


def _at(place: Range) -> Check:
    def check(bench: FrontendBench) -> None:
        bench.shared_memory()
        bench.maps(*place)

    return check


for _name, _place in PLACES.items():
    declare(
        FRONT_END,
        MAP,
        f"{_name}_can_be_mapped",
        f"A mapping lies anywhere within its region: {_name.replace('_', ' ')}.",
        _at(_place),
        protocol=MAPPED,
        queues=1,
    )


def _beside(place: Range) -> Check:
    def check(bench: FrontendBench) -> None:
        bench.shared_memory()
        bench.maps(*MIDDLE)
        bench.maps(*place)

    return check


for _name, _place in APART.items():
    declare(
        FRONT_END,
        MAP,
        f"a_mapping_{_name}_another_is_made",
        f"Mappings may not overlap, but they may touch: a range {_name.replace('_', ' ')} another one can be mapped.",
        _beside(_place),
        protocol=MAPPED,
        queues=1,
    )


def _of(make: Make) -> Check:
    def check(bench: FrontendBench) -> None:
        bench.shared_memory()
        bench.maps(0, fd=bench.keep(make()))

    return check


for _name, (_text, _make) in MAPPABLE.items():
    declare(FRONT_END, MAP, f"{_name}_can_be_mapped", _text, _of(_make), protocol=MAPPED, queues=1)


@FRONT_END.rule(MAP, protocol=MAPPED, queues=1)
def a_file_open_for_reading_can_be_mapped_read_only(bench: FrontendBench) -> None:
    """Without the flag for writing pages are mapped read-only, for which an fd that can be read is enough."""
    bench.shared_memory()
    bench.maps(0, fd=bench.keep(fd_kinds.one_page_read_only()), flags=READ_ONLY)


@FRONT_END.rule(MAP, protocol=MAPPED, queues=1)
def a_writable_file_can_be_mapped_read_only(bench: FrontendBench) -> None:
    """How pages are mapped is what the flags say, not how the fd was opened."""
    bench.shared_memory()
    bench.maps(0, flags=READ_ONLY)


@FRONT_END.rule(MAP, protocol=MAPPED, queues=1)
def a_mapping_may_begin_within_the_file(bench: FrontendBench) -> None:
    """The fd offset says where in the file the mapping begins."""
    bench.shared_memory()
    bench.accepted(B.SHMEM_MAP, Mmap(0, 3 * PAGE, PAGE, 2 * PAGE, MAP_RW), fds=[bench.file(5)])


@FRONT_END.rule(MAP, protocol=MAPPED, queues=1)
def a_mapping_may_begin_beyond_4_gib_of_the_file(bench: FrontendBench) -> None:
    """The fd offset has 64 bits."""
    bench.shared_memory()
    file = bench.keep(sparse_file(FAR + PAGE, seal=True))
    bench.accepted(B.SHMEM_MAP, Mmap(0, FAR, 0, PAGE, MAP_RW), fds=[file])


@FRONT_END.rule(MAP, protocol=MAPPED, queues=1)
def a_file_may_be_mapped_twice(bench: FrontendBench) -> None:
    """The same pages may be seen at two places."""
    bench.shared_memory()
    file = bench.file()
    bench.maps(0, fd=file)
    bench.maps(PAGE, fd=file)


@FRONT_END.rule(MAP, protocol=MAPPED, queues=1)
def the_same_range_of_two_regions_can_be_mapped(bench: FrontendBench) -> None:
    """Each region has offsets of its own: what is mapped in one is no obstacle in another."""
    bench.shared_memory()
    bench.maps(PAGE, shmid=0)
    bench.maps(PAGE, shmid=1)


@FRONT_END.rule(MAP, protocol=MAPPED, queues=1)
def the_back_end_may_close_its_fd_at_once(bench: FrontendBench) -> None:
    """The fd travels: what the back-end does with its own after that is no matter, nor that the file has no name."""
    bench.shared_memory()
    with fd_kinds.on_disk() as file:
        bench.channel.request(B.SHMEM_MAP, Mmap(0, 0, 0, PAGE, MAP_RW), fds=[file], flags=VERSION | NEED_REPLY)
    if status := bench.acknowledgement(B.SHMEM_MAP):
        raise Deviation("SHMEM_MAP accepted", f"status {status:#x}")


@FRONT_END.rule("MMAP request", level=Level.ADVICE, protocol=MAPPED, queues=1)
def padding_means_nothing(bench: FrontendBench) -> None:
    """The seven bytes behind the shmid are padding: nobody has to send zeros there."""
    bench.shared_memory()
    body = bytearray(Mmap(0, 0, 0, PAGE, MAP_RW).pack())
    body[1:8] = b"\xff" * 7
    bench.accepted(B.SHMEM_MAP, bytes(body), fds=[bench.file()])


@FRONT_END.rule(MAP, protocol=MAPPED, queues=1)
def a_mapping_is_made_without_acknowledgement(bench: FrontendBench) -> None:
    """Without need_reply a mapping is made in silence: the range is taken afterwards."""
    bench.shared_memory()
    bench.channel.request(B.SHMEM_MAP, Mmap(0, 0, 0, PAGE, MAP_RW), fds=[bench.file()])
    bench.refuses(0)
    bench.unmaps(0)


@FRONT_END.rule("VHOST_USER_PROTOCOL_F_REPLY_ACK", protocol=MAPPED, queues=1)
def a_refusal_is_silent_without_need_reply(bench: FrontendBench) -> None:
    """A mapping that is refused without need_reply has no answer: what comes next answers the next."""
    bench.shared_memory()
    bench.channel.request(B.SHMEM_MAP, Mmap(0, 0, REGION, PAGE, MAP_RW), fds=[bench.file()])
    bench.refuses_unmap(0)


@FRONT_END.rule("VHOST_USER_PROTOCOL_F_REPLY_ACK", protocol=MAPPED, queues=1)
def a_burst_is_acknowledged_in_order(bench: FrontendBench) -> None:
    """Requests are acknowledged one by one in the order in which they came: 64 mappings, every fourth of them refused."""
    bench.shared_memory()
    for at in range(BURST):
        place = REGION if at % 4 == 3 else at * PAGE
        body = Mmap(0, 0, place, PAGE, MAP_RW)
        bench.channel.send(message(B.SHMEM_MAP, body, flags=VERSION | NEED_REPLY), [bench.file()])
    for at in range(BURST):
        status = bench.acknowledgement(B.SHMEM_MAP)
        if status is None or bool(status) is not (at % 4 == 3):
            wanted = "refused" if at % 4 == 3 else "accepted"
            raise Deviation(f"mapping {at} of {BURST} {wanted}", "the end" if status is None else f"status {status:#x}")


@FRONT_END.rule("VHOST_USER_PROTOCOL_F_REPLY_ACK", protocol=MAPPED, queues=1)
def mappings_and_unmappings_are_acknowledged_in_order(bench: FrontendBench) -> None:
    """What was sent together is done in its order: map, unmap, map again, each acknowledged with its own number."""
    bench.shared_memory()
    body = Mmap(0, 0, 0, PAGE, MAP_RW)
    order = [B.SHMEM_MAP, B.SHMEM_UNMAP] * 8
    for request in order:
        fds = [bench.file()] if request is B.SHMEM_MAP else []
        bench.channel.request(request, body, fds=fds, flags=VERSION | NEED_REPLY)
    for request in order:
        if status := bench.acknowledgement(request):
            raise Deviation(f"{request.name} accepted", f"status {status:#x}")


@FRONT_END.rule(MAP, level=Level.ADVICE, protocol=MAPPED, queues=1)
def the_acknowledgement_does_not_wait_for_the_main_channel(bench: FrontendBench) -> None:
    """Who tells of a mapping as memory does so after the answer: a back-end with one thread waits for that first."""
    bench.shared_memory()
    bench.come_to_rest()
    bench.channel.request(B.SHMEM_MAP, Mmap(0, 0, 0, PAGE, MAP_RW), fds=[bench.file()], flags=VERSION | NEED_REPLY)
    if status := bench.acknowledgement(B.SHMEM_MAP, serve=False):
        raise Deviation("SHMEM_MAP accepted", f"status {status:#x}")


@FRONT_END.rule(MAP, level=Level.ADVICE, protocol=MAPPED, queues=1)
def several_hundred_mappings_are_made_or_refused(bench: FrontendBench) -> None:
    """A front-end has room for so many mappings: those beyond are refused, and what is there stays."""
    bench.regions = {0: 1 << 23}
    bench.shared_memory()
    file, made = bench.keep(memory_file(1)), 0
    for at in range(600):
        status = bench.ask(B.SHMEM_MAP, Mmap(0, 0, 2 * at * PAGE, PAGE, MAP_RW), fds=[file])
        if status is None:
            raise Deviation("a status for each mapping", f"the end after {made} of them")
        if status:
            break
        made += 1
    if not made:
        raise Deviation("room for a mapping", "status 1 for the first")
    bench.refuses(0)
    bench.unmaps(0)
