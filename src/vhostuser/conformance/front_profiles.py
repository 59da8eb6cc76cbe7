"""Front-ends as they are: which rules a peer of that name does not keep, and why, so that a change of it is seen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from .profile_rows import rows
from .profiles import SPEC, STRICT

_FLAGS: Final = "it looks neither at the version nor at the other flags of a back-end's request"
_SIZES: Final = "it takes as much of a payload as it needs, and skips or imagines the rest"
_UNAGREED: Final = "it looks not at what was negotiated, but at what it can do"
_ANY: Final = "it acknowledges each bit that it knows, without what that requires"
_SHMEM_REPLY: Final = "an error of GET_SHMEM_CONFIG is not passed on: the device goes on without regions"
_VUB: Final = "a device that fails at GET_SHMEM_CONFIG aborts QEMU: vub_get_features: assertion failed: (backend_features)"
_EVENTFD: Final = "a back-end's end while the device is not started aborts QEMU: memory_region_del_eventfd"
_POWER: Final = "the sizes of all regions have to be a power of two together, else pci_register_bar aborts"
_CAPS: Final = "a fourth region has no room in the PCI configuration space, which aborts QEMU"
_COUNT: Final = "num_regions is how many of the sizes that are not 0 it takes; nothing checks it against them"
_PAGES: Final = "only fd_offset is held to whole pages, shm_offset and len are not"
_NOT_RUNNING: Final = "K1: a mapping while the device is not started is a NULL pointer"

QEMU_11_1: Final[Mapping[str, str]] = {
    "no_acknowledgement_comes_where_none_was_agreed_on": "it acknowledges whatever has need_reply set",
    "adding_a_shared_object_is_refused_if_not_negotiated": _UNAGREED,
    "an_iotlb_miss_is_refused_if_not_negotiated": _UNAGREED,
    "fs_map_is_refused": "request 6 is SHARED_OBJECT_ADD, taken whatever was negotiated and of whatever size",
    "crosvms_first_map_is_refused": "request 6 is SHARED_OBJECT_ADD, taken whatever was negotiated and of whatever size",
    "a_back_end_request_of_version_0_is_not_obeyed": _FLAGS,
    "a_back_end_request_of_version_2_is_not_obeyed": _FLAGS,
    "a_back_end_request_of_version_3_is_not_obeyed": _FLAGS,
    "a_back_end_request_with_the_reply_flag_is_not_obeyed": _FLAGS,
    "a_back_end_request_with_flag_4_is_not_obeyed": _FLAGS,
    "a_back_end_request_with_flag_31_is_not_obeyed": _FLAGS,
    "a_mapping_with_32_bytes_is_refused": _SIZES,
    "a_mapping_with_39_bytes_is_refused": _SIZES,
    "a_mapping_with_41_bytes_is_refused": _SIZES,
    "a_mapping_with_48_bytes_is_refused": _SIZES,
    "unmapping_with_39_bytes_is_refused": _SIZES,
    "unmapping_with_41_bytes_is_refused": _SIZES,
    "an_object_is_asked_for_by_its_uuid": "GET_SHARED_OBJECT has no payload",
    "the_fd_of_an_object_comes_with_the_answer": "the fd is set on the character device of the main channel, and lost",
    "an_in_band_call_is_taken": "it acknowledges INBAND_NOTIFICATIONS, and has none",
    "shmem_is_not_taken_without_the_back_end_channel": _ANY,
    "inband_notifications_are_not_taken_without_reply_ack": _ANY,
    "backend_send_fd_is_not_taken_without_the_back_end_channel": _ANY,
    "a_reply_to_set_backend_req_fd_with_4_bytes_ends_the_connection": "an acknowledgement may have any size",
    "a_reply_to_get_shmem_config_with_the_number_of_another_request_ends_the_connection": _SHMEM_REPLY,
    "a_reply_to_get_shmem_config_with_16_bytes_ends_the_connection": _SHMEM_REPLY,
    "a_reply_to_get_shmem_config_with_2064_bytes_ends_the_connection": _VUB,
    "a_reply_that_nobody_asked_for_ends_the_connection": "it reads when it has asked something, and not before",
    "a_back_end_that_goes_while_a_ring_is_started_is_survived": _EVENTFD,
    "a_region_may_be_three_pages": _POWER,
    "regions_may_be_other_sizes": _POWER,
    "regions_may_be_four_regions": _CAPS,
    "regions_may_be_256_regions": _CAPS,
    "regions_of_half_of_all_addresses_are_not_taken": "a size of 2^63 is a power of two, and is taken",
    "regions_of_nearly_all_addresses_are_not_taken": _POWER,
    "regions_of_too_small_a_count_are_not_taken": _COUNT,
    "regions_of_a_count_of_0_are_not_taken": _COUNT,
    "regions_of_too_great_a_count_are_not_taken": _COUNT,
    "a_mapping_before_the_rings_start_is_survived": _NOT_RUNNING,
    "an_unmapping_before_the_rings_start_is_survived": _NOT_RUNNING,
    "a_mapping_is_answered_while_the_front_end_waits": "it waits for an acknowledgement with its main loop stopped",
    "mappings_are_gone_after_a_reset": "K3: with memory slots a live mapping at a reset is a NULL pointer",
    "a_range_is_free_after_a_reset": "K3: with memory slots a live mapping at a reset is a NULL pointer",
    "a_stop_asks_for_rings_that_were_started": "K3: with memory slots a live mapping at a reset is a NULL pointer",
    "a_file_open_for_reading_can_be_mapped_read_only": "it maps for reading and writing whatever the flags say",
    "several_hundred_mappings_are_made_or_refused": "K4: the 513th memory region aborts QEMU",
    "a_mapping_of_an_offset_of_1_is_refused": _PAGES,
    "a_mapping_of_an_offset_of_half_a_page_is_refused": _PAGES,
    "a_mapping_of_an_offset_of_512_is_refused": _PAGES,
    "a_mapping_of_one_byte_is_refused": _PAGES,
    "a_mapping_of_a_page_and_a_half_is_refused": _PAGES,
    "a_mapping_of_a_page_and_a_byte_is_refused": _PAGES,
    "a_mapping_with_two_files_is_refused": "the first fd is taken, and the rest closed",
    "a_mapping_with_eight_files_is_refused": "the first fd is taken, and the rest closed",
    "a_mapping_with_64_files_is_refused": "the first fd is taken, and the rest closed",
    "a_mapping_with_flags_2_is_refused": "it looks at bit 0 of the flags only",
    "a_mapping_with_flags_3_is_refused": "it looks at bit 0 of the flags only",
    "a_mapping_with_flags_2_63_is_refused": "it looks at bit 0 of the flags only",
    "a_mapping_with_flags_all_bits_is_refused": "it looks at bit 0 of the flags only",
    "a_mapping_of_an_empty_file_is_refused": "a size of 0 is taken for a device's, and not checked",
}
"""QEMU 11.1.3's vhost-user-test-device-pci with a driver that starts it (facts of a run; K1 to K6 are known crashes)."""
LIBBLKIO_1_5: Final[Mapping[str, str]] = {
    "a_front_end_gets_along_without_acknowledgements": "it needs REPLY_ACK, and says so by ending the connection",
    "regions_are_whole_pages": "its first region has as many bytes as its rings need",
}
"""libblkio 1.5's virtio-blk-vhost-user."""
_REPLIES: Final = tuple(
    f"a_reply_to_{what}_ends_the_connection"
    for what in (
        *("get_features_with_need_reply", "get_features_with_no_payload", "get_features_with_4_bytes"),
        *("get_features_with_16_bytes", "get_protocol_features_with_4_bytes", "get_queue_num_with_16_bytes"),
        *("set_backend_req_fd_with_4_bytes", "get_shmem_config_with_16_bytes"),
    )
)
_CONFIGURATIONS: Final = tuple(
    f"regions_of_{what}_not_taken"
    for what in (
        *("100_bytes_are", "a_page_and_a_byte_are", "a_page_and_a_half_are", "too_small_a_count_are"),
        *("a_count_of_0_are", "too_great_a_count_are", "a_count_of_257_are", "the_greatest_count_are"),
    )
)
RUST_VHOST_0_17: Final[Mapping[str, str]] = rows(
    {
        "it wants an fd with SHARED_OBJECT_LOOKUP, and gives none with the answer": (
            *("a_lookup_needs_no_fd", "a_lookup_of_an_unknown_object_finds_nothing"),
            *("a_lookup_with_need_reply_has_one_answer", "an_object_is_asked_for_by_its_uuid"),
            *("the_fd_of_an_object_comes_with_the_answer", "an_object_that_its_back_end_does_not_give_is_not_found"),
        ),
        "a request that makes no sense by itself ends the back-end channel": (
            *("the_channel_outlives_an_unknown_request", "a_refused_mapping_leaves_its_range_free"),
            *("unmapping_no_bytes_is_refused", "unmapping_a_range_that_wraps_is_refused"),
        ),
        "a payload that comes in pieces ends the back-end channel": ("a_back_end_request_may_come_byte_by_byte",),
        "neither the size of a reply nor need_reply in it is looked at": _REPLIES,
        "GET_SHMEM_CONFIG's payload is always valid": _CONFIGURATIONS,
    }
)
"""A front-end on rust-vmm's vhost 0.17 that keeps the book of its mappings: `tests/matrix/rust`."""
FRONT_END_PROFILES: Final[dict[str, Mapping[str, str]]] = {
    SPEC: {},
    STRICT: {},
    "qemu-11.1": QEMU_11_1,
    "libblkio-1.5": LIBBLKIO_1_5,
    "rust-vhost-0.17": RUST_VHOST_0_17,
}
