"""Wrong about memory: tables, slots, the log, the inflight area."""

from __future__ import annotations

import os
from collections.abc import Sequence

from vhostuser.conformance.back_end import areas, memory_slots, memory_table
from vhostuser.protocol.numbers import FrontendRequest
from vhostuser.trace.event import Message
from vhostuser.trace.verdict import Verdict

from ..wrong import Wrong, answering_unasked, in_reply, leaving_at, no_to, put, replying, silent_to, then_no_to, yes_to

Q = FrontendRequest


def dirty() -> Wrong:
    """An inflight area is made with something in it."""

    def alter(sent: Message, fds: Sequence[int]) -> Verdict | None:
        if fds and not sent.asks and sent.request == Q.GET_INFLIGHT_FD:
            os.pwrite(fds[0], b"something", 0)
        return None

    return Wrong(lambda: alter)


WRONG: dict[str, Wrong] = {
    **{f"a_memory_table_{end}_is_refused": yes_to(Q.SET_MEM_TABLE) for end, *_ in memory_table.REFUSED},
    **{f"memory_that_is_{word}_is_refused": yes_to(Q.SET_MEM_TABLE) for word in memory_table.KINDS},
    "a_memory_table_of_eight_regions_is_taken": no_to(Q.SET_MEM_TABLE),
    "regions_may_be_parts_of_one_file": no_to(Q.SET_MEM_TABLE),
    "regions_may_come_in_any_order": no_to(Q.SET_MEM_TABLE),
    "user_addresses_need_not_be_guest_addresses": no_to(Q.SET_MEM_TABLE),
    "a_memory_table_takes_the_place_of_the_one_before": then_no_to(Q.SET_MEM_TABLE),
    "a_memory_table_that_is_refused_leaves_the_connection_in_step": leaving_at(Q.SET_MEM_TABLE),
    "there_is_a_memory_slot": replying(Q.GET_MAX_MEM_SLOTS, bytes(8)),
    "a_region_may_be_added": no_to(Q.ADD_MEM_REG),
    "as_many_regions_may_be_added_as_there_are_slots": then_no_to(Q.ADD_MEM_REG, 40),
    **{f"a_region_{word}_another_is_refused": yes_to(Q.ADD_MEM_REG) for word in memory_slots.OVERLAPS},
    "regions_may_touch": then_no_to(Q.ADD_MEM_REG, 2),
    "a_region_may_be_removed_and_added_again": then_no_to(Q.ADD_MEM_REG),
    "the_mmap_offset_of_a_region_to_remove_is_ignored": no_to(Q.REM_MEM_REG),
    "an_fd_with_a_region_to_remove_is_tolerated": no_to(Q.REM_MEM_REG),
    **{f"to_remove_a_region_{word}_is_refused": yes_to(Q.REM_MEM_REG) for word in memory_slots.UNKNOWN},
    "an_empty_region_is_refused": yes_to(Q.ADD_MEM_REG),
    "a_region_that_is_refused_leaves_the_connection_in_step": yes_to(Q.ADD_MEM_REG),
    "an_inflight_area_comes_with_an_fd": replying(Q.GET_INFLIGHT_FD, bytes(24)),
    "an_inflight_area_has_a_size": in_reply(Q.GET_INFLIGHT_FD, put(0, 0)),
    "an_inflight_area_lies_in_its_file": in_reply(Q.GET_INFLIGHT_FD, put(0, 1 << 30)),
    "an_inflight_area_begins_as_zeros": dirty(),
    "an_inflight_area_may_be_set_as_it_was_got": no_to(Q.SET_INFLIGHT_FD),
    **{f"an_inflight_area_{word}_is_refused": yes_to(Q.SET_INFLIGHT_FD) for word in areas.WRONG_AREAS},
    "a_log_is_answered_by_a_reply_of_its_own": silent_to(Q.SET_LOG_BASE),
    "a_log_is_answered_once": answering_unasked(Q.SET_LOG_BASE),
    "an_fd_for_the_log_is_taken": answering_unasked(Q.SET_LOG_FD),
}
"""By the rule's name."""
