"""Wrong about shared memory regions."""

from __future__ import annotations

import array
import os
import socket
from collections.abc import Callable, Sequence

from vhostuser.device import Device
from vhostuser.protocol.numbers import NEED_REPLY, VERSION, BackendRequest, FrontendRequest
from vhostuser.protocol.payloads import Mmap
from vhostuser.protocol.rules import Channel
from vhostuser.testing import memory_file, read_only
from vhostuser.testing.files import message
from vhostuser.trace.event import Message
from vhostuser.trace.verdict import Alter, Verdict

from ..devices import PAGE, Mapping
from ..wrong import Wrong, in_reply, in_request, leaving_at, put, silent_to

Q, B = FrontendRequest, BackendRequest
SHMID, PADDING, FD_OFFSET, SHM_OFFSET, LENGTH, FLAGS = 0, 1, 8, 16, 24, 32
SIZE = 1 << 21
AGREED = 3
"""How often GET_FEATURES comes before all is agreed on."""
ASK = VERSION | NEED_REPLY
Row = tuple[int, Mmap, Callable[[], int] | None]
"""A request, its body, and what makes its fd."""


def raw(*rows: Row, flags: int = ASK, at_reset: Sequence[Row] = ()) -> Wrong:
    """A device that asks for this when a driver takes it, past all that our back-end checks."""

    class Raw(Mapping):
        def driver_ready(self) -> None:
            self.channel = _channel(self)
            self.ask(rows)

        def reset(self) -> None:
            self.ask(at_reset)

        def ask(self, asked: Sequence[Row]) -> None:
            for request, body, make in asked:
                _ask(self.channel, message(request, body, flags=flags), make)

    return Wrong(None, Raw)


def _channel(device: Device) -> int:
    """The fd of the back-end channel, or -1."""
    channel = device.shm[0]._port._channel
    return channel.fileno() if channel else -1


def _ask(channel: int, data: bytes, make: Callable[[], int] | None) -> None:
    if channel < 0:
        return
    fds = [make()] if make else []
    control = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    try:
        with socket.socket(fileno=os.dup(channel)) as sock:
            sock.sendmsg([data], control, socket.MSG_NOSIGNAL)
    finally:  # the front-end may be gone already
        for fd in fds:
            os.close(fd)


def _file(pages: int = 2) -> int:
    return memory_file(pages).detach()


def _write_only() -> int:
    with memory_file(2) as file:
        return os.open(f"/proc/self/fd/{file.fileno()}", os.O_WRONLY | os.O_CLOEXEC)


def _read_only() -> int:
    with memory_file(2) as file:
        return read_only(file).detach()


def _eventfd() -> int:
    return os.eventfd(0, os.EFD_CLOEXEC)


def flagged(flags: int) -> Wrong:
    """Requests on the back-end channel have these flags."""

    def alter(sent: Message, fds: Sequence[int]) -> Verdict | None:
        if sent.channel is not Channel.BACKEND or not sent.asks:
            return None
        return Verdict("flagged", data=message(sent.request, sent.payload, flags=flags))

    return Wrong(lambda: alter)


def changing_config(change: Callable[[bytes], bytes]) -> Wrong:
    """From the second time on GET_SHMEM_CONFIG is answered otherwise."""

    def make() -> Alter:
        times = [0]

        def alter(sent: Message, fds: Sequence[int]) -> Verdict | None:
            if sent.asks or sent.request != Q.GET_SHMEM_CONFIG:
                return None
            times[0] += 1
            data = message(sent.request, change(sent.payload), flags=sent.flags)
            return Verdict("changed", data=data) if times[0] > 1 else None

        return alter

    return Wrong(make)


def begging(request: FrontendRequest) -> Wrong:
    """When this message comes, a mapping is asked for, whatever the state."""

    def make() -> Alter:
        held: list[socket.socket] = []

        def alter(sent: Message, fds: Sequence[int]) -> Verdict | None:
            if sent.channel is not Channel.FRONTEND or not sent.asks:
                return None
            if sent.request == Q.SET_BACKEND_REQ_FD:
                held.append(socket.socket(fileno=os.dup(fds[0])))
            if sent.request == request:
                held[0].send(message(B.SHMEM_MAP, Mmap(0, 0, 0, PAGE), flags=ASK))
                held[0].close()
            return None

        return alter

    return Wrong(make, timeout=1.0)


WHOLE = Mmap(0, 0, 0, 2 * PAGE)

WRONG: dict[str, Wrong] = {
    "the_configuration_of_regions_has_256_sizes": in_reply(Q.GET_SHMEM_CONFIG, lambda data: data[:-8]),
    "the_number_of_regions_is_that_of_sizes_that_are_not_zero": in_reply(Q.GET_SHMEM_CONFIG, put(0, 1, 4)),
    "a_region_is_whole_pages": in_reply(Q.GET_SHMEM_CONFIG, put(8, 1000)),
    "the_configuration_of_regions_stays": changing_config(put(8, PAGE)),
    "the_configuration_of_regions_outlives_a_reset": changing_config(put(8, PAGE)),
    "regions_can_be_reserved": in_reply(Q.GET_SHMEM_CONFIG, put(8, 1 << 46)),
    "the_padding_of_the_configuration_of_regions_is_zero": in_reply(Q.GET_SHMEM_CONFIG, put(4, 1, 4)),
    "a_mapping_is_in_a_region_that_is_there": in_request(B.SHMEM_MAP, put(SHMID, 3, 1)),
    "a_mapping_ends_within_its_region": in_request(B.SHMEM_MAP, put(SHM_OFFSET, SIZE - PAGE)),
    "a_mapping_begins_at_a_page": in_request(B.SHMEM_MAP, put(SHM_OFFSET, 1)),
    "a_mapping_has_whole_pages": in_request(B.SHMEM_MAP, put(LENGTH, 1000)),
    "a_mapping_begins_at_a_page_of_its_file": in_request(B.SHMEM_MAP, put(FD_OFFSET, 512)),
    "a_mapping_is_not_empty": in_request(B.SHMEM_MAP, put(LENGTH, 0)),
    "a_mapping_has_known_flags": in_request(B.SHMEM_MAP, put(FLAGS, 2)),
    "the_padding_of_a_mapping_is_zero": in_request(B.SHMEM_MAP, put(PADDING, 1, 1)),
    "a_mapping_comes_with_one_fd": raw((B.SHMEM_MAP, WHOLE, None)),
    "a_mapping_is_of_what_can_be_mapped": raw((B.SHMEM_MAP, WHOLE, _eventfd)),
    "a_mapping_is_of_what_is_in_its_file": in_request(B.SHMEM_MAP, put(LENGTH, 64 * PAGE)),
    "a_mapping_may_be_made_of_its_fd": raw((B.SHMEM_MAP, WHOLE, _write_only)),
    "a_mapping_is_asked_for_by_a_request": flagged(ASK | 0x10),
    "a_mapping_wants_to_be_acknowledged": flagged(VERSION),
    "mappings_do_not_overlap": in_request(B.SHMEM_MAP, put(SHM_OFFSET, 0)),
    "a_mapping_that_is_refused_is_survived": leaving_at(Q.GET_FEATURES, after=AGREED),
    "a_mapping_that_is_refused_is_not_taken_away": raw((B.SHMEM_MAP, WHOLE, _file), (B.SHMEM_UNMAP, WHOLE, None)),
    "the_main_channel_is_served_while_a_mapping_waits": silent_to(Q.GET_FEATURES, after=AGREED),
    "the_end_of_the_back_end_channel_is_survived": leaving_at(Q.GET_FEATURES, after=AGREED),
    "nothing_is_mapped_without_the_feature": raw((B.SHMEM_MAP, WHOLE, _file)),
    "a_device_starts_without_a_back_end_channel": leaving_at(Q.SET_VRING_KICK),
    "nothing_is_mapped_before_a_ring_starts": begging(Q.SET_MEM_TABLE),
    "a_reset_unmaps_without_a_word": raw((B.SHMEM_MAP, WHOLE, _file), at_reset=[(B.SHMEM_UNMAP, WHOLE, None)]),
    "nothing_is_mapped_once_the_rings_are_stopped": begging(Q.GET_VRING_BASE),
    "requests_without_reply_ack_do_not_ask_for_a_reply": raw((B.SHMEM_MAP, WHOLE, _file)),
}
"""By the rule's name."""
