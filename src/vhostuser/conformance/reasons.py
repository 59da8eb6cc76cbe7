"""Why rules matter: what comes of a peer that does not keep them, in the words of whoever has to live with it."""

from __future__ import annotations

import re
from typing import Any, Final, NamedTuple

from .rule import Rule


class Reason(NamedTuple):
    """Why some rules matter: those whose section and name are matched, whole."""

    section: str
    name: str
    text: str


ANY: Final = ".*"
MAP: Final = "VHOST_USER_BACKEND_SHMEM_MAP|MMAP request"
DIES: Final = "Who dies, hangs or gets out of step by this takes the device along, and on the front-end's side the whole VM."
REASONS: Final = (
    Reason(
        "VHOST_USER_(BACKEND_)?(GET_)?SHARED_OBJECT.*",
        "(?!.*_not_negotiated$).*",
        "Devices of a VM hand pictures to each other by it: one that looks in vain copies them, or shows nothing.",
    ),
    Reason(
        "VIRTIO: .*|VHOST_USER_SET_VRING_ERR|Ring states",
        "a(n|_packed)?_.*_is_survived|a_broken_ring_.*",
        "The ring is the guest's: a guest by which the back-end dies, hangs or reads elsewhere has left its VM.",
    ),
    Reason(
        "VIRTIO: .*",
        ANY,
        "Each system's driver counts on it in its own way: else requests stall in some guests, not in others.",
    ),
    Reason(
        "Ring states",
        ".*(enabled|disabled|kick).*",
        "Front-ends enable, start and kick a ring in their own order: who counts on one is a device that stands still.",
    ),
    Reason(
        "Ring states|VHOST_USER_GET_VRING_BASE",
        ANY,
        "Where a ring stops and goes on is told by this alone: else a migration loses requests, or repeats them.",
    ),
    Reason(
        "Suspended device state",
        ANY,
        "A guest that is stopped for a migration must not change any more: what was copied would be another one.",
    ),
    Reason(
        "In-band notifications",
        ANY,
        "In a simulation time stands still between these messages: one that is lost makes it wrong, or ends it.",
    ),
    Reason(
        "VHOST_USER_(GET|SET)_INFLIGHT_FD",
        ANY,
        "By this area a back-end that was started again knows which requests are still to be done.",
    ),
    Reason(
        "VHOST_USER_SET_LOG_(BASE|FD)|Migration",
        ANY,
        "Pages that are not in the log are not copied: the guest goes on elsewhere with memory of before.",
    ),
    Reason(
        "VHOST_USER_(GET|SET)_CONFIG",
        ANY,
        "A driver learns the size of a disk, or how many queues there are, by this: wrong bytes are another device.",
    ),
    Reason(
        "VHOST_USER_((GET|SET)_STATUS|RESET_DEVICE|RESET_OWNER)",
        ANY,
        "A guest that boots again resets its devices: what is left from before meets a driver that knows nothing of it.",
    ),
    Reason(
        "VHOST_USER_(SET_MEM_TABLE|(ADD|REM)_MEM_REG|GET_MAX_MEM_SLOTS)|.*[Mm]emory regions? description",
        ANY,
        "By this table the guest's addresses are translated: what is wrong in it is read and written in the wrong place.",
    ),
    Reason(
        "VHOST_USER_GET_SHMEM_CONFIG|VIRTIO Shared Memory Region configuration",
        ANY,
        "The front-end lays out the regions by this answer, once, before the guest starts: they stay as they are then.",
    ),
    Reason(
        "VHOST_USER_SET_VRING_.*|Multiple queue support",
        ANY,
        "A setting of a ring that can't be right, or was not taken, shows later: the device does nothing, or is corrupt.",
    ),
    Reason(
        "VHOST_USER_BACKEND_.*|Back-end communication|VHOST_USER_SET_BACKEND_REQ_FD|Communication",
        r".*_is_survived|.*_outlives_.*|several_hundred_mappings_.*",
        DIES,
    ),
    Reason(
        "VHOST_USER_BACKEND_SHMEM_UNMAP|" + MAP,
        r"unmapping_.*|mappings_are_gone.*|a_range_.*|a_reset_unmaps.*|.*not_taken_away|.*range_free|.*neighbours.*|.*taken_away"
        r"|.*_unmapped_.*|.*nothing_for_unmapping",
        "The two sides must not differ about what is mapped: else one maps over what is there, or reads what is gone.",
    ),
    Reason(
        MAP,
        r"a_mapping_\w+ing_another_is_refused|a_mapping_\w+ed_by_another_is_refused|a_mapping_equal_.*|mappings_do_not_overlap",
        "Of two mappings in one place one is lost: the guest reads a file that it did not ask for.",
    ),
    Reason(
        MAP,
        r"a_mapping_of_(no_bytes|a_page_|an_end|all_bytes|a_negative|half_the).*refused|a_mapping_in_region.*"
        r"|a_mapping_(is_in_a|ends_within|is_not_empty).*",
        "A mapping that is not inside of a region lies over other memory, of the guest or of the front-end.",
    ),
    Reason(
        MAP,
        r"a_mapping_(of_an_offset_of|of_one_byte|from_|begins_at|has_whole_pages).*",
        "No page table can express it: the guest gets more, less or other bytes than were meant.",
    ),
    Reason(
        MAP,
        r".*(directory|pipe|socket|eventfd|null|path|file|memfd)_.*(refused|mapped|twice|read_only|writing)|.*of_its_file.*"
        r"|a_mapping_is_of_what_.*|.*read_only.*|.*of_its_fd|.*with_one_fd|the_back_end_may_close_its_fd.*|.*the_file",
        "What is mapped is the other side's file: the wrong one, or one that is too short, is SIGBUS when it is touched.",
    ),
    Reason(
        MAP,
        r".*(flags|padding).*",
        "What has no meaning today may get one: who sets it, or takes it, can't be told apart from who knows what it means.",
    ),
    Reason(
        "Header|Payload|VHOST_USER_BACKEND_.*|Communication",
        r"set_.*_too_(short|long)|add_.*_too_(short|long)|.*_with_(no_payload|\d+_bytes)_.*|payloads_.*",
        "Fields that never came are what the message before left in memory; fields that nobody reads are lost silently.",
    ),
    Reason(
        "Header",
        ANY,
        "By version, flags and size a peer knows what it can't read: who does not look at them reads something else.",
    ),
    Reason(
        "Communication|VHOST_USER_BACKEND_SHMEM_MAP",
        r".*_fds?|fds_.*|.*_with_\w+_files_.*",
        "An fd too many is leaked; with one too few the ring, memory or channel that is said to be set up is not there.",
    ),
    Reason(
        "Communication",
        r".*byte_by_byte|.*_at_once|.*_together|an_answer_.*|.*takes?_its_time",
        "A stream keeps no boundaries: any write may be read in parts, and two in one. Who counts on more fails under load.",
    ),
    Reason(
        "Communication",
        ANY,
        DIES,
    ),
    Reason(
        "VHOST_USER_PROTOCOL_F_REPLY_ACK",
        ANY,
        "An answer too many or too few puts the stream out of step: each one is taken for that to another request.",
    ),
    Reason(
        "VHOST_USER_BACKEND_.*|Back-end message types|Back-end communication|VHOST_USER_SET_BACKEND_REQ_FD",
        r".*_is_refused(_.*)?|.*_without_.*|nothing_is_mapped_.*",
        "What was not agreed on may mean something else to the other side, as these numbers did in drafts: a yes is a lie.",
    ),
    Reason(
        "VHOST_USER_BACKEND_.*|Back-end communication|VHOST_USER_SET_BACKEND_REQ_FD",
        ANY,
        "A back-end asks for this while a guest waits: what is not done then is missing there, and often nothing says so.",
    ),
    Reason(
        r"Protocol features|Front-end message types|VHOST_USER_((GET|SET)_(PROTOCOL_)?FEATURES|SET_OWNER)",
        ANY,
        "Both sides go on with what they believe to have agreed on: if that differs, it shows far from here.",
    ),
)
"""The first that fits counts."""


def why(rule: Rule[Any]) -> str:
    """What comes of a peer that does not keep it."""
    return next(
        each.text for each in REASONS if re.fullmatch(each.section, rule.section) and re.fullmatch(each.name, rule.name)
    )
