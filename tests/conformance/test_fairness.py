"""Rules are about nobody whom they can't be about, and say what came."""

from __future__ import annotations

import socket
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
from vhostuser.conformance.scripted_backend import FEATURES, PROTOCOL
from vhostuser.protocol.numbers import FrontendRequest, ProtocolFeature
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
