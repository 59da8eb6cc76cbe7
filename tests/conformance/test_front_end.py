"""Every rule for front-ends: ours keeps it, and one that breaks exactly this does not."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Final

import pytest

from vhostuser.conformance.check_frontend import check_one, front_end_rules, reach_of
from vhostuser.conformance.frontend_bench import FrontendBench, Reach
from vhostuser.conformance.outcome import Result
from vhostuser.conformance.rule import Rule
from vhostuser.conformance.scripted_backend import FEATURES, PROTOCOL
from vhostuser.protocol.numbers import BackendRequest, FrontendRequest, ProtocolFeature
from vhostuser.protocol.payloads import MemoryRegion, MemoryTable, VringAddr, VringState
from vhostuser.testing import memory_file, read_only
from vhostuser.testing.files import message
from vhostuser.trace.event import Message
from vhostuser.transport.fds import OwnedFd

from .fronts import (
    STEPS,
    Driven,
    Forgetful,
    Script,
    acknowledge,
    acknowledges_as,
    answers_all,
    answers_in_its_stead,
    answers_to,
    answers_twice,
    changes,
    ends_at,
    ends_at_a_refusal,
    hasty,
    inband,
    loses,
    number,
    restless,
    says,
    sharing,
    steady,
    stopping,
    twice,
    with_blocks,
    withholding,
)

F, Q, B = ProtocolFeature, FrontendRequest, BackendRequest
RULES: Final = list(front_end_rules())
NAMES: Final = [rule.name for rule in RULES]
REACH: Final = Reach(FEATURES, PROTOCOL, rings=1, asks=True)
SOON: Final = 0.3
"""Seconds until a wrong front-end counts as hung."""
LATE: Final = 30.0
"""Seconds that a wrong front-end has to do wrong."""
WITHOUT: Final = {name: STEPS.replace(name, "") for name in STEPS.split()}
RING_FIRST: Final = "owner features requests regions ring memory"
Make = Callable[[], Driven]


def script(**changed: object) -> Make:
    """A small front-end."""
    return lambda: Driven(Script(**changed))  # type: ignore[arg-type]


def ours(alter: Callable[[], object]) -> Make:
    """Ours, with something changed on the way."""
    return lambda: Driven(steady, alter)  # type: ignore[arg-type]


def dies() -> Driven:
    """Ours, which is said to have died."""
    return Driven(steady, death="killed by SIGSEGV")


def table(*regions: MemoryRegion) -> MemoryTable:
    return MemoryTable(regions)


def files(count: int = 1, make: Callable[[], OwnedFd] = lambda: memory_file(16)) -> Callable[[], list[OwnedFd]]:
    return lambda: [make() for _ in range(count)]


def short() -> OwnedFd:
    return memory_file(1)


def pipe_end() -> OwnedFd:
    read, write = os.pipe()
    os.close(write)
    return OwnedFd(read)


def reopened() -> OwnedFd:
    with memory_file(16) as fd:
        return read_only(fd)


def longer(sent: Message) -> bytes:
    """The same with four bytes more."""
    return message(sent.request, sent.payload + bytes(4), flags=sent.flags)


def unnamed(sent: Message) -> bytes:
    """The same without its payload."""
    return message(sent.request, b"", flags=sent.flags)


def shares(alter: Callable[[], object]) -> Make:
    """Ours with a table of shared objects, and something changed on the way."""
    return lambda: Driven(sharing, alter)  # type: ignore[arg-type]


R, M = MemoryRegion, 1 << 16
YES, NO = ours(says(0)), ours(says(1))
LAX: Final = script(lax=True)
CRASHES: Final = {
    name: dies
    for name in NAMES
    if name.endswith(("is_survived", "an_end_in_the_middle_of_a_reply_is_an_end"))
    or name in ("a_huge_region_is_taken_or_ends_in_good_order", "several_hundred_mappings_are_made_or_refused")
}
REFUSALS: Final = {name: YES for name in NAMES if "is_refused" in name or name.endswith("_is_not_mapped_for_writing")}
ACCEPTED: Final = {
    name: NO
    for name in NAMES
    if name.endswith(("_can_be_mapped", "can_be_mapped_read_only", "is_made", "is_taken", "acknowledged_in_order"))
    or name.startswith(("a_region_may_be", "regions_may_be", "a_mapping_may_begin"))
}
NOT_OBEYED: Final = {name: script(whole=True) for name in NAMES if name.endswith(("is_not_obeyed", "is_not_waited_for"))}
WRONG_REPLIES: Final = {name: LAX for name in NAMES if name.endswith("ends_the_connection")}
WRONG_REGIONS: Final = {name: LAX for name in NAMES if name.startswith("regions_of_")}
ASKED_TOO_MUCH: Final = {name: LAX for name in NAMES if name.endswith("is_not_taken_for_shmem")}

WRONG: Final[dict[str, Make]] = {
    **CRASHES,
    **REFUSALS,
    **ACCEPTED,
    **NOT_OBEYED,
    **WRONG_REPLIES,
    **WRONG_REGIONS,
    **ASKED_TOO_MUCH,
    **{name: ours(ends_at_a_refusal) for name in NAMES if name.startswith("the_channel_outlives")},
    "a_burst_is_acknowledged_in_order": YES,
    # the handshake
    "requests_have_version_1_and_no_reply_flag": script(flags=5),
    "requests_have_no_unknown_flags": script(flags=0x11),
    "requests_have_numbers_of_the_specification": script(first=(99,)),
    "payloads_are_those_of_their_requests": ours(changes(Q.SET_VRING_NUM, longer)),
    "fds_come_with_the_requests_that_take_them": script(files=files(2)),
    "protocol_features_are_asked_for_once_the_features_are_known": script(first=(Q.GET_PROTOCOL_FEATURES,)),
    "protocol_features_are_left_alone_where_they_are_not_offered": LAX,
    "rings_are_not_enabled_without_protocol_features": LAX,
    "acknowledged_features_were_offered": script(accepts=lambda offered: offered | 1 << 50),
    "acknowledged_protocol_features_were_offered": script(takes=lambda offered: offered | 1 << F.MQ),
    "unknown_protocol_features_are_not_acknowledged": script(takes=lambda offered: offered),
    "nothing_is_sent_that_was_not_agreed_on": script(first=(Q.GET_MAX_MEM_SLOTS,)),
    "nothing_is_sent_that_was_not_offered": script(takes=lambda offered: 0, steps="slots"),
    "need_reply_is_not_set_where_it_means_nothing": script(),
    "a_front_end_gets_along_without_acknowledgements": script(waits=True),
    "the_device_is_owned_once_and_before_its_rings_start": script(steps=WITHOUT["owner"]),
    "the_features_are_acknowledged_before_a_ring_starts": script(
        steps="owner requests regions memory ring features", ring="num base addr kick enable"
    ),
    "the_bit_of_the_protocol_features_is_acknowledged_where_they_are_used": script(accepts=lambda offered: 1 << 32),
    "get_vring_base_inflight_is_not_taken_without_inflight_shmfd": script(takes=lambda offered: offered),
    "shmem_is_not_taken_without_the_back_end_channel": script(takes=lambda offered: offered),
    "inband_notifications_are_not_taken_without_reply_ack": script(takes=lambda offered: offered),
    "backend_send_fd_is_not_taken_without_the_back_end_channel": script(takes=lambda offered: offered),
    "a_reply_may_come_byte_by_byte": script(),
    "a_reply_may_take_its_time": lambda: Driven(hasty),
    "unknown_features_are_no_reason_to_go": ours(answers_in_its_stead(Q.GET_FEATURES, bytes(3))),
    # memory
    "memory_is_shared_before_a_ring_starts": script(steps=RING_FIRST),
    "a_table_has_one_to_eight_regions": script(table=bytes(8), files=list),
    "regions_have_bytes_and_do_not_wrap": script(table=table(R(0, 0, 0, 0))),
    "regions_do_not_overlap": script(table=table(R(0, M, 0, 0), R(4096, M, M, 0)), files=files(2)),
    "user_addresses_are_apart": script(table=table(R(0, M, 0, 0), R(M, M, 4096, 0)), files=files(2)),
    "regions_lie_in_their_files": script(files=files(1, short)),
    "memory_is_of_what_can_be_mapped": script(files=files(1, pipe_end)),
    "memory_can_be_written": script(files=files(1, reopened)),
    "regions_are_whole_pages": script(table=table(R(100, M - 100, 0, 0))),
    "the_slots_are_asked_for_before_a_region_is_added": script(steps=STEPS.replace("ring", "added ring")),
    "no_more_regions_are_added_than_there_are_slots": script(steps=STEPS.replace("ring", "slots added ring")),
    "a_refused_memory_table_starts_no_ring": script(),
    # rings
    "a_ring_is_told_whole_before_it_starts": script(ring="num base kick addr enable"),
    "a_ring_is_kicked_once_it_has_started": script(),
    "one_ring_is_used_without_mq": script(many=True),
    "ring_sizes_are_those_that_virtio_allows": script(num=15),
    "ring_addresses_are_aligned": script(addresses=VringAddr(0, 0, 8, 512, 256, 0)),
    "rings_lie_in_shared_memory": script(addresses=VringAddr(0, 0, 0, 512, M, 0)),
    "a_base_is_an_index": script(base=1 << 16),
    "no_more_rings_are_used_than_there_are": script(index=2),
    "the_files_of_a_ring_have_no_unknown_bits": script(kick_bits=1 << 9),
    "the_files_of_a_ring_are_eventfds": script(kick=files(1, short)),
    "a_ring_has_an_fd_for_its_kicks": script(kick=list, kick_bits=1 << 8),
    "a_ring_is_enabled_by_1_and_disabled_by_0": script(enable=2),
    "a_ring_is_enabled_that_was_set_up": script(ring="enable num base addr call kick again"),
    "rings_are_stopped_by_asking_for_their_base": script(
        at_the_end=((Q.GET_VRING_BASE, VringState(1, 0)),),
    ),
    "a_stop_asks_for_rings_that_were_started": script(
        at_the_end=((Q.GET_VRING_BASE, VringState(0, 0)), (Q.GET_VRING_BASE, VringState(1, 0))),
    ),
    # the back-end channel
    "the_back_end_channel_is_one_end_of_a_connected_stream": script(channel=lambda: (None, [pipe_end()])),
    "the_back_end_channel_is_given_before_a_ring_starts": script(steps="owner features regions memory ring requests"),
    "no_acknowledgement_comes_unasked": script(answers=answers_all(1)),
    "no_acknowledgement_comes_where_none_was_agreed_on": script(asks=0, answers=answers_all(1)),
    "an_acknowledgement_has_the_requests_number": ours(acknowledges_as(3)),
    "every_request_has_one_acknowledgement": script(answers=answers_twice),
    "a_back_end_request_may_come_byte_by_byte": script(whole=True),
    "back_end_requests_may_come_together": script(whole=True),
    "the_main_channel_outlives_the_back_end_channel": script(clings=True),
    "the_main_channel_outlives_half_a_request": script(clings=True),
    "a_change_of_the_configuration_may_come_unacknowledged": script(answers=answers_all(1)),
    "the_end_of_the_main_channel_is_noticed": script(deaf=True),
    # regions
    "the_regions_are_asked_for_where_shmem_is_taken": script(steps=WITHOUT["regions"]),
    "the_regions_are_not_asked_for_without_shmem": LAX,
    "the_regions_are_asked_for_once": script(steps=STEPS.replace("ring", "regions ring")),
    "the_regions_are_asked_for_before_a_ring_starts": script(steps="owner features requests memory ring regions"),
    "the_question_has_no_payload": ours(changes(Q.GET_SHMEM_CONFIG, longer)),
    "there_may_be_no_region_at_all": YES,
    # mappings
    "the_same_range_of_two_regions_can_be_mapped": NO,
    "the_back_end_may_close_its_fd_at_once": NO,
    "a_file_may_be_mapped_twice": NO,
    "padding_means_nothing": NO,
    "a_mapping_is_made_without_acknowledgement": ours(loses(B.SHMEM_MAP)),
    "a_refusal_is_silent_without_need_reply": script(answers=answers_all(0)),
    "the_acknowledgement_does_not_wait_for_the_main_channel": script(
        answers=lambda frame: b"" if frame.request == B.SHMEM_MAP else acknowledge(frame)
    ),
    "a_refused_mapping_leaves_its_range_free": NO,
    "a_whole_mapping_can_be_taken_away": NO,
    "a_range_can_be_mapped_again_after_it_was_unmapped": NO,
    "a_range_can_be_mapped_in_other_pieces_after_it_was_unmapped": NO,
    "the_neighbours_of_what_is_unmapped_stay": YES,
    "a_mapping_is_unmapped_without_acknowledgement": ours(loses(B.SHMEM_UNMAP)),
    "flags_and_file_offset_mean_nothing_for_unmapping": NO,
    "a_read_only_mapping_can_be_taken_away": NO,
    "a_mapping_is_answered_while_the_front_end_waits": script(),
    "mappings_are_gone_after_a_reset": lambda: Driven(restless, says(0)),
    "a_range_is_free_after_a_reset": lambda: Driven(Forgetful()),
    "the_connection_outlives_a_channel_with_mappings": script(clings=True),
    # shared objects
    "adding_an_object_is_acknowledged": shares(says(1)),
    "adding_an_object_twice_is_refused": shares(says(0)),
    "an_object_can_be_withdrawn_and_added_again": shares(answers_to(B.SHARED_OBJECT_REMOVE, number(1))),
    "withdrawing_what_was_not_added_is_refused": shares(says(0)),
    "a_lookup_needs_no_fd": shares(ends_at(B.SHARED_OBJECT_LOOKUP)),
    "a_lookup_of_an_unknown_object_finds_nothing": shares(answers_to(B.SHARED_OBJECT_LOOKUP, number(0))),
    "a_lookup_with_need_reply_has_one_answer": shares(answers_to(B.SHARED_OBJECT_LOOKUP, twice)),
    "an_object_is_asked_for_by_its_uuid": shares(changes(Q.GET_SHARED_OBJECT, unnamed)),
    "the_fd_of_an_object_comes_with_the_answer": lambda: Driven(withholding),
    "an_object_that_its_back_end_does_not_give_is_not_found": shares(answers_to(B.SHARED_OBJECT_LOOKUP, number(0))),
    "an_in_band_call_is_taken": lambda: Driven(inband, says(1)),
    "an_in_band_call_for_no_ring_is_refused": lambda: Driven(inband, says(0)),
}
"""For each rule, what makes a front-end break it."""
SILENT: Final = {
    "a_reply_that_nobody_asked_for_ends_the_connection",
    "a_front_end_gets_along_without_acknowledgements",
    "the_end_of_the_main_channel_is_noticed",
    "a_mapping_is_answered_while_the_front_end_waits",
    "the_acknowledgement_does_not_wait_for_the_main_channel",
}
"""Rules that are about doing something at all: who breaks them does nothing until the time is over."""
DRIVES: Final = {
    "mappings_are_gone_after_a_reset": restless,
    "a_range_is_free_after_a_reset": restless,
    "rings_are_stopped_by_asking_for_their_base": stopping,
    "a_stop_asks_for_rings_that_were_started": stopping,
    "no_more_regions_are_added_than_there_are_slots": with_blocks,
    **{rule.name: sharing for rule in RULES if rule.check.__module__.endswith("shared_objects")},
    "an_in_band_call_is_taken": inband,
    "an_in_band_call_for_no_ring_is_refused": inband,
}
"""What ours does for a rule that is about more than a ring."""


def test_each_rule_has_a_front_end_that_breaks_it() -> None:
    assert sorted(WRONG) == sorted(NAMES)


def test_there_are_rules_enough() -> None:
    assert len(RULES) >= 80
    assert sum("SHMEM" in rule.section or "shmem" in rule.check.__code__.co_filename for rule in RULES) >= 40


@pytest.mark.parametrize("rule", RULES, ids=NAMES)
def test_our_front_end_keeps_it(rule: Rule[FrontendBench]) -> None:
    with Driven(DRIVES.get(rule.name, steady)) as peer:
        outcome = check_one(rule, peer, REACH, rest=0.01)
    assert (outcome.result, outcome.got) == (Result.KEPT, "")


@pytest.mark.parametrize("rule", [rule for rule in RULES if rule.name in WRONG], ids=lambda rule: rule.name)
def test_one_that_breaks_it_is_caught(rule: Rule[FrontendBench]) -> None:
    with WRONG[rule.name]() as peer:
        outcome = check_one(rule, peer, REACH, timeout=SOON if rule.name in SILENT else LATE, rest=0.01)
    wanted = Result.CRASHED if rule.name in CRASHES else Result.HUNG if rule.name in SILENT else Result.BROKEN
    assert outcome.result is wanted, outcome.got
    assert outcome.expected


def test_ours_reaches_all_that_rules_are_about() -> None:
    with Driven(steady) as peer:
        assert reach_of(peer, quiet=0.1) == REACH
