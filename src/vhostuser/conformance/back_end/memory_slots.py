"""Rules about memory regions that come and go one by one."""

from __future__ import annotations

from typing import Final

from ...protocol.numbers import PAGE, FrontendRequest, ProtocolFeature
from ...protocol.payloads import SingleRegion
from ...testing.raw_frontend import MEMORY
from ..backend_bench import BACK_END, BackendBench
from ..family import declare
from ..outcome import Deviation
from ..rule import Level

F, Q = ProtocolFeature, FrontendRequest
NEEDS: Final = (F.CONFIGURE_MEM_SLOTS, F.REPLY_ACK)
AT: Final = 4 * MEMORY
REGION: Final = SingleRegion(AT, MEMORY, AT, 0)
MANY: Final = 64


@BACK_END.rule("VHOST_USER_GET_MAX_MEM_SLOTS", protocol=[F.CONFIGURE_MEM_SLOTS], level=Level.SHOULD)
def there_is_a_memory_slot(bench: BackendBench) -> None:
    """GET_MAX_MEM_SLOTS tells how many regions there may be: at least one."""
    bench.agree()
    if not bench.value(Q.GET_MAX_MEM_SLOTS):
        raise Deviation("one memory slot or more", "0")


@BACK_END.rule("VHOST_USER_ADD_MEM_REG", protocol=NEEDS)
def a_region_may_be_added(bench: BackendBench) -> None:
    """ADD_MEM_REG adds a region, its fd coming with it."""
    bench.agree()
    _add(bench, REGION)


@BACK_END.rule("VHOST_USER_ADD_MEM_REG", protocol=NEEDS)
def as_many_regions_may_be_added_as_there_are_slots(bench: BackendBench) -> None:
    """A back-end takes as many regions as GET_MAX_MEM_SLOTS said; 64 are tried at most."""
    bench.agree()
    for number in range(min(bench.value(Q.GET_MAX_MEM_SLOTS), MANY)):
        _add(bench, SingleRegion(number * MEMORY, MEMORY, number * MEMORY, 0))


OVERLAPS: Final = {
    "equal_to": (AT, MEMORY),
    "that_begins_in": (AT + PAGE, MEMORY),
    "that_ends_in": (AT - PAGE, MEMORY),
    "within": (AT + PAGE, PAGE),
    "around": (AT - PAGE, MEMORY + 2 * PAGE),
}


def _overlap(word: str, at: int, size: int) -> None:
    def check(bench: BackendBench) -> None:
        bench.agree()
        _add(bench, REGION)
        bench.refused(Q.ADD_MEM_REG, SingleRegion(at, size, 1 << 40, 0), fds=[bench.memory_file(2 * MEMORY)])

    text = f"A region has to be removed before one {word.replace('_', ' ')} it is added: it overlaps."
    name = f"a_region_{word}_another_is_refused"
    declare(BACK_END, "VHOST_USER_ADD_MEM_REG", name, text, check, level=Level.SHOULD, protocol=NEEDS)


for _word, (_at, _size) in OVERLAPS.items():
    _overlap(_word, _at, _size)


@BACK_END.rule("VHOST_USER_ADD_MEM_REG", protocol=NEEDS)
def regions_may_touch(bench: BackendBench) -> None:
    """Regions that lie side by side do not overlap."""
    bench.agree()
    for at in (AT, AT - MEMORY, AT + MEMORY):
        _add(bench, SingleRegion(at, MEMORY, at, 0))


@BACK_END.rule("VHOST_USER_REM_MEM_REG", protocol=NEEDS)
def a_region_may_be_removed_and_added_again(bench: BackendBench) -> None:
    """REM_MEM_REG removes a region, which may be added again."""
    bench.agree()
    for _ in range(2):
        _add(bench, REGION)
        bench.accepted(Q.REM_MEM_REG, REGION)


@BACK_END.rule("VHOST_USER_REM_MEM_REG", protocol=NEEDS)
def the_mmap_offset_of_a_region_to_remove_is_ignored(bench: BackendBench) -> None:
    """A region to remove is identified by guest address, user address and size; the mmap offset is ignored."""
    bench.agree()
    _add(bench, REGION)
    bench.accepted(Q.REM_MEM_REG, SingleRegion(AT, MEMORY, AT, PAGE))


@BACK_END.rule("VHOST_USER_REM_MEM_REG", protocol=NEEDS, level=Level.ADVICE)
def an_fd_with_a_region_to_remove_is_tolerated(bench: BackendBench) -> None:
    """A front-end may pass an fd with REM_MEM_REG, as older ones did: it is closed and ignored."""
    bench.agree()
    _add(bench, REGION)
    bench.accepted(Q.REM_MEM_REG, REGION, fds=[bench.eventfd()])


UNKNOWN: Final = {
    "that_is_not_there": SingleRegion(0, MEMORY, 0, 0),
    "of_another_size": SingleRegion(AT, MEMORY - PAGE, AT, 0),
    "of_another_user_address": SingleRegion(AT, MEMORY, AT + PAGE, 0),
}


def _unknown(word: str, region: SingleRegion) -> None:
    def check(bench: BackendBench) -> None:
        bench.agree()
        _add(bench, REGION)
        bench.refused(Q.REM_MEM_REG, region)

    text = f"A region {word.replace('_', ' ')} can't be removed."
    declare(
        BACK_END,
        "VHOST_USER_REM_MEM_REG",
        f"to_remove_a_region_{word}_is_refused",
        text,
        check,
        level=Level.SHOULD,
        protocol=NEEDS,
    )


for _word, _region in UNKNOWN.items():
    _unknown(_word, _region)


@BACK_END.rule("VHOST_USER_ADD_MEM_REG", protocol=NEEDS, level=Level.SHOULD)
def an_empty_region_is_refused(bench: BackendBench) -> None:
    """A region has a size."""
    bench.agree()
    bench.refused(Q.ADD_MEM_REG, SingleRegion(AT, 0, AT, 0), fds=[bench.memory_file()])


@BACK_END.rule("VHOST_USER_ADD_MEM_REG", protocol=NEEDS, level=Level.SHOULD)
def a_region_that_is_refused_leaves_the_connection_in_step(bench: BackendBench) -> None:
    """A region that can't be added is refused by a status, and the connection goes on."""
    bench.agree()
    _add(bench, REGION)
    bench.refused_in_step(Q.ADD_MEM_REG, REGION, fds=[bench.memory_file()])
    bench.accepted(Q.REM_MEM_REG, REGION)


def _add(bench: BackendBench, region: SingleRegion) -> None:
    bench.accepted(Q.ADD_MEM_REG, region, fds=[bench.memory_file()])
