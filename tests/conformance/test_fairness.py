"""Rules are about nobody whom they can't be about, and say what came."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable
from dataclasses import replace
from typing import Final

import pytest

from vhostuser.conformance.back_end import all_rules  # noqa: F401  # the rules
from vhostuser.conformance.backend_bench import BACK_END
from vhostuser.conformance.check_backend import check_one, offer_of
from vhostuser.conformance.check_frontend import check_one as check_front
from vhostuser.conformance.check_frontend import front_end_rules
from vhostuser.conformance.frontend_bench import Reach
from vhostuser.conformance.outcome import Outcome, Result
from vhostuser.conformance.probes import PROBES
from vhostuser.conformance.ring import Ring
from vhostuser.conformance.scripted_backend import FEATURES, PROTOCOL
from vhostuser.errors import VhostUserError
from vhostuser.frontend import Frontend
from vhostuser.protocol.numbers import FrontendRequest, ProtocolFeature
from vhostuser.protocol.payloads import SingleRegion
from vhostuser.testing import DEADLINE, memory_file
from vhostuser.testing.files import message

from .devices import Everything
from .fronts import STEPS, Driven, Script
from .wrong import Behind, Scripted

F, Q = ProtocolFeature, FrontendRequest
BACK: Final = {rule.name: rule for rule in BACK_END}
FRONT: Final = {rule.name: rule for rule in front_end_rules()}
REACH: Final = Reach(FEATURES, PROTOCOL | 1 << F.MQ, rings=1, asks=True)


@pytest.mark.parametrize("fault", ["the_number_of_another_request", "4_bytes"])
def test_who_takes_the_back_end_channel_and_never_gives_it_is_skipped(fault: str) -> None:
    rule = FRONT[f"a_reply_to_set_backend_req_fd_with_{fault}_ends_the_connection"]
    with Driven(Script(steps=STEPS.replace("requests", ""))) as peer:
        outcome = check_front(rule, peer, REACH, rest=0.01)
    assert (outcome.result, outcome.got) == (Result.SKIPPED, "it never sends SET_BACKEND_REQ_FD")


def test_who_takes_mq_and_never_asks_for_the_queues_is_skipped() -> None:
    rule = FRONT["a_reply_to_get_queue_num_with_16_bytes_ends_the_connection"]
    with Driven(Script(takes=lambda offered: offered & PROTOCOL & ~1)) as peer:
        outcome = check_front(rule, peer, REACH, rest=0.01)
    assert (outcome.result, outcome.got) == (Result.SKIPPED, "it never sends GET_QUEUE_NUM")


def test_a_back_end_of_256_queues_has_no_index_of_eight_bits_to_refuse() -> None:
    with Behind(Everything) as peer:
        offer = replace(offer_of(peer, probe=PROBES["echo"]), queues=256)
        outcome = check_one(BACK["set_vring_kick_of_ring_255_is_refused"], peer, offer)
    assert outcome.result is Result.SKIPPED


def broken_off(data: bytes, *, stays: bool) -> Outcome:
    """What comes of a back-end that answers the second question with half a reply, and then waits, or leaves."""

    def serve(sock: socket.socket) -> None:
        sock.recv(12)
        sock.sendall(message(Q.GET_FEATURES, bytes(8), flags=5))
        sock.recv(12)
        sock.sendall(data)
        if stays:
            sock.recv(12)

    with Scripted(serve) as peer:
        rule = BACK["replies_have_the_version_and_the_reply_flag_and_nothing_else"]
        with Behind(Everything) as right:
            offer = offer_of(right)
        return check_one(rule, peer, offer, timeout=0.3)


@pytest.mark.parametrize("size", [1, 11, 12, 19])
@pytest.mark.parametrize("stays", [True, False])
def test_half_a_reply_is_broken_and_told(size: int, stays: bool) -> None:
    outcome = broken_off(message(Q.GET_FEATURES, bytes(8), flags=5)[:size], stays=stays)
    assert outcome.result is Result.BROKEN
    assert f"{size} bytes of one (01" in outcome.got


def test_no_reply_at_all_is_a_hang() -> None:
    assert broken_off(b"", stays=True).result is Result.HUNG


def test_a_device_may_say_of_less_bytes_that_they_are_written(monkeypatch: pytest.MonkeyPatch) -> None:
    collected = Ring.collected

    def less(ring: Ring) -> tuple[int, int] | None:
        found = collected(ring)
        return found and (found[0], found[1] - 1)

    monkeypatch.setattr(Ring, "collected", less)
    with Behind(Everything) as peer:
        offer = offer_of(peer, probe=PROBES["echo"])
        assert check_one(BACK["requests_come_back_in_a_split_ring"], peer, offer).result is Result.KEPT


def test_a_back_end_that_offers_mq_may_be_asked_for_its_queues_at_once() -> None:
    with Behind(Everything) as peer:
        outcome = check_one(BACK["get_queue_num_is_not_obeyed_without_mq"], peer, offer_of(peer))
    assert (outcome.result, outcome.got) == (Result.SKIPPED, "it offers MQ, and that is all this request needs")


def test_a_back_end_without_protocol_features_is_not_asked_for_them() -> None:
    def serve(sock: socket.socket) -> None:
        while (asked := sock.recv(12)) and asked[:4] == Q.GET_FEATURES.to_bytes(4, "little"):
            sock.sendall(message(Q.GET_FEATURES, bytes(8), flags=5))

    with Scripted(serve) as peer:
        offer = offer_of(peer)
        for rule in BACK_END:
            if rule.name.startswith("get_protocol_features_has") or "_is_not_offered_without_" in rule.name:
                assert check_one(rule, peer, offer).result is Result.SKIPPED, rule.name


def slots(*regions: tuple[int, int, int]) -> Callable[[socket.socket], None]:
    """A front-end that adds a region for each (guest address, user address, bytes)."""

    def drive(sock: socket.socket) -> None:
        with contextlib.suppress(VhostUserError), Frontend(sock, reply_timeout=DEADLINE) as frontend:
            frontend.share_memory(1 << 20)
            with memory_file(1024) as file:
                for guest, user, size in regions:
                    added = message(Q.ADD_MEM_REG, SingleRegion(guest, size, user, 0))  # past what our front-end checks
                    socket.send_fds(sock, [added], [file.fileno()])
            frontend.start_queue(0, size=16)
            frontend.serve()

    return drive


def test_regions_that_are_added_are_compared_with_those_that_are_there() -> None:
    far, gib = 1 << 40, 1 << 30
    for one, other, broken in (
        ((far, far, 1 << 21), (far + gib, far + gib, 1 << 21), ""),
        ((far, far, 1 << 21), (far + (1 << 20), far + gib, 1 << 21), "regions_do_not_overlap"),
        ((far, far, 1 << 21), (far + gib, far + (1 << 20), 1 << 21), "user_addresses_are_apart"),
    ):
        for name in ("regions_do_not_overlap", "user_addresses_are_apart"):
            with Driven(slots(one, other)) as peer:
                outcome = check_front(FRONT[name], peer, REACH, rest=0.05)
            assert outcome.result is (Result.BROKEN if name == broken else Result.KEPT), (name, outcome.got)
