"""Rules about notifications that are messages."""

from __future__ import annotations

from typing import Final

from ...protocol.numbers import BackendRequest, FrontendRequest, ProtocolFeature, mask
from ...protocol.payloads import VringState
from ..backend_bench import BACK_END, BackendBench
from ..mappings import channel_of
from ..outcome import Deviation
from ..ring import RINGS, Ring, probe_of
from ..rule import Level

F, Q, B = ProtocolFeature, FrontendRequest, BackendRequest
SECTION: Final = "In-band notifications"
NEEDS: Final = (F.INBAND_NOTIFICATIONS, F.BACKEND_REQ, F.REPLY_ACK)


def _begin(bench: BackendBench) -> Ring:
    """A ring without eventfds, and one request in it."""
    probe_of(bench)
    bench.agree(protocol=RINGS | mask(NEEDS))
    bench.open_requests()
    bench.map_memory()
    ring = Ring(bench, in_band=True)
    ring.driver.add(*ring.buffers())
    return ring


@BACK_END.rule(SECTION, protocol=NEEDS)
def a_kick_may_be_a_message(bench: BackendBench) -> None:
    """VRING_KICK starts a ring and says that there is something in it."""
    ring = _begin(bench)
    bench.request(Q.VRING_KICK, VringState(ring.index, 0))
    ring.polled(lambda: ring.used_index == 1, "the request given back after VRING_KICK")


@BACK_END.rule(SECTION, protocol=NEEDS)
def a_call_is_a_message_where_there_is_no_eventfd(bench: BackendBench) -> None:
    """VRING_CALL tells of requests that were given back, where no eventfd was set."""
    ring = _begin(bench)
    bench.request(Q.VRING_KICK, VringState(ring.index, 0))
    frame = channel_of(bench).receive()
    for fd in frame.fds:
        bench.keep(fd)
    if frame.request != B.VRING_CALL:
        raise Deviation("VRING_CALL on the back-end channel", f"request {frame.request}")


@BACK_END.rule(SECTION, protocol=NEEDS)
def a_call_names_its_ring(bench: BackendBench) -> None:
    """VRING_CALL carries a vring state: the ring's index, and 0."""
    ring = _begin(bench)
    bench.request(Q.VRING_KICK, VringState(ring.index, 0))
    payload = channel_of(bench).receive().payload
    if payload != VringState(ring.index, 0).pack():
        raise Deviation(f"the vring state of ring {ring.index}, with 0", payload.hex() or "nothing")


@BACK_END.rule(SECTION, protocol=[*NEEDS, F.MQ], level=Level.SHOULD)
def a_kick_of_no_ring_is_refused(bench: BackendBench) -> None:
    """VRING_KICK of a ring that is not there is not obeyed."""
    bench.agree(protocol=RINGS | mask(NEEDS))
    bench.open_requests()
    bench.refused(Q.VRING_KICK, VringState(bench.offer.queues, 0))


@BACK_END.rule(SECTION, protocol=NEEDS, level=Level.ADVICE)
def a_kick_that_wants_a_reply_gets_it_once_the_work_is_done(bench: BackendBench) -> None:
    """With need_reply, VRING_KICK is answered once what was in the ring is given back: simulations depend on it."""
    ring = _begin(bench)
    bench.accepted(Q.VRING_KICK, VringState(ring.index, 0))
    if ring.used_index != 1:
        raise Deviation("the request given back before the acknowledgement", "not yet")
