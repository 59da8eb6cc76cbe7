"""Wrong about rings that are set up, the configuration space and the status."""

from __future__ import annotations

from vhostuser.conformance.back_end import config_space, device_status, ring_setup
from vhostuser.protocol.numbers import FrontendRequest
from vhostuser.protocol.payloads import Config

from ..wrong import Wrong, in_reply, leaving_at, no_to, put, replying, then_no_to, yes_to

Q = FrontendRequest

WRONG: dict[str, Wrong] = {
    **{
        ring_setup.state_rule(request, word): yes_to(request)
        for word in ring_setup.INDICES
        for request in (*ring_setup.STATES, Q.SET_VRING_ADDR)
    },
    **{ring_setup.state_rule(Q.GET_VRING_BASE, word): replying(Q.GET_VRING_BASE, bytes(8)) for word in ring_setup.INDICES},
    **{
        ring_setup.state_rule(request, word): yes_to(request)
        for word in ring_setup.FILE_INDICES
        for request in ring_setup.FILES
    },
    **{f"a_ring_of_{word}_entries_is_refused": yes_to(Q.SET_VRING_NUM) for word in ring_setup.SIZES},
    **{f"a_misaligned_{word}_is_refused": yes_to(Q.SET_VRING_ADDR) for word in ring_setup.MISALIGNED},
    "a_base_of_more_than_sixteen_bits_is_refused": yes_to(Q.SET_VRING_BASE),
    "to_enable_a_ring_by_2_is_refused": yes_to(Q.SET_VRING_ENABLE),
    "the_size_of_every_ring_may_be_set": then_no_to(Q.SET_VRING_NUM),
    "a_ring_that_stops_says_its_index": in_reply(Q.GET_VRING_BASE, put(0, 1, 4)),
    "a_base_that_was_set_is_the_base_that_is_got": in_reply(Q.GET_VRING_BASE, put(4, 0, 4)),
    "the_configuration_comes_in_the_size_that_was_asked_for": in_reply(Q.GET_CONFIG, lambda data: data + bytes(4)),
    "the_configuration_says_where_it_is_from": in_reply(Q.GET_CONFIG, put(0, 0, 4)),
    "a_part_of_the_configuration_is_a_part_of_the_whole": in_reply(Q.GET_CONFIG, lambda data: data[:12] + data[12:][::-1]),
    **{
        f"a_read_of_the_configuration_that_{word}_is_refused": replying(
            Q.GET_CONFIG, Config(offset, size, 0, bytes(size)).pack()
        )
        for word, (offset, size) in config_space.BEYOND.items()
    },
    "a_read_of_the_configuration_that_is_refused_leaves_the_connection_in_step": leaving_at(Q.GET_CONFIG),
    **{
        f"a_write_to_the_configuration_that_says_{word}_than_it_has_is_refused": yes_to(Q.SET_CONFIG)
        for word in config_space.SIZES
    },
    "a_write_behind_the_end_of_the_configuration_is_refused": yes_to(Q.SET_CONFIG),
    **{
        f"a_status_of_{word}_is_told_as_it_was_set": in_reply(Q.GET_STATUS, put(0, 128, 1))
        for word in device_status.STATUSES
    },
    "the_status_begins_at_zero": replying(Q.GET_STATUS, put(0, 1)(bytes(8))),
    "status_zero_resets_the_device": replying(Q.GET_STATUS, put(0, 3)(bytes(8))),
    "a_status_of_more_than_eight_bits_is_refused": yes_to(Q.SET_STATUS),
    "a_device_is_reset_before_anything_is_set_up": no_to(Q.RESET_DEVICE),
    "rings_may_be_set_up_again_after_a_reset": then_no_to(Q.SET_VRING_KICK),
    "a_reset_sets_the_status_to_zero": yes_to(Q.RESET_DEVICE),
    "a_ring_that_was_reset_is_stopped": yes_to(Q.RESET_DEVICE),
}
"""By the rule's name."""
