"""The passive rules: each finds what it is for, and a conversation that is right has none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from tests.report.scene import CACHE, EVENT, GUEST, MIB, MS, NOTES, PHOTO, SOCKET, VIRTIO, B, Q, Scene, session
from tests.trace.building import FEATURES, items_of
from vhostuser.protocol.framing import Frame, reply_frame, request_frame
from vhostuser.protocol.numbers import NEED_REPLY, REPLY, VERSION, ProtocolFeature
from vhostuser.protocol.payloads import U64, MemoryRegion, MemoryTable, Mmap, ShmemConfig, VringState
from vhostuser.protocol.rules import Channel
from vhostuser.protocol.state import Role
from vhostuser.trace.event import Event, FdNote, Message, Remarkable
from vhostuser.trace.findings import Finding, Findings, Severity
from vhostuser.trace.passive.table import AT_CLOSE, RULES

Wrong = Callable[[Scene], None]
SLOTS = FEATURES | 1 << ProtocolFeature.CONFIGURE_MEM_SLOTS


def found_in(events: list[Event]) -> list[Finding]:
    findings = Findings()
    return [each for item in items_of(events) for each in findings.take(item)] + findings.end()


def right(features: int = FEATURES) -> Scene:
    """A connection that has begun as it should."""
    scene = Scene(features=features)
    scene.begin()
    return scene


def no_message(scene: Scene) -> None:
    scene.events.append(Message(scene.at, 0, Channel.FRONTEND, Role.FRONTEND, b"GET / HTTP/1.1", whole=False))


def unknown_request(scene: Scene) -> None:
    scene.ask(77, U64(1))


def request_form(scene: Scene) -> None:
    scene.ask(Q.SET_VRING_NUM)


def reply_form(scene: Scene) -> None:
    scene.get(Q.GET_FEATURES, Mmap(0, 0, 0, 0))


def no_reply(scene: Scene) -> None:
    scene.ask(Q.GET_FEATURES)


def orphan_reply(scene: Scene) -> None:
    scene.message(Channel.FRONTEND, Role.BACKEND, reply_frame(77, U64(0)))


def needless_ack(scene: Scene) -> None:
    scene.ask(Q.SET_OWNER)
    scene.answer(Q.SET_OWNER, U64(0))


def not_negotiated(scene: Scene) -> None:
    scene.ask(Q.SET_STATUS, U64(4))


def fd_count(scene: Scene) -> None:
    scene.set(Q.SET_BACKEND_REQ_FD, None)


def too_many_fds(scene: Scene) -> None:
    scene.call(B.SHMEM_MAP, Mmap(0, 0, 0, 4096), NOTES, NOTES)


def field(scene: Scene) -> None:
    scene.ask(Q.SET_VRING_ENABLE, VringState(0, 2))


def unoffered_features(scene: Scene) -> None:
    scene.ask(Q.SET_FEATURES, U64(VIRTIO | 1 << 40))


def overlapping_memory(scene: Scene) -> None:
    regions = (MemoryRegion(0, 2 * MIB, 0, 0), MemoryRegion(MIB, 2 * MIB, 0, 0))
    scene.set(Q.SET_MEM_TABLE, MemoryTable(regions), GUEST, GUEST)


def refused(scene: Scene) -> None:
    scene.ask(Q.SET_VRING_ENABLE, VringState(0, 1), need_reply=True)
    scene.answer(Q.SET_VRING_ENABLE, U64(1))


def region_sizes(scene: Scene) -> None:
    scene.get(Q.GET_SHMEM_CONFIG, ShmemConfig({0: 3 * MIB}))


def region_sizes_unaligned(scene: Scene) -> None:
    scene.get(Q.GET_SHMEM_CONFIG, ShmemConfig({0: 1 << 30, 1: 100}))


def map_region(scene: Scene) -> None:
    scene.call(B.SHMEM_MAP, Mmap(3, 0, 0, 4096), NOTES, status=1)


def map_outside(scene: Scene) -> None:
    scene.map(NOTES, (1 << 30) - 4096, 8192, status=1)


def map_wraps(scene: Scene) -> None:
    scene.map(NOTES, (1 << 64) - 4096, 8192, status=1)


def map_unaligned(scene: Scene) -> None:
    scene.map(NOTES, 100, 4096, status=1)


def map_flags(scene: Scene) -> None:
    scene.call(B.SHMEM_MAP, Mmap(0, 0, 0, 4096, 2), NOTES, status=1)


def map_overlap(scene: Scene) -> None:
    scene.map(NOTES, 0, 8192)
    scene.map(NOTES, 4096, 8192, status=1)


def map_dropped(scene: Scene) -> None:
    scene.map(NOTES, 0, 8192)
    scene.map(NOTES, 4096, 8192)


def map_refused(scene: Scene) -> None:
    scene.map(NOTES, 0, 8192, status=1)


def map_read_only(scene: Scene) -> None:
    scene.map(PHOTO, 0, 8192, status=1)


def unmap_inexact(scene: Scene) -> None:
    scene.map(NOTES, 0, 8192)
    scene.unmap(0, 4096, status=1)


def map_stopped(scene: Scene) -> None:
    scene.stop()
    scene.map(NOTES, 0, 4096)


def map_crossing(scene: Scene) -> None:
    """The stop is settled first."""
    scene.message(Channel.BACKEND, Role.BACKEND, request_frame(B.SHMEM_MAP, Mmap(0, 0, 0, 4096), need_reply=True), [NOTES])
    scene.set(Q.SET_VRING_ENABLE, VringState(0, 0))
    scene.wait(1000)
    scene.message(Channel.BACKEND, Role.FRONTEND, reply_frame(B.SHMEM_MAP, U64(0)))


def stop_crossing(scene: Scene) -> None:
    """The mapping is settled first."""
    scene.ask(Q.SET_VRING_ENABLE, VringState(0, 0), need_reply=True)
    scene.map(NOTES, 0, 4096)
    scene.answer(Q.SET_VRING_ENABLE, U64(0))


def map_kind(scene: Scene) -> None:
    scene.map(SOCKET, 0, 4096, status=1)


def map_access(scene: Scene) -> None:
    scene.map(PHOTO, 0, 4096, rw=True, status=1)


def map_write_only(scene: Scene) -> None:
    scene.map(replace(NOTES, access="w"), 0, 4096, status=1)


def map_past_end(scene: Scene) -> None:
    scene.map(NOTES, 0, 16 * MIB)


def map_shrink(scene: Scene) -> None:
    scene.map(replace(CACHE, seals=()), 0, 4096, rw=True)


def slow(scene: Scene) -> None:
    for turn in range(30):
        scene.map(NOTES, turn * 4096, 4096)
    scene.map(NOTES, 30 * 4096, 4096, after=50 * MS)


def broken(scene: Scene) -> None:
    scene.remark(Remarkable.BROKEN, "the header has flags 0x57")


def lost(scene: Scene) -> None:
    scene.remark(Remarkable.LOST, "3 events")


def map_left(scene: Scene) -> None:
    scene.map(NOTES, 0, 4096)
    scene.close()


FOUND: dict[Wrong, str] = {
    no_message: "no-message",
    unknown_request: "unknown-request",
    request_form: "request-form",
    reply_form: "reply-form",
    no_reply: "no-reply",
    orphan_reply: "orphan-reply",
    needless_ack: "needless-ack",
    not_negotiated: "not-negotiated",
    fd_count: "fd-count",
    too_many_fds: "fd-count",
    field: "field",
    unoffered_features: "field",
    overlapping_memory: "field",
    refused: "refused",
    region_sizes: "region-sizes",
    region_sizes_unaligned: "field",
    map_region: "map-region",
    map_outside: "map-outside",
    map_wraps: "map-outside",
    map_unaligned: "map-unaligned",
    map_flags: "map-flags",
    map_overlap: "map-overlap",
    map_dropped: "map-dropped",
    map_refused: "map-refused",
    map_read_only: "map-read-only",
    unmap_inexact: "unmap-inexact",
    map_stopped: "map-stopped",
    map_crossing: "map-crossing",
    stop_crossing: "map-crossing",
    map_kind: "map-kind",
    map_access: "map-access",
    map_write_only: "map-access",
    map_past_end: "map-past-end",
    map_shrink: "map-shrink",
    slow: "slow",
    broken: "broken",
    lost: "lost",
    map_left: "map-left",
}


@pytest.mark.parametrize("wrong", FOUND, ids=lambda wrong: wrong.__name__)
def test_finds(wrong: Wrong) -> None:
    scene = right()
    assert found_in(scene.events) == []
    wrong(scene)
    found = found_in(scene.events)
    assert FOUND[wrong] in [each.rule for each in found]
    assert all(each.section and each.text and each.text.isprintable() for each in found)


def test_every_rule_has_such_a_case() -> None:
    elsewhere = {"need-reply", "late-capture", "advised-feature", "dialect", "map-unasked", "map-reset", "map-count"}
    elsewhere |= {"regions-unasked"}
    assert {rule.name for rule in (*RULES, *AT_CLOSE)} == (set(FOUND.values()) - {"broken", "lost"}) | elsewhere


def rules_of(scene: Scene) -> list[str]:
    return [each.rule for each in found_in(scene.events)]


def test_need_reply_without_reply_ack() -> None:
    scene = right(FEATURES & ~(1 << ProtocolFeature.REPLY_ACK))
    assert "need-reply" in rules_of(scene)
    assert "advised-feature" in rules_of(scene)


def test_a_capture_that_begins_late_is_judged_by_form_only() -> None:
    scene = Scene()
    scene.start()
    scene.map(NOTES, 0, 4096)
    assert rules_of(scene) == ["late-capture"]


def test_a_back_end_of_another_dialect() -> None:
    scene = Scene()
    scene.get(Q.GET_FEATURES, U64(VIRTIO))
    scene.get(Q.GET_PROTOCOL_FEATURES, U64(1 << 21 | 1 << 5 | 1 << 10 | 1 << 3))
    assert rules_of(scene) == ["dialect"]


def test_a_front_end_that_takes_no_shared_memory() -> None:
    scene = Scene()
    scene.get(Q.GET_FEATURES, U64(VIRTIO))
    scene.get(Q.GET_PROTOCOL_FEATURES, U64(FEATURES))
    scene.ask(Q.SET_PROTOCOL_FEATURES, U64(1 << ProtocolFeature.REPLY_ACK))
    scene.close()
    assert rules_of(scene) == ["regions-unasked"]


def test_mapping_before_the_regions_are_known() -> None:
    scene = right()
    ask = next(n for n, e in enumerate(scene.events) if isinstance(e, Message) and e.request == Q.GET_SHMEM_CONFIG)
    del scene.events[ask : ask + 2]
    scene.map(NOTES, 0, 4096)
    assert rules_of(scene)[0] == "map-unasked"


def test_a_stop_with_mappings_and_slots_k3() -> None:
    scene = right(SLOTS)
    scene.map(NOTES, 0, 4096)
    scene.stop()
    assert "map-reset" in rules_of(scene)


def test_more_mappings_than_slots_k4() -> None:
    scene = right(SLOTS)
    for turn in range(512):
        scene.map(NOTES, turn * 4096, 4096)
    assert rules_of(scene) == ["map-count"]


def test_a_reset_takes_the_mappings_away() -> None:
    scene = right()
    scene.map(NOTES, 0, 4096)
    scene.stop()
    scene.set(Q.RESET_DEVICE, None)
    scene.start()
    scene.map(NOTES, 0, 4096)
    assert rules_of(scene) == []


def test_the_judgement_of_the_receiver_is_told() -> None:
    scene = right()
    scene.map(NOTES, 100, 4096, status=0)
    told = [each.text for each in found_in(scene.events)]
    assert told == ["SHMEM_MAP shm_offset 0x64 is not a multiple of the page size 0x1000; the front-end accepted it"]


def test_a_features_set_that_was_accepted_is_what_follows_is_judged_by() -> None:
    """One finding, not one for every later message."""
    scene = Scene(features=FEATURES | 1 << ProtocolFeature.STATUS)
    scene.get(Q.GET_FEATURES, U64(VIRTIO))
    scene.get(Q.GET_PROTOCOL_FEATURES, U64(FEATURES))
    scene.ask(Q.SET_PROTOCOL_FEATURES, U64(scene.features))
    scene.ask(Q.SET_STATUS, U64(1))
    assert rules_of(scene) == ["field"]


def test_a_finding_names_its_message() -> None:
    found = found_in(session())
    by_rule = {each.rule: each for each in found}
    event = session()[by_rule["map-overlap"].index]
    assert isinstance(event, Message)
    assert event.request == B.SHMEM_MAP
    assert by_rule["map-overlap"].severity is Severity.ERROR
    assert by_rule["map-overlap"].section == "Back-end message types: VHOST_USER_BACKEND_SHMEM_MAP"


def test_hostile_headers_break_nothing() -> None:
    scene = right()
    for flags in (0, 2, REPLY | VERSION, NEED_REPLY, 0xFFFFFFF1):
        for sender in Role:
            for channel in Channel:
                for request in (0, 9, 12, 44, 77, 0xFFFFFFFF):
                    frame: Frame[int] = Frame(request, flags, bytes(40))
                    scene.message(channel, sender, frame, [EVENT, FdNote(3, "other")])
    assert found_in(scene.events)
