"""Rules about the back-end channel: what it is, and how requests on it are answered, right ones and wrong ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from ...protocol.numbers import MAP_RW, NEED_REPLY, PAGE, REPLY, VERSION, BackendRequest, FrontendRequest, ProtocolFeature
from ...protocol.payloads import Iotlb, Mmap, Uuid, VringArea, VringState
from ...testing.files import message
from ..family import declare
from ..frontend_bench import FRONT_END, FrontendBench
from ..outcome import Deviation
from ..rule import Level
from ..scripted_backend import Body

F, Q, B = ProtocolFeature, FrontendRequest, BackendRequest
HEADER: Final = "Header"
CHANNEL: Final = "Back-end communication"
REPLY_ACK: Final = "VHOST_USER_PROTOCOL_F_REPLY_ACK"
UNKNOWN: Final = 77
NOTHING_THERE: Final = Mmap(0, 0, PAGE, PAGE)
"""An SHMEM_UNMAP of what was never mapped: a request whose answer is no, at whatever time."""
A_PAGE: Final = Mmap(0, 0, 0, PAGE, MAP_RW)
ANSWERED: Final = (F.BACKEND_REQ, F.REPLY_ACK)
MAPPED: Final = (F.SHMEM, *ANSWERED)


@FRONT_END.rule("VHOST_USER_SET_BACKEND_REQ_FD", protocol=[F.BACKEND_REQ])
def the_back_end_channel_is_one_end_of_a_connected_stream(bench: FrontendBench) -> None:
    """SET_BACKEND_REQ_FD brings the fd of a socket, on which messages of the same form travel."""
    bench.negotiated()
    if bench.requests is None:
        raise Deviation("one connected stream socket with SET_BACKEND_REQ_FD", bench.given)


@FRONT_END.rule("VHOST_USER_SET_BACKEND_REQ_FD", level=Level.ADVICE, protocol=[F.BACKEND_REQ])
def the_back_end_channel_is_given_before_a_ring_starts(bench: FrontendBench) -> None:
    """What a back-end has to ask it may have to ask from the first request of a driver on."""
    bench.settle()
    for seen in bench.seen:
        if seen.request == Q.SET_BACKEND_REQ_FD:
            return
        if seen.request == Q.SET_VRING_KICK:
            raise Deviation("SET_BACKEND_REQ_FD before SET_VRING_KICK", "SET_VRING_KICK")


@FRONT_END.rule(REPLY_ACK, protocol=ANSWERED, queues=1)
def an_unknown_back_end_request_is_refused(bench: FrontendBench) -> None:
    """A request that asks for an acknowledgement gets one, success or failure: an unknown one is a failure."""
    bench.start()
    bench.refused(UNKNOWN)


@FRONT_END.rule(REPLY_ACK, level=Level.SHOULD, protocol=ANSWERED, queues=1)
def the_channel_outlives_an_unknown_request(bench: FrontendBench) -> None:
    """An extension that one side does not know is no reason to end: the status says so, and the channel lives."""
    bench.start()
    bench.refused_in_step(UNKNOWN)
    bench.refused_in_step(UNKNOWN + 1, bytes(8))


@FRONT_END.rule(REPLY_ACK, protocol=ANSWERED, queues=1)
def no_acknowledgement_comes_unasked(bench: FrontendBench) -> None:
    """Without need_reply a request of the back-end has no acknowledgement."""
    bench.start()
    bench.channel.request(UNKNOWN, flags=VERSION)
    bench.refused(UNKNOWN + 1)


@FRONT_END.rule(REPLY_ACK, level=Level.SHOULD, protocol=[F.BACKEND_REQ], queues=1)
def no_acknowledgement_comes_where_none_was_agreed_on(bench: FrontendBench) -> None:
    """Without REPLY_ACK the need_reply flag means nothing."""
    bench.start_without(F.REPLY_ACK, F.SHMEM)
    bench.channel.request(UNKNOWN, flags=VERSION | NEED_REPLY)
    if bench.heard(moments=1.5):
        frame = bench.answer()
        if frame is not None:
            raise Deviation("no acknowledgement without REPLY_ACK", f"request {frame.request}, flags {frame.flags:#x}")


@FRONT_END.rule(HEADER, protocol=ANSWERED, queues=1)
def an_acknowledgement_has_the_requests_number(bench: FrontendBench) -> None:
    """An acknowledgement carries the number of what it acknowledges, the version, the reply flag, and nothing else."""
    bench.start()
    for number in (UNKNOWN, UNKNOWN + 1):
        if bench.ask(number) is None:
            return


@FRONT_END.rule(REPLY_ACK, protocol=ANSWERED, queues=1)
def every_request_has_one_acknowledgement(bench: FrontendBench) -> None:
    """A request that asks for it is acknowledged once: what comes next acknowledges the next."""
    bench.start()
    for number in (UNKNOWN, UNKNOWN, UNKNOWN + 1, UNKNOWN + 2):
        if bench.ask(number) is None:
            return
    if bench.heard(moments=0.5):
        frame = bench.answer()
        raise Deviation("no more acknowledgements than requests", f"request {frame.request}" if frame else "the end")


@FRONT_END.rule("Communication", protocol=MAPPED, queues=1)
def a_back_end_request_may_come_byte_by_byte(bench: FrontendBench) -> None:
    """A stream has no message borders: a request that comes in pieces is a request; its fd is with the first byte."""
    bench.shared_memory()
    first, *rest = message(B.SHMEM_MAP, A_PAGE, flags=VERSION | NEED_REPLY)
    bench.channel.send(bytes([first]), [bench.file()])
    for byte in rest:
        bench.pause()
        bench.channel.send(bytes([byte]))
    if status := bench.acknowledgement(B.SHMEM_MAP):
        raise Deviation("SHMEM_MAP accepted", f"status {status:#x}")
    bench.unmaps(0)


@FRONT_END.rule("Communication", protocol=MAPPED, queues=1)
def back_end_requests_may_come_together(bench: FrontendBench) -> None:
    """A stream has no message borders: three requests in one segment are three, acknowledged in order."""
    bench.shared_memory()
    order = (B.SHMEM_MAP, B.SHMEM_UNMAP, B.SHMEM_UNMAP)
    whole = b"".join(message(request, A_PAGE, flags=VERSION | NEED_REPLY) for request in order)
    bench.channel.send(whole, [bench.file()])
    statuses = [bench.acknowledgement(request) for request in order]
    if statuses[:2] != [0, 0] or not statuses[2]:
        raise Deviation("SHMEM_MAP and SHMEM_UNMAP accepted, the second SHMEM_UNMAP refused", f"statuses {statuses}")


@FRONT_END.rule(CHANNEL, level=Level.ADVICE, protocol=[F.BACKEND_REQ], queues=1)
def the_main_channel_outlives_the_back_end_channel(bench: FrontendBench) -> None:
    """A back-end that has nothing to ask any more may close its channel, and the device goes on."""
    bench.start()
    bench.channel.close()
    bench.lives(moments=1)


@FRONT_END.rule(CHANNEL, level=Level.ADVICE, protocol=[F.BACKEND_REQ], queues=1)
def the_main_channel_outlives_half_a_request(bench: FrontendBench) -> None:
    """A back-end that closes its channel within a message has lost that channel, not the other."""
    bench.start()
    bench.channel.send(message(B.SHMEM_MAP, NOTHING_THERE)[:20])
    bench.channel.close()
    bench.lives(moments=1)


@FRONT_END.rule("VHOST_USER_BACKEND_CONFIG_CHANGE_MSG", protocol=[*ANSWERED, F.CONFIG], queues=1)
def a_change_of_the_configuration_is_taken(bench: FrontendBench) -> None:
    """With CONFIG a back-end may say that the configuration space has changed."""
    bench.start()
    bench.accepted(B.CONFIG_CHANGE_MSG)


@FRONT_END.rule("VHOST_USER_BACKEND_CONFIG_CHANGE_MSG", protocol=[*ANSWERED, F.CONFIG], queues=1)
def a_change_of_the_configuration_may_come_unacknowledged(bench: FrontendBench) -> None:
    """Without need_reply the message is taken in silence."""
    bench.start()
    bench.channel.request(B.CONFIG_CHANGE_MSG)
    bench.accepted(B.CONFIG_CHANGE_MSG)


@FRONT_END.rule("VHOST_USER_BACKEND_CONFIG_CHANGE_MSG", level=Level.SHOULD, protocol=[*ANSWERED], queues=1)
def a_change_of_the_configuration_is_refused_without_config(bench: FrontendBench) -> None:
    """CONFIG_CHANGE_MSG needs the protocol feature CONFIG."""
    bench.start_without(F.CONFIG)
    bench.refused(B.CONFIG_CHANGE_MSG)


# What was not negotiated

UNAGREED: Final[tuple[tuple[str, int, Body, str], ...]] = (
    ("a_host_notifier", B.VRING_HOST_NOTIFIER_MSG, VringArea(0, PAGE, 0), "HOST_NOTIFIER"),
    ("an_in_band_call", B.VRING_CALL, VringState(0, 0), "INBAND_NOTIFICATIONS"),
    ("an_in_band_error", B.VRING_ERR, VringState(0, 0), "INBAND_NOTIFICATIONS"),
    ("adding_a_shared_object", B.SHARED_OBJECT_ADD, Uuid(bytes(range(16))), "SHARED_OBJECT"),
    ("removing_a_shared_object", B.SHARED_OBJECT_REMOVE, Uuid(bytes(range(16))), "SHARED_OBJECT"),
    ("looking_up_a_shared_object", B.SHARED_OBJECT_LOOKUP, Uuid(bytes(range(16))), "SHARED_OBJECT"),
    ("an_iotlb_miss", B.IOTLB_MSG, Iotlb(0, PAGE, 0, 1, 1), "VIRTIO_F_ACCESS_PLATFORM"),
)
"""Requests that a feature gates which is not offered: name, number, payload, feature."""


def _refuses(request: int, body: Body) -> Callable[[FrontendBench], None]:
    def check(bench: FrontendBench) -> None:
        bench.start()
        bench.refused(request, body)

    return check


for _name, _request, _body, _feature in UNAGREED:
    declare(
        FRONT_END,
        f"VHOST_USER_BACKEND_{B(_request).name}",
        f"{_name}_is_refused_if_not_negotiated",
        f"{B(_request).name} needs {_feature}, which was not negotiated.",
        _refuses(_request, _body),
        level=Level.SHOULD,
        protocol=ANSWERED,
        queues=1,
    )


# Headers that are wrong

FLAGS: Final[tuple[tuple[str, int, Level, str], ...]] = (
    ("of_version_0", NEED_REPLY, Level.SHOULD, "The version is 1: a message of version 0 is none of this protocol."),
    ("of_version_2", 2 | NEED_REPLY, Level.SHOULD, "The version is 1: a message of version 2 is none of this protocol."),
    ("of_version_3", 3 | NEED_REPLY, Level.SHOULD, "The version is 1: a message of version 3 is none of this protocol."),
    ("with_the_reply_flag", VERSION | REPLY | NEED_REPLY, Level.SHOULD, "The reply flag marks replies, no request has it."),
    (
        "with_flag_4",
        VERSION | NEED_REPLY | 1 << 4,
        Level.ADVICE,
        "Bit 4 of the flags means nothing yet: who sets it means more.",
    ),
    (
        "with_flag_31",
        VERSION | NEED_REPLY | 1 << 31,
        Level.ADVICE,
        "Bit 31 of the flags means nothing yet: who sets it means more.",
    ),
)
"""What a header may be like that is not obeyed: name, flags, level, sentence."""


def _not_obeyed(flags: int) -> Callable[[FrontendBench], None]:
    def check(bench: FrontendBench) -> None:
        bench.shared_memory()
        bench.channel.request(B.SHMEM_MAP, A_PAGE, fds=[bench.file()], flags=flags)
        frame = bench.answer()
        if frame is not None and not any(frame.payload):
            raise Deviation(f"no SHMEM_MAP with flags {flags:#x}", "status 0")

    return check


for _name, _flags, _level, _text in FLAGS:
    declare(
        FRONT_END,
        HEADER,
        f"a_back_end_request_{_name}_is_not_obeyed",
        _text,
        _not_obeyed(_flags),
        level=_level,
        protocol=MAPPED,
        queues=1,
    )

ANNOUNCED: Final = {"4097_bytes": 4097, "64_kib": 1 << 16, "2_gib": 1 << 31, "4_gib": (1 << 32) - 1}


def _announces(size: int) -> Callable[[FrontendBench], None]:
    def check(bench: FrontendBench) -> None:
        bench.start()
        bench.channel.send(message(B.SHMEM_MAP, NOTHING_THERE, flags=VERSION | NEED_REPLY, size=size))
        status = bench.acknowledgement(B.SHMEM_MAP)
        if status == 0:
            raise Deviation(f"no SHMEM_MAP of {size} bytes", "status 0")
        bench.lives()

    return check


for _name, _size in ANNOUNCED.items():
    declare(
        FRONT_END,
        HEADER,
        f"a_back_end_request_of_{_name}_is_not_waited_for",
        f"No payload has {_size} bytes: a header that says so ends the channel, or is refused; nobody waits for the rest.",
        _announces(_size),
        level=Level.ADVICE,
        protocol=ANSWERED,
        queues=1,
    )

SIZES: Final = {"no_payload": 0, "8_bytes": 8, "32_bytes": 32, "39_bytes": 39, "41_bytes": 41, "48_bytes": 48}


def _of_size(size: int) -> Callable[[FrontendBench], None]:
    def check(bench: FrontendBench) -> None:
        bench.shared_memory()
        payload = A_PAGE.pack()[:size].ljust(size, b"\0")
        bench.refused(B.SHMEM_MAP, payload, fds=[bench.file()])

    return check


for _name, _size in SIZES.items():
    declare(
        FRONT_END,
        "VHOST_USER_BACKEND_SHMEM_MAP",
        f"a_mapping_with_{_name}_is_refused",
        f"SHMEM_MAP has 40 bytes of payload, not {_size}.",
        _of_size(_size),
        level=Level.SHOULD,
        protocol=MAPPED,
        queues=1,
    )


# In-band notifications, with who has them

INBAND: Final = "In-band notifications"


@FRONT_END.rule(INBAND, protocol=ANSWERED, queues=1)
def an_in_band_call_is_taken(bench: FrontendBench) -> None:
    """With INBAND_NOTIFICATIONS a call is a message of the back-end channel."""
    bench.start_inband()
    bench.accepted(B.VRING_CALL, VringState(min(bench.seen.running), 0))


@FRONT_END.rule(INBAND, level=Level.SHOULD, protocol=ANSWERED, queues=1)
def an_in_band_call_for_no_ring_is_refused(bench: FrontendBench) -> None:
    """A call names a ring that there is."""
    bench.start_inband()
    bench.refused(B.VRING_CALL, VringState(1 << 16, 0))
