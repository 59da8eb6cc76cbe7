"""The sections that rules name are headings, or requests, of the specifications."""

from __future__ import annotations

from typing import Final

import pytest

from vhostuser.conformance.back_end import all_rules  # noqa: F401  # the rules
from vhostuser.conformance.backend_bench import BACK_END
from vhostuser.conformance.check_frontend import front_end_rules
from vhostuser.conformance.rule import Level
from vhostuser.conformance.sections import VIRTIO_PREFIX, address_of, heading_of
from vhostuser.protocol.numbers import BackendRequest, FrontendRequest

from . import specification

VHOST_USER: Final = {
    *("Header", "Payload", "Memory region description", "Multiple Memory regions description", "MMAP request"),
    *("VIRTIO Shared Memory Region configuration", "Communication", "Ring states", "Suspended device state"),
    *("Multiple queue support", "Back-end communication", "In-band notifications", "Migration", "Protocol features"),
    *("Front-end message types", "Back-end message types", "VHOST_USER_PROTOCOL_F_REPLY_ACK"),
    *(f"VHOST_USER_{request.name}" for request in FrontendRequest),
    *(f"VHOST_USER_BACKEND_{request.name}" for request in BackendRequest),
}
"""Headings of the vhost-user specification of QEMU 11.1, and the requests that it describes."""
VIRTIO: Final = {
    *("VIRTIO: Split Virtqueues", "VIRTIO: Packed Virtqueues", "VIRTIO: Indirect Descriptors"),
    *("VIRTIO: Used Buffer Notification Suppression", "VIRTIO: Available Buffer Notification Suppression"),
    *("VIRTIO: Message Framing", "VIRTIO: The Virtqueue Available Ring"),
}
"""Headings of VIRTIO, the same in 1.2 and in 1.4 (of 8 April 2026)."""
RULES: Final = [*BACK_END, *front_end_rules()]


def test_each_section_is_a_heading() -> None:
    assert {rule.section for rule in RULES} <= VHOST_USER | VIRTIO


@pytest.fixture(scope="module")
def page() -> str:
    """The text of the specification, if it was fetched."""
    found = specification.text()
    if found is None:
        pytest.skip(f"no text of the specification in {specification.folder()}: run `{specification.COMMAND}`")
    return found


def test_each_section_of_vhost_user_is_in_its_text(page: str) -> None:
    known = specification.headings(page) | specification.requests(page)
    sections = {rule.section for rule in RULES if not rule.section.startswith(VIRTIO_PREFIX)}
    assert sections - known == set(), specification.version()
    assert VHOST_USER - known == set(), specification.version()


def test_each_address_is_a_section_of_the_page(page: str) -> None:
    sections = {rule.section for rule in RULES if not rule.section.startswith(VIRTIO_PREFIX)}
    assert {address_of(section).partition("#")[2] for section in sections} <= specification.anchors(page)
    assert {heading_of(section) for section in sections} <= specification.headings(page)


def test_requests_of_the_text_are_known(page: str) -> None:
    ours = {f"VHOST_USER_{each.name}" for each in FrontendRequest}
    ours |= {f"VHOST_USER_BACKEND_{each.name}" for each in BackendRequest}
    assert specification.requests(page) - ours == set(), specification.version()


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
