"""Back-ends on the crates of rust-vmm as they are: virtiofsd 1.14 and vhost-device-vsock 0.3."""

from __future__ import annotations

from typing import Final

from .profile_rows import rows as _rows

RUST_VMM: Final = _rows(
    {
        "regions have to be sorted": ("regions_may_come_in_any_order",),
        "bases are cut to 16 bits": ("a_base_of_more_than_sixteen_bits_is_refused",),
        "up to 32 regions are taken": ("a_memory_table_of_nine_regions_is_refused",),
        "a payload that comes in pieces ends the connection": ("an_answer_does_not_come_before_the_whole_request",),
        "what is refused ends the connection": ("a_memory_table_that_is_refused_leaves_the_connection_in_step",),
        "an unknown request ends the connection": (
            "an_unknown_request_that_asks_for_nothing_is_not_answered",
            "an_unknown_request_leaves_the_connection_in_step",
        ),
        "protocol features that were not offered are taken": ("protocol_features_that_were_not_offered_are_refused",),
        "sizes of rings are held to their limit alone": ("a_ring_of_100_entries_is_refused",),
        "what waits in a ring is found at the first kick": ("a_ring_needs_no_kick_to_start",),
        "NO_INTERRUPT is not looked at without EVENT_IDX": ("the_driver_is_not_notified_if_it_does_not_want_to_be",),
    }
)
"""What neither of them keeps."""

VIRTIOFSD: Final = _rows(
    {
        "what is refused ends the connection": ("a_region_that_is_refused_leaves_the_connection_in_step",),
        "a broken ring ends the connection": (
            "a_broken_ring_leaves_the_others",
            "a_broken_ring_may_be_set_up_anew",
            "a_broken_ring_leaves_the_connection",
        ),
        "a region to remove is known by its guest address and size": (
            "to_remove_a_region_of_another_user_address_is_refused",
        ),
        "an fd with REM_MEM_REG ends the connection": ("an_fd_with_a_region_to_remove_is_tolerated",),
        "SET_LOG_FD is not known": ("an_fd_for_the_log_is_taken",),
        "the used ring is logged at its own address, whatever was said": (
            "a_used_ring_is_marked_at_the_address_for_the_log",
            "nothing_is_marked_without_log_all",
        ),
    }
)
"""What virtiofsd 1.14 does not keep besides."""

VSOCK: Final = _rows(
    {
        "what is refused ends the connection": (
            "a_read_of_the_configuration_that_is_refused_leaves_the_connection_in_step",
        ),
        "a header in more than one buffer is not understood": ("requests_may_be_in_pieces_in_a_split_ring",),
        "a broken ring is not told of": ("a_broken_ring_is_told_of",),
    }
)
"""What vhost-device-vsock 0.3 does not keep besides."""
