"""The sections that rules name are headings, or requests, of the specifications."""

from __future__ import annotations

from typing import Final

import pytest

from vhostuser.conformance.back_end import all_rules  # noqa: F401  # the rules
from vhostuser.conformance.backend_bench import BACK_END
from vhostuser.conformance.check_frontend import front_end_rules
from vhostuser.conformance.rule import Level
from vhostuser.protocol.numbers import BackendRequest, FrontendRequest

VHOST_USER: Final = {
    *("Header", "Payload", "Memory region description", "Multiple Memory regions description", "MMAP request"),
    *("VIRTIO Shared Memory Region configuration", "Communication", "Ring states", "Suspended device state"),
    *("Multiple queue support", "Back-end communication", "In-band notifications", "Protocol features"),
    *("Front-end message types", "Back-end message types", "VHOST_USER_PROTOCOL_F_REPLY_ACK"),
    *(f"VHOST_USER_{request.name}" for request in FrontendRequest),
    *(f"VHOST_USER_BACKEND_{request.name}" for request in BackendRequest),
}
"""Headings of the vhost-user specification of QEMU 11.1, and the requests that it describes."""
VIRTIO: Final = {
    *("VIRTIO: Split Virtqueues", "VIRTIO: Packed Virtqueues", "VIRTIO: Indirect Descriptors"),
    "VIRTIO: Used Buffer Notification Suppression",
}
RULES: Final = [*BACK_END, *front_end_rules()]


def test_each_section_is_a_heading() -> None:
    assert {rule.section for rule in RULES} <= VHOST_USER | VIRTIO


def test_forty_rules_and_more_are_about_shared_memory_regions() -> None:
    assert sum("shmem" in rule.check.__code__.co_filename or "SHMEM" in rule.section for rule in RULES) >= 40


UNBACKED: Final = {
    "an_inflight_area_begins_as_zeros",
    "the_configuration_says_where_it_is_from",
    "there_is_a_memory_slot",
    "a_payload_of_four_gigabytes_is_not_waited_for",
    "the_end_of_the_back_end_channel_is_survived",
    "a_kick_of_no_ring_is_refused",
    "regions_may_be_four_regions",
    "regions_may_be_256_regions",
    "a_region_may_be_4_gib",
    "the_slots_are_asked_for_before_a_region_is_added",
    "a_ring_is_enabled_that_was_set_up",
}
"""What no text asks for, though it is wise."""


@pytest.mark.parametrize("name", sorted(UNBACKED))
def test_what_no_text_asks_for_is_no_must(name: str) -> None:
    (rule,) = [rule for rule in RULES if rule.name == name]
    assert rule.level is not Level.MUST
